"""The export, read by the tools that it is for."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import small_volumes, write_case

from brats_helpers.data.cases import find_cases
from brats_helpers.data.formats import write_nnunet
from brats_helpers.data.splits import make_splits


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    for i in range(5):
        write_case(tmp_path / "raw", f"P{i}", *small_volumes(i))
    cases = find_cases(tmp_path / "raw")
    return write_nnunet(
        cases,
        make_splits([c.name for c in cases], [1.0] * 5, 0),
        tmp_path / "nnunet",
        synthetic=True,
    )


def test_nnunets_own_integrity_check_passes(exported: Path, monkeypatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(exported.parent))
    verify = pytest.importorskip("nnunetv2.experiment_planning.verify_dataset_integrity")
    verify.verify_dataset_integrity(str(exported), num_processes=1)


def test_monai_reads_the_list(exported: Path) -> None:
    from monai.data import load_decathlon_datalist

    rows = [*load_decathlon_datalist(str(exported / "dataset_msd.json"), True, "training"),
            *load_decathlon_datalist(str(exported / "dataset_msd.json"), True, "validation")]
    assert len(rows) == 5 and all(
        Path(p).is_file() for row in rows for p in [*row["image"], row["label"]]
    )


def test_a_smaller_cohort_leaves_no_label_of_the_larger(exported: Path, tmp_path: Path) -> None:
    cases = find_cases(tmp_path / "raw")[:3]
    write_nnunet(
        cases,
        make_splits([c.name for c in cases], [1.0] * 3, 0),
        tmp_path / "nnunet",
        synthetic=True,
    )
    assert len(list((exported / "labelsTr").glob("*.nii.gz"))) == 3


def test_labels_are_consecutive_and_the_images_are_not_copied(exported: Path) -> None:
    description = json.loads((exported / "dataset.json").read_text())
    row = description["dataset"]["P0"]
    assert set(np.unique(nib.load(row["label"]).dataobj)) == {0, 1, 2, 3}
    assert not any(p.name.endswith("flair.nii.gz") for p in exported.rglob("*"))
    assert (
        description["labels"]["whole tumor"] == [1, 2, 3]
        and "synthetic" in description["reference"]
    )
