"""What the first cell of every notebook does: style, work folder, device, and what Kaggle needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from ..basics.config import Config
from ..basics.device import Device, describe_device, keep_memory, where_am_i, work_folder
from ..basics.errors import BratsError, short_messages
from ..basics.files import atomic_path

PACKAGES = ("torch", "monai", "nibabel", "numpy", "scipy", "blosc2", "nilearn", "matplotlib", "ipywidgets",
            "papermill", "jupytext")
KAGGLE_INPUT = Path("/kaggle/input")
# What one notebook leaves for the next, at the top of the work folder.
HANDED_ON = {"config.json", "cohort.json", "patients.json", "splits.json", "architecture.json", "data", "cases",
             "preprocessed", "checkpoints", "pretraining"}
# Measured with this module on ten BraTS 2021 patients (1 mm) and on phantoms (2 mm), MB a patient.
RAW_MB = {1.0: 9.9, 2.0: 1.4}                         # four modalities and the reference, .nii.gz
PREPARED_MB = {1.0: 8.77, 2.0: 1.2}                    # one .b2nd file
OTHER_MB = 1850.0                                     # the full network's last two checkpoints and its best, in fp32


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


def package_versions() -> dict[str, str]:
    """Name and version of the packages that the series rests on; "missing" where one is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


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
