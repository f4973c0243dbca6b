"""Describe this machine: device, precision, memory, work folder.

Precision follows the hardware: bf16 if matrix units support it (Ampere and later, CPUs with AMX or
AVX512-BF16), fp16 with loss scaling on older GPUs (Micikevicius et al. 2018, arXiv:1710.03740).
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from .constants import PRECISION, PRECISIONS
from .errors import BratsError

GIB = 2**30
# Environment variable -> the option's number in malloc.h, and its value in bytes.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1), "MALLOC_MMAP_THRESHOLD_": (-3, 2**28)}


@dataclass(frozen=True)
class Device:
    """The processor that holds the tensors, and the precision of its matrix products."""

    kind: str  # "cuda", "mps" or "cpu"
    name: str
    memory_gib: float
    dtype: torch.dtype  # of matrix products under autocast; float32: no autocast
    note: str = ""  # shown to the reader

    @property
    def torch_device(self) -> torch.device:
        """Return the device for `.to(...)`."""
        return torch.device(self.kind)

    @property
    def precision(self) -> str:
        """Return the name of `dtype`, as in PRECISIONS."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def loss_scaling(self) -> bool:
        """Tell whether gradients need loss scaling, because small ones underflow in fp16."""
        return self.dtype == torch.float16

    @property
    def compiles(self) -> bool:
        """Tell whether `torch.compile` works: it needs Triton, a GPU for it, and a C compiler."""
        return (self.kind == "cuda" and torch.cuda.get_device_capability() >= (7, 0)
                and any(map(shutil.which, ("cc", "gcc")))
                and importlib.util.find_spec("triton") is not None)

    def autocast(self) -> torch.autocast:
        """Return a context in which convolutions run in `dtype`; it does nothing for float32."""
        return torch.autocast(self.kind, self.dtype, enabled=self.dtype != torch.float32)


def describe_device() -> Device:
    """Find the best device that the installed torch can use; warn of a GPU that it cannot.

    The environment variable BRATS_PRECISION overrides the precision. BratsError for a wrong value.
    """
    device, wanted = _best_device(), os.environ.get(PRECISION)
    if not wanted:
        return device
    if wanted not in PRECISIONS:
        raise BratsError(f"{PRECISION}={wanted} is not known; there are: {', '.join(PRECISIONS)}.")
    return replace(device, dtype=getattr(torch, wanted), note=f"set by {PRECISION}")


def _best_device() -> Device:
    if torch.cuda.is_available():
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        if supported(major, minor, torch.cuda.get_arch_list()):
            memory = torch.cuda.get_device_properties(0).total_memory / GIB
            return Device("cuda", name, memory, *_gpu_precision(major, minor))
        warnings.warn(
            f"this torch ({torch.__version__}) was not built for the {name} (sm_{major}{minor}), "
            f"only for {', '.join(torch.cuda.get_arch_list())}: the CPU is used. Install a torch "
            "built for it, or choose another accelerator.", stacklevel=2)
    elif torch.backends.mps.is_available():
        return Device("mps", platform.processor() or "Apple GPU",
                      psutil.virtual_memory().total / GIB, torch.float32,
                      "memory is shared with the CPU")
    return _cpu()


def supported(major: int, minor: int, built_for: list[str]) -> bool:
    """Tell whether binaries for these architectures ("sm_75", ...) run on this GPU capability."""
    for architecture in built_for:
        kind, number = architecture.split("_")
        target = (int(number.rstrip("af")[:-1]), int(number.rstrip("af")[-1]))
        if kind == "sm" and target[0] == major and target[1] <= minor:  # runs on later minors
            return True
        if kind == "compute" and target <= (major, minor):  # PTX is compiled for later GPUs
            return True
    return False


def _gpu_precision(major: int, minor: int) -> tuple[torch.dtype, str]:
    if major >= 8:
        return torch.bfloat16, "bf16 on tensor cores, no loss scaling needed"
    if major == 7:
        return torch.float16, ("fp16 on tensor cores with loss scaling (bf16 would be emulated, "
                               "and slow)")
    return torch.float16, (f"fp16 saves memory, but capability {major}.{minor} has no tensor "
                           "cores: expect fp32's speed")


def _cpu() -> Device:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if info.is_file():
        first = info.read_text().split("\n\n")[0].splitlines()
        pairs = (line.partition(":")[::2] for line in first)
        fields = {key.strip(): value.strip() for key, value in pairs}
        name, flags = fields.get("model name", name), set(fields.get("flags", "").split())
    memory = psutil.virtual_memory().total / GIB
    if flags & {"amx_bf16", "avx512_bf16"}:
        return Device("cpu", name, memory, torch.bfloat16, "bf16 in hardware")
    return Device("cpu", name, memory, torch.float32,
                  "32-bit numbers; this machine lacks the faster 16-bit arithmetic")


def where_am_i() -> str:
    """Return "kaggle", "colab" or "local"."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ else "local"


def work_folder(work: str = "") -> Path:
    """Return the absolute work folder: `work`, or this machine's usual place if empty."""
    above = Path(__file__).resolve().parents[2]
    # If the package is installed alone, it lies among other packages.
    home = above if (above / "notebooks").is_dir() else Path.cwd()
    usual = {"kaggle": Path("/kaggle/working"), "colab": Path("/content/brats")}
    if work:
        return Path(work).expanduser().absolute()
    return usual.get(where_am_i(), home / "runs" / "quick")


def keep_memory() -> None:
    """Tell glibc to keep the memory of freed tensors, here and in processes started from here.

    Otherwise it returns the memory after every large tensor, and the page faults that fetch it
    again take over a third of a training step on a CPU (benchmarks/README.md). The memory of
    tensors of 256 MiB and more, as in the full network, still goes back: kept, it would leave
    large gaps, and page faults cost such tensors little.
    """
    if platform.libc_ver()[0] == "glibc":
        for variable, (option, size) in MALLOC.items():
            os.environ.setdefault(variable, str(size))
            ctypes.CDLL(None).mallopt(option, size)


def gpu_load() -> dict[str, float]:
    """Return the peak GiB of GPU memory and, if the driver tells, its load in %; {} without one."""
    if not torch.cuda.is_available():
        return {}
    found = {"gpu/memory_gib": torch.cuda.max_memory_allocated() / GIB}
    try:
        found["gpu/percent_busy"] = float(torch.cuda.utilization())
    except (ModuleNotFoundError, RuntimeError):  # no nvidia-ml-py, or the driver hides it
        pass
    return found
