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
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from tqdm import tqdm

from .config import Config
from .errors import BratsError, short_messages
from .files import atomic_path

PACKAGES = ("torch", "monai", "nibabel", "numpy", "scipy", "blosc2", "nilearn", "matplotlib", "ipywidgets",
            "papermill", "jupytext")
GIB = 2**30
KAGGLE_INPUT = Path("/kaggle/input")
MALLOC, MOST = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}, 2**31 - 1     # bytes; numbers from malloc.h
# What one notebook leaves for the next, at the top of the work folder.
HANDED_ON = {"config.json", "cohort.json", "patients.json", "splits.json", "architecture.json", "data", "cases",
             "preprocessed", "checkpoints", "pretraining"}
# Measured with this module on ten BraTS 2021 patients (1 mm) and on phantoms (2 mm), MB a patient.
RAW_MB = {1.0: 9.9, 2.0: 1.4}                         # four modalities and the reference, .nii.gz
PREPARED_MB = {1.0: 8.77, 2.0: 1.2}                    # one .b2nd file
OTHER_MB = 1850.0                                     # the full network's last two checkpoints and its best, in fp32


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
    above = Path(__file__).resolve().parent.parent
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


def start(work: str = "") -> tuple[Path, Device]:
    """What every notebook begins with: the look of figures and errors, the work folder and the device, said in two lines.

    On Kaggle, besides, what the notebook before this one left among the inputs is taken over into the work folder.
    """
    from .plots import use_style
    use_style()
    short_messages()
    keep_memory()
    folder = work_folder(work)
    if where_am_i() == "kaggle":
        install_wheels(KAGGLE_INPUT)
        take_over(KAGGLE_INPUT, folder)
    device = describe_device()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, on {where_am_i()}: {device.name}, "
          f"{device.memory_gib:.0f} GiB, {str(device.dtype).removeprefix('torch.')} ({device.note})")
    print(f"work folder: {folder}")
    return folder, device


def install_wheels(inputs: Path) -> list[str]:
    """Install from the helper dataset what this machine lacks, without the internet; returns the packages' names."""
    wheels = {p.name.split("-")[0]: p for p in sorted(Path(inputs).glob("*/wheels/*.whl"))}
    missing = [name for name in wheels if importlib.util.find_spec(name) is None]
    if missing:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        done = subprocess.run([*command, *(str(wheels[name]) for name in missing)], capture_output=True, text=True)
        if done.returncode:
            raise BratsError(f"{', '.join(missing)} could not be installed from the helper dataset:\n{done.stderr.strip()}")
        importlib.invalidate_caches()
    return missing


def take_over(inputs: Path, work: Path) -> None:
    """Copy what earlier notebooks left among Kaggle's inputs, which cannot be written to, into the work folder.

    A file that is there already is left alone. Where several inputs have a file, the one of the input with the newest
    checkpoint counts: so a training that a session's end has cut off goes on when its output is added as an input.
    """
    def age(folder: Path) -> float:
        last = folder / "checkpoints" / "last.pt"
        return last.stat().st_mtime if last.is_file() else 0.0
    left = sorted((p.parent for p in Path(inputs).glob("*/cohort.json")), key=age, reverse=True)
    wanted = {}
    for folder in left:
        for path in folder.rglob("*"):
            if path.is_file() and path.relative_to(folder).parts[0] in HANDED_ON:
                wanted.setdefault(path.relative_to(folder), path)
    missing = {target: path for target, path in wanted.items() if not (work / target).exists()}
    for target, path in tqdm(missing.items(), desc="take over", unit="file", disable=len(missing) < 10):
        with atomic_path(work / target) as temporary:
            shutil.copyfile(path, temporary)


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


def package_versions() -> dict[str, str]:
    """Name and version of the packages that the series rests on; "missing" where one is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. The module's own functions do not need it: each takes its seed or generator."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def disk_budget(config: Config, patients: int, work: Path, unpack: bool = True, phantoms: int = 0) -> dict:
    """GB that a series needs and has: {"raw_gb", "prepared_gb", "other_gb", "needed_gb", "free_gb", "fits"}.

    unpack: whether the scans are written, too; those of a folder are read where they are. phantoms: that are made to learn
    from first (`pretraining`), with a training of their own.
    """
    nearest = min(RAW_MB, key=lambda mm: abs(mm - config.spacing_mm))
    raw = (patients * unpack + phantoms) * RAW_MB[nearest] / 1000
    prepared = (patients + phantoms) * PREPARED_MB[nearest] / 1000
    other = (OTHER_MB / 1000 if config.preset != "quick" else 0.1) * (2 if phantoms else 1)
    existing = next(p for p in (Path(work).absolute(), *Path(work).absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    needed = raw + prepared + other
    return {"raw_gb": raw, "prepared_gb": prepared, "other_gb": other, "needed_gb": needed, "free_gb": free,
            "fits": needed < free}
