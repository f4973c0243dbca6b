"""Set up a notebook in its first cell: missing packages, style, work folder, device."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from IPython import get_ipython
from IPython.core.pylabtools import select_figure_formats
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from tqdm import tqdm

from ..basics.config import Config
from ..basics.device import Device, describe_device, keep_memory, where_am_i, work_folder
from ..basics.errors import BratsError, short_messages
from ..basics.files import atomic_path

PACKAGES = ("torch", "monai", "nibabel", "numpy", "scipy", "blosc2", "matplotlib",
            "ipywidgets", "papermill", "jupytext")
REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
KAGGLE_INPUT = Path("/kaggle/input")
# What one notebook leaves for the next, at the top of the work folder.
HANDED_ON = {"config.json", "cohort.json", "patients.json", "splits.json", "architecture.json",
             "data", "cases", "preprocessed", "checkpoints"}
# MB per patient by spacing in mm, measured on ten BraTS 2021 patients (1 mm) or phantoms (2 mm).
RAW_MB = {1.0: 9.9, 2.0: 1.4}  # four modalities and the reference, .nii.gz
PREPARED_MB = {1.0: 8.77, 2.0: 1.2}  # one .b2nd file
OTHER_MB = 1850.0  # the full network's last two checkpoints and its best, in fp32


def start(work: str = "") -> tuple[Path, Device]:
    """Set up a notebook, print two lines about it, and return its work folder and device.

    On Kaggle and Colab this also installs missing packages; on Kaggle it copies what the previous
    notebook left.
    """
    short_messages()
    keep_memory()
    folder, place = work_folder(work), where_am_i()
    if place == "kaggle":
        install_wheels(KAGGLE_INPUT)
        take_over(KAGGLE_INPUT, folder)
    elif place == "colab":
        install_missing(REQUIREMENTS)
    show_figures()
    from .plots import use_style
    use_style()
    device = describe_device()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, on {place}: "
          f"{device.name}, {device.memory_gib:.0f} GiB, {device.precision} ({device.note})")
    print(f"work folder: {folder}")
    return folder, device


def show_figures() -> None:
    """Show a cell's figure as a picture, even if MPLBACKEND names a backend other than inline."""
    shell = get_ipython()
    if shell and "inline" not in matplotlib.get_backend():
        select_figure_formats(shell, {"png"}, bbox_inches="tight")


def install_wheels(inputs: Path) -> list[str]:
    """Install missing packages from the helper dataset, offline; returns their names."""
    wheels = {p.name.split("-")[0]: str(p) for p in sorted(Path(inputs).glob("*/wheels/*.whl"))}
    missing = [name for name in wheels if importlib.util.find_spec(name) is None]
    _install(missing, ["--no-index", "--no-deps", *map(wheels.get, missing)])
    return missing


def install_missing(requirements: Path) -> list[str]:
    """Install the packages of a requirements file that are missing; returns its lines for them.

    Constraints keep every installed package at its version, because a running kernel breaks if
    its own packages change.
    """
    installed = installed_versions()
    lines = [line for line in requirements.read_text("utf-8").splitlines() if line[:1].isalpha()]
    missing = [line for line in lines if canonicalize_name(Requirement(line).name) not in installed]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{n}=={v}\n" for n, v in installed.items()), "utf-8")
        _install(missing, ["-c", str(constraints), *missing])
    return missing


def installed_versions() -> dict[str, Version]:
    """Return the versions of all installed packages by normalized name."""
    found: dict[str, Version] = {}
    for one in importlib.metadata.distributions():
        if one.name:  # else the rest of a package that was removed
            with contextlib.suppress(InvalidVersion, TypeError):  # as Debian's "1.1build1"
                found.setdefault(canonicalize_name(one.name), Version(one.version))
    return found


def _install(names: Sequence[str], arguments: Sequence[str]) -> None:
    """Run pip install, if there is anything to install; BratsError with pip's words if it fails."""
    if not names:
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise BratsError(f"{', '.join(names)} could not be installed:\n{done.stderr.strip()}")
    importlib.invalidate_caches()


def take_over(inputs: Path, work: Path) -> None:
    """Copy what earlier notebooks left in Kaggle's read-only inputs into the work folder.

    Files that exist are left alone. If several inputs have a file, the input with the newest
    checkpoint wins, so that an interrupted training continues from its output.
    """
    def age(folder: Path) -> float:
        last = folder / "checkpoints" / "last.pt"
        return last.stat().st_mtime if last.is_file() else 0.0

    sources: dict[Path, Path] = {}
    for folder in sorted((p.parent for p in Path(inputs).glob("*/cohort.json")), key=age):
        for path in folder.rglob("*"):
            relative = path.relative_to(folder)
            if path.is_file() and relative.parts[0] in HANDED_ON:
                sources[work / relative] = path  # the newest comes last
    missing = {target: path for target, path in sources.items() if not target.exists()}
    for target, path in tqdm(missing.items(), "copy", unit="file", disable=len(missing) < 10):
        with atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)


def package_versions() -> dict[str, str]:
    """Return the versions of the main packages, "missing" for one that is not installed."""
    installed = installed_versions()
    return {name: str(installed.get(name, "missing")) for name in PACKAGES}


def disk_budget(config: Config, patients: int, work: Path,
                unpack: bool = True) -> dict[str, float | bool]:
    """Return raw_gb, prepared_gb, other_gb, needed_gb, free_gb, and whether the series fits.

    `unpack` tells whether the scans are written, too; those in a folder are read in place.
    """
    spacing = min(RAW_MB, key=lambda mm: abs(mm - config.spacing_mm))
    raw = patients * unpack * RAW_MB[spacing] / 1000
    prepared = patients * PREPARED_MB[spacing] / 1000
    other = OTHER_MB / 1000 if config.preset != "quick" else 0.1
    folder = Path(work).absolute()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    needed, free = raw + prepared + other, shutil.disk_usage(existing).free / 1e9
    return {"raw_gb": raw, "prepared_gb": prepared, "other_gb": other, "needed_gb": needed,
            "free_gb": free, "fits": needed < free}
