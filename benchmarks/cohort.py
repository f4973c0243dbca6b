"""Provides patients of BraTS's size: phantoms at 1 mm, or the real ones of BRATS_REAL_DATA."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

from brats_helpers.basics.config import Config
from brats_helpers.basics.files import atomic_path, write_json
from brats_helpers.data.archive import extract, find_patients
from brats_helpers.data.cases import Case, check_cohort, find_cases
from brats_helpers.data.cohort import write_patients, write_source
from brats_helpers.data.formats import write_nnunet
from brats_helpers.data.pipeline import preprocess_cohort
from brats_helpers.data.splits import make_splits
from brats_helpers.phantoms.archive import build_cohort

PATIENTS = 4


def bench_cases(folder: Path) -> tuple[list[Case], Path | None, bool]:
    """Return patients at 1 mm, 240 x 240 x 155, their archive, and whether they are synthetic.

    The archive is None for real patients.
    """
    if real := os.environ.get("BRATS_REAL_DATA"):
        return [case for case in find_cases(Path(real)) if case.reference][:PATIENTS], None, False
    archive, _ = build_cohort(folder / "data", 0, PATIENTS, 0, 1.0, jobs=2)
    extract(archive, folder / "cases")
    return find_cases(folder / "cases"), archive, True


def fill_work_folder(work: Path, config: Config, source: str, place: Path, jobs: int,
                     synthetic: bool = False) -> None:
    """Write what notebooks 01 to 03 write, for the labeled patients of a folder or plain tar."""
    cases = find_patients(place).cases
    rows = check_cohort(cases, jobs)
    volumes = {row["name"]: sum(row["volumes_ml"].values()) for row in rows}
    splits = make_splits(list(volumes), list(volumes.values()), config.seed, config.validation,
                         config.folds)
    write_source(work, config, source, place, None, synthetic)
    write_patients(work, {"training": place, "test": None}, {"training": rows, "test": []}, splits)
    preprocess_cohort(cases, work / "preprocessed", config.spacing_mm, jobs)


def sixteen(archive: Path, target: Path) -> Path:
    """Write an archive of 16 patients: those of `archive` under four names each."""
    if target.is_file():
        return target
    with (atomic_path(target) as temporary, tarfile.open(archive) as source,
          tarfile.open(temporary, "w") as tar):
        for member in source:
            content, name = source.extractfile(member).read(), member.name.split("/")[0]
            for copy in range(16 // PATIENTS):
                info = tarfile.TarInfo(member.name.replace(name, f"{name}{copy}"))
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return target


def nnunet_dataset(cases: list[Case], folder: Path, synthetic: bool) -> Path:
    """Write the cases as nnU-Net's raw dataset and return its folder.

    Sets nnU-Net's environment variables to folders in `folder`.
    """
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(folder / name)
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = [case.name for case in cases]
    splits = {"training": names[1:], "validation": names[:1], "folds": [names[:1], names[1:]]}
    root = write_nnunet(cases, splits, folder / "nnUNet_raw", synthetic)
    prepared = folder / "nnUNet_preprocessed" / root.name
    prepared.mkdir(parents=True, exist_ok=True)
    write_json(prepared / "dataset.json", json.loads((root / "dataset.json").read_text()))
    return root
