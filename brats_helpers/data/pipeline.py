"""From a cohort of cases to prepared files, in parallel, keeping what is up to date."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from ..basics.constants import MODALITIES
from ..basics.errors import BratsError
from ..basics.files import remove_leftovers
from ..basics.jobs import worker_count, worker_death_errors
from .cases import Case, file_state, read_case
from .preprocessing import brain_mask, prepare, restore
from .storage import FORMAT, Meta, load_prepared, save_prepared


def content_hash(case: Case, spacing_mm: float) -> str:
    """Hash a patient's files and the target grid to 16 characters; a .gz has its own checksum."""
    digest = hashlib.sha256(f"{FORMAT} {spacing_mm}".encode())
    if case.channels or case.labels:  # a list gives the files their meaning
        digest.update(f"{case.channels} {case.labels}".encode())
    for path in (*case.images, case.reference):
        if path is not None:
            size, checksum = file_state(case, path)
            digest.update(f"{path.name} {size} {checksum}".encode())
    return digest.hexdigest()[:16]


def preprocess_case(case: Case, folder: Path, spacing_mm: float) -> Meta:
    """Prepare a patient into `folder`/<name>.b2nd, unless an up-to-date file is there."""
    path, wanted = Path(folder) / f"{case.name}.b2nd", content_hash(case, spacing_mm)
    with contextlib.suppress(BratsError):  # a missing, damaged or older file is replaced
        before = load_prepared(path)
        if before.meta.content_hash == wanted:
            return before.meta
    prepared = prepare(read_case(case), spacing_mm, wanted)
    save_prepared(prepared, path)
    return prepared.meta


def preprocess_cohort(cases: Sequence[Case], folder: Path, spacing_mm: float,
                      jobs: int = -1) -> list[Meta]:
    """Prepare all patients in parallel, with progress; up-to-date files are kept."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    metas = Parallel(n_jobs=worker_count(jobs, len(cases)), return_as="generator")(
        delayed(preprocess_case)(case, folder, spacing_mm) for case in cases)
    try:
        return list(tqdm(metas, total=len(cases), desc="preprocess", unit="patient"))
    except worker_death_errors() as error:
        raise BratsError("a process of the preprocessing was killed, most often because memory ran "
                         f"out. What is finished is kept in {folder}: run it again, with fewer "
                         "processes (jobs).") from error


def prepared_files(cases: Sequence[Case], folder: Path, spacing_mm: float) -> dict[str, Path]:
    """Return each patient's prepared file by name, after reading all of them once.

    BratsError if one is missing, damaged or made from another scan or grid.
    """
    files = {case.name: Path(folder) / f"{case.name}.b2nd" for case in cases}
    metas = Parallel(n_jobs=-1, prefer="threads", return_as="generator")(
        delayed(lambda path: load_prepared(path).meta)(path) for path in files.values())
    checked = tqdm(zip(cases, metas, strict=True), total=len(cases), desc="compare with the scans",
                   unit="patient")
    stale = [c.name for c, meta in checked if meta.content_hash != content_hash(c, spacing_mm)]
    if stale:
        names = ", ".join([*stale[:3], *(["..."] if len(stale) > 3 else [])])
        raise BratsError(f"{len(stale)} prepared file(s) in {folder} are from other scans or "
                         f"another voxel size ({names}): run notebook 03 again.")
    return files


def verify_prepared(case: Case, path: Path) -> list[str]:
    """Compare voxels with the scan's, or the brain's outline if downsampled; returns problems."""
    prepared, patient = load_prepared(path), read_case(case)
    back = restore(prepared.volume, prepared.meta)
    if max(prepared.meta.downsampling) > 1:  # only the geometry can be compared
        brain, scan = brain_mask(back[:4]), brain_mask(patient.images)
        dice = 2 * np.sum(brain & scan) / (brain.sum() + scan.sum())
        if dice > 0.95:
            return []
        return [f"the downsampled brain overlaps the scan's by {dice:.2f} (Dice)"]
    problems = [f"{modality}: {np.count_nonzero(image != scan)} voxels differ"
                for modality, image, scan in zip(MODALITIES, back, patient.images, strict=False)
                if not np.array_equal(image, scan)]
    if patient.reference is not None and not np.array_equal(back[4], patient.reference):
        problems.append("the reference differs")
    return problems
