"""What this machine is and can do: device, precision, memory, disk, paths, packages, seeds.

Precision follows the hardware: bf16 where matrix units know it (Ampere and later, CPUs with AMX or
AVX512-BF16), fp16 with loss scaling on older GPUs (Micikevicius et al. 2018, arXiv:1710.03740).
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import random
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

GIB = 2**30
MALLOC, MOST = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}, 2**31 - 1     # bytes; numbers from malloc.h


@dataclass(frozen=True)
class Device:
    """Where tensors live and how they are multiplied."""

    kind: str                                         # "cuda", "mps" or "cpu"
    name: str
    memory_gib: float
    dtype: torch.dtype                                # of matrix products under autocast; float32: no autocast
    note: str = ""                                    # what a reader should know of it

    @property
    def torch_device(self) -> torch.device:
        """For `.to(...)`."""
        return torch.device(self.kind)

    @property
    def scaler(self) -> bool:
        """Whether gradients need loss scaling: fp16's smallest numbers are too large for them."""
        return self.dtype == torch.float16

    @property
    def compiles(self) -> bool:
        """Whether `torch.compile` can write programs for it: Triton knows the GPU, and a C compiler is there to bind them."""
        return (self.kind == "cuda" and torch.cuda.get_device_capability() >= (7, 0) and any(map(shutil.which, ("cc", "gcc")))
                and importlib.util.find_spec("triton") is not None)

    def autocast(self) -> torch.autocast:
        """A context in which convolutions run in `dtype`; it does nothing for float32."""
        return torch.autocast(self.kind, self.dtype, enabled=self.dtype != torch.float32)


def describe_device() -> Device:
    """The best device that the installed torch can really use; a GPU that it cannot use is named in a warning."""
    if torch.cuda.is_available():
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        if supported(major, minor, torch.cuda.get_arch_list()):
            return Device("cuda", name, torch.cuda.get_device_properties(0).total_memory / GIB, *_gpu_precision(major, minor))
        warnings.warn(f"this torch ({torch.__version__}) was not built for the {name} (sm_{major}{minor}), only for "
                      f"{', '.join(torch.cuda.get_arch_list())}: the CPU is used. Install a torch built for it, or "
                      "choose another accelerator.", stacklevel=2)
    elif torch.backends.mps.is_available():
        return Device("mps", platform.processor() or "Apple GPU", psutil.virtual_memory().total / GIB, torch.float32,
                      "memory is shared with the CPU")
    return _cpu()


def supported(major: int, minor: int, built_for: list[str]) -> bool:
    """Whether binaries for these architectures ("sm_75", "compute_90") run on a GPU of capability major.minor."""
    for architecture in built_for:
        kind, number = architecture.split("_")
        target = (int(number.rstrip("af")[:-1]), int(number.rstrip("af")[-1]))
        if kind == "sm" and target[0] == major and target[1] <= minor:      # binaries run on later minors
            return True
        if kind == "compute" and target <= (major, minor):                  # PTX is compiled for later GPUs
            return True
    return False


def _gpu_precision(major: int, minor: int) -> tuple[torch.dtype, str]:
    if major >= 8:
        return torch.bfloat16, "bf16 on tensor cores, no loss scaling needed"
    if major == 7:
        return torch.float16, "fp16 on tensor cores with loss scaling (bf16 would be emulated, and slow)"
    return torch.float16, f"fp16 saves memory, but capability {major}.{minor} has no tensor cores: expect fp32's speed"


def _cpu() -> Device:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        name, flags = fields.get("model name", name), set(fields.get("flags", "").split())
    memory = psutil.virtual_memory().total / GIB
    if flags & {"amx_bf16", "avx512_bf16"}:
        return Device("cpu", name, memory, torch.bfloat16, "bf16 in hardware")
    return Device("cpu", name, memory, torch.float32, "no bf16 in hardware: fp32, about half as fast")


def where_am_i() -> str:
    """"kaggle", "colab" or "local"."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ else "local"


def work_folder(work: str = "") -> Path:
    """The folder of the series, absolute: `work`, or where none is given the usual place on this machine."""
    above = Path(__file__).resolve().parents[2]
    home = above if (above / "notebooks").is_dir() else Path.cwd()        # installed alone, it is among other packages
    usual = {"kaggle": Path("/kaggle/working"), "colab": Path("/content/brats")}
    return Path(work).expanduser().absolute() if work else usual.get(where_am_i(), home / "runs" / "quick")


def keep_memory() -> None:
    """Tell glibc to keep the memory of freed tensors, here and in processes started from here; no other C library is told.

    It gives it back to the system after every large tensor otherwise, and pays a page fault a page to have it again: more
    than a third of a training step on a CPU (benchmarks/README.md).
    """
    if platform.libc_ver()[0] == "glibc":
        for variable, option in MALLOC.items():
            os.environ.setdefault(variable, str(MOST))
            ctypes.CDLL(None).mallopt(option, MOST)


def gpu_load() -> dict[str, float]:
    """GiB of GPU memory that tensors have taken at most and, where the driver says it, percent busy; {} without a GPU."""
    if not torch.cuda.is_available():
        return {}
    found = {"gpu/memory_gib": torch.cuda.max_memory_allocated() / GIB}
    try:
        found["gpu/percent_busy"] = float(torch.cuda.utilization())
    except (ModuleNotFoundError, RuntimeError):       # nvidia-ml-py is not installed, or the driver hides the figure
        pass
    return found


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. The module's own functions do not need it: each takes its seed or generator."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
