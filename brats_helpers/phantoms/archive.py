"""Archives of phantoms, in exactly the layout of the BraTS 2021 archive."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from ..basics.constants import DISK_ET, ED, MODALITIES, NCR
from ..basics.files import atomic_path, write_json
from ..basics.jobs import worker_count
from .kinds import VERSIONS, make_patient

TRAINING, TEST = "BraTS2021_Training_Data.tar", "BraTS2021_Test_Data.tar"
TEST_INDEX = 90_000  # the first test patient's number, so that no name occurs twice


def build_cohort(folder: Path, seed: int, patients: int, test_patients: int, spacing_mm: float,
                 jobs: int = -1, kind: str = "phantom") -> tuple[Path, Path | None]:
    """Write the training and the test archive of one of KINDS into `folder`.

    Archives of the same settings are reused. The same settings give the same bytes. Returns both
    paths; the second is None without test patients.
    """
    folder = Path(folder)
    paths = []
    for name, first, count in ((TRAINING, 0, patients), (TEST, TEST_INDEX, test_patients)):
        settings = {"seed": seed, "patients": count, "spacing_mm": spacing_mm,
                    "version": VERSIONS[kind]}
        settings |= {"kind": kind} if kind != "phantom" else {}
        if count:
            _build_archive(folder / name, settings, range(first, first + count), jobs)
        paths.append(folder / name if count else None)
    return paths[0], paths[1]


def _build_archive(path: Path, settings: dict, indices: Sequence[int], jobs: int) -> None:
    note = path.with_suffix(".json")  # the settings of the archive that lies beside it
    if path.is_file() and note.is_file() and json.loads(note.read_text()) == settings:
        return
    note.unlink(missing_ok=True)
    kind = settings.get("kind", "phantom")
    packed = Parallel(n_jobs=worker_count(jobs, len(indices)), return_as="generator")(
        delayed(_pack)(settings["seed"], index, settings["spacing_mm"], kind) for index in indices)
    progress = tqdm(packed, total=len(indices), desc=f"phantoms for {path.name}", unit="patient")
    with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
        for members in progress:
            for name, content in members:
                info = tarfile.TarInfo(name)  # its default time, owner and mode never change
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    write_json(note, settings)


def _pack(seed: int, index: int, spacing_mm: float, kind: str) -> list[tuple[str, bytes]]:
    """Make a patient's five files, as name and content, named and labeled as in BraTS."""
    patient = make_patient(seed, index, spacing_mm, kind)
    on_disk = np.array([0, NCR, ED, DISK_ET], np.uint8)[patient.reference]
    arrays = [*zip(MODALITIES, patient.images, strict=True), ("seg", on_disk)]
    return [(f"{patient.name}/{patient.name}_{part}.nii.gz", _nifti_bytes(array, patient.affine))
            for part, array in arrays]


def _nifti_bytes(array: np.ndarray, affine: np.ndarray) -> bytes:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    return gzip.compress(image.to_bytes(), compresslevel=3, mtime=0)
