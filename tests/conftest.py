"""Share small synthetic patients of odd shape, and real ones if a folder of them is set."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from tqdm import tqdm

from brats_helpers.basics.config import Config
from brats_helpers.basics.device import Device
from brats_helpers.data.cases import Case, find_cases
from brats_helpers.data.preprocessing import prepare
from brats_helpers.data.storage import save_prepared
from brats_helpers.evaluation.checkpoints import read_checkpoint
from brats_helpers.phantoms.anatomy import brats_affine
from brats_helpers.phantoms.kinds import make_patient

# then each process has one core, and so has what it starts
SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ
torch.set_num_threads(1 if SIDE_BY_SIDE else 2)
if SIDE_BY_SIDE:
    os.environ["OMP_NUM_THREADS"] = os.environ["LOKY_MAX_CPU_COUNT"] = "1"
NOTEBOOKS = ("test_series", "test_sweep", "test_kaggle", "test_editions")
CPU = Device("cpu", "test", 1.0, torch.float32)
# the parameters of a series that is run whole, but small
SMOKE = {"patients": 6, "test_patients": 2, "spacing_mm": 4.0, "epochs": 1, "steps": 3, "patch": 32,
         "overfit_steps": 15, "full_size": False}
CONFIG = Config(preset="quick", filters=(4, 6, 8), patch=16, batch=2, epochs=3, steps=4, warmup=2,
                learning_rate=2e-3,
                ema=0.9, spacing_mm=8.0)
# its own is shared with forked children, and one that is killed may take it along
tqdm.set_lock(threading.RLock())


def small_volumes(seed: int = 0, shape: tuple[int, int, int] = (21, 26, 17)
                  ) -> tuple[np.ndarray, np.ndarray]:
    """Images (4, X, Y, Z) int16 with an empty margin, and labels 0, 1, 2, 4 (X, Y, Z) uint8."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    images = rng.integers(50, 900, (4, *shape)).astype(np.int16) * (radius < 0.85)
    away = np.sqrt(((grid - 0.15) ** 2).sum(0))
    return images, np.select([away < 0.15, away < 0.3, away < 0.5], [1, 4, 2], 0).astype(np.uint8)


def write_case(folder: Path, name: str, images: np.ndarray, labels: np.ndarray | None,
               affine: np.ndarray | None = None,
               endings: tuple[str, ...] = ("_flair", "_t1", "_t1ce", "_t2", "_seg"),
               suffix: str = ".nii.gz") -> Path:
    """Write a patient's files, as BraTS names them or with other endings."""
    folder = Path(folder) / name
    folder.mkdir(parents=True, exist_ok=True)
    affine = brats_affine(1.0) if affine is None else affine
    for ending, array in zip(endings, [*images, labels], strict=True):
        if array is not None:
            nib.save(nib.Nifti1Image(array, affine), folder / f"{name}{ending}{suffix}")
    return folder


@pytest.hookimpl(wrapper=True)  # before xdist's own hook, which reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]
                                  ) -> Iterator[None]:
    """Begin with whole notebooks, which take longest, and keep the tests of a file together.

    They share fixtures; those of test_series do not, and go wherever a process is free.
    """
    items.sort(key=lambda item: item.path.stem not in NOTEBOOKS)
    for item in items:
        if config.pluginmanager.hasplugin("xdist") and item.path.stem != "test_series":
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    yield


@pytest.fixture
def faults(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """Count the faults that a test injects, by kind, for the summary."""
    return lambda kind, number=1: record_property("faults", (kind, number))


def pytest_terminal_summary(terminalreporter: object) -> None:
    """Say how many faults were injected, and how many were survived.

    A test may fail before it counts its faults, so the line says how many tests failed.
    """
    injected: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for key, value in getattr(report, "user_properties", []):
                if key != "faults":
                    continue
                kind, number = value
                injected[kind] += number
                survived[kind] += number * (outcome == "passed")
    if injected:
        failed = sum(len(terminalreporter.getreports(kind)) for kind in ("failed", "error"))
        missed = f"; {failed} test(s) FAILED, whose faults may not be among them" if failed else ""
        each = ", ".join(f"{kind} {survived[kind]}/{injected[kind]}" for kind in sorted(injected))
        terminalreporter.write_line(f"faults survived: {survived.total()} of {injected.total()} "
                                    f"injected ({each}){missed}")


@pytest.fixture
def small_case(tmp_path: Path) -> Case:
    """One patient of odd shape on disk."""
    return find_cases(write_case(tmp_path / "cohort", "P1", *small_volumes()))[0]


@pytest.fixture(scope="session")
def real_cases() -> list[Case]:
    """The real patients in the folder BRATS_REAL_DATA."""
    folder = os.environ.get("BRATS_REAL_DATA")
    if not folder:
        pytest.skip("BRATS_REAL_DATA is not set: no real scans to test on")
    return find_cases(Path(folder))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> list[Path]:
    """Four prepared phantoms of 8 mm."""
    folder = tmp_path_factory.mktemp("prepared")
    paths = []
    for index in range(4):
        paths.append(folder / f"P{index}.b2nd")
        save_prepared(prepare(make_patient(0, index, 8.0), 8.0), paths[-1])
    return paths


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint, by kind and name."""
    content = read_checkpoint(path, CPU)
    return {f"{kind} {k}": v for kind in ("model", "average") for k, v in content[kind].items()}


def pack(folder: Path, path: Path) -> Path:
    """All of a folder in an archive, of the kind that the name says."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
            for file in files:
                archive.add(file, str(file.relative_to(folder)))
    return path


def blobs(seed: int) -> np.ndarray:
    """Make labels 0 to 3 of an odd shape: smooth nested blobs, some at the border, some tiny."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal((23, 31, 19)), rng.uniform(1, 3))
    cuts = np.quantile(field, np.sort(rng.uniform(0.6, 0.9995, 3)))
    return np.searchsorted(cuts, field).astype(np.uint8)


def namespaces_allowed() -> bool:
    """Tell whether this user may make a mount namespace, as a rehearsal of Kaggle needs."""
    try:
        return not subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    except FileNotFoundError:  # not Linux
        return False


def build_site(out: Path) -> Path:
    """Build the site into a folder with mkdocs, strictly; skip where mkdocs is not installed."""
    root = Path(__file__).parents[1]
    pythons = [root / ".venv-site" / "bin" / "python", Path(sys.executable)]
    ready = [python for python in pythons if python.is_file() and not subprocess.run(
        [python, "-c", "import material, mkdocs_jupyter"], capture_output=True).returncode]
    if not ready:
        pytest.skip("mkdocs is not installed: make site does that")
    done = subprocess.run([ready[0], "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
                          cwd=root, capture_output=True, text=True,
                          env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    return out
