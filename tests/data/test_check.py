"""The command check, and what it says of scans that cannot be what their names say."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import pack, write_case

from brats_helpers.__main__ import main
from brats_helpers.basics.errors import BratsError
from brats_helpers.data.cases import Patient, check_case, find_cases
from brats_helpers.data.check import (
    FIELDS,
    check_outputs,
    check_path,
    problems_text,
    unused_at,
    warnings_of,
)
from brats_helpers.data.plausibility import oddities, of_cohort
from brats_helpers.phantoms.kinds import KINDS
from brats_helpers.phantoms.kinds import make_patient

PATIENT = make_patient(0, 0, 8.0)
DISK = np.array([0, 1, 2, 4], np.uint8)[PATIENT.reference]


def changed(edit: Callable[[np.ndarray], np.ndarray | None]) -> Patient:
    """The phantom with other images."""
    images = PATIENT.images.copy()
    result = edit(images)
    return Patient("P", images if result is None else result, PATIENT.reference, PATIENT.affine)


def fill(images: np.ndarray, modality: int, value: int) -> None:
    """Give one modality another background."""
    images[modality][images[modality] == 0] = value


def unstripped(images: np.ndarray) -> None:
    """A skull of 5 around T1, in air that is 0."""
    x, y, z = np.indices(images.shape[1:]) - np.reshape(
        np.array(images.shape[1:]) / 2, (3, 1, 1, 1)
    )
    images[1][(images[1] == 0) & ((x / 14.5) ** 2 + (y / 14.5) ** 2 + (z / 9.4) ** 2 < 1)] = 5


ODD = {
    "swapped": (lambda im: im[[3, 1, 2, 0]], "FLAIR and T2 look swapped"),
    "twice": (lambda im: im[[0, 1, 1, 3]], "t1 and t1ce are the same image"),
    "scaled": (
        lambda im: np.stack([im[0], im[1], im[1] * 2, im[3]]),
        "t1 and t1ce are nearly the same image",
    ),
    "minus one": (
        lambda im: fill(im, 1, -1),
        r"t1's background is not 0 \(-1\): was it skull-stripped",
    ),
    "z-scored": (
        lambda im: ((im - im[im > 0].mean()) / im[im > 0].std()).astype(np.float32),
        "flair's background is not 0",
    ),
    "skull": (unstripped, "was t1 skull-stripped"),
    "constant": (
        lambda im: np.stack([im[0], (im[1] != 0).astype(np.int16), im[2], im[3]]),
        "t1 has one value, 1",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_implausible_scans_are_named_by_cause_and_modality(kind: str) -> None:
    edit, message = ODD[kind]
    odd = oddities(changed(edit))
    said = odd["problems"] + odd["warnings"]
    assert any(re.search(message, text) for text in said), said
    assert all(text.startswith("patient P: ") for text in said)


@pytest.mark.parametrize("look", KINDS)
def test_good_phantoms_bring_no_alarm_and_swapped_ones_do(look: str) -> None:
    for index in range(3):
        patient = make_patient(1, index, 8.0, look)
        odd = oddities(patient)
        assert odd["warnings"] == odd["problems"] == []
        patient.images = patient.images[[3, 1, 2, 0]]
        assert "look swapped" in oddities(patient)["warnings"][0]


def test_good_real_scans_bring_no_alarm(real_cases) -> None:
    rows = [check_case(case) for case in real_cases]
    assert [row["problems"] + row["warnings"] for row in rows] == [[]] * len(rows)


@pytest.mark.parametrize(
    ("scale", "unit", "message"),
    [
        (1e-3, "meter", "in meters"),
        (1e3, "micron", "in micrometers"),
        (1, "meter", "in meters"),
        (1e-3, "mm", "0.008 x 0.008 x 0.008 mm"),
        (1e3, "mm", "plausible"),
        (0.02, "unknown", "plausible"),
        (2.5, "mm", "liters|skull-stripped"),
        (0.1, "mm", "the brain has"),
    ],
)
def test_voxels_no_scanner_makes_are_refused_or_named_before_anything_is_allocated(
    tmp_path: Path, scale: float, unit: str, message: str
) -> None:
    affine = PATIENT.affine.copy()
    affine[:3] *= scale
    folder = write_case(tmp_path, "P", PATIENT.images, DISK, affine)
    for path in folder.iterdir():
        image = nib.load(path)
        image = nib.Nifti1Image(np.asarray(image.dataobj), affine)
        image.header.set_xyzt_units(unit)
        nib.save(image, path)
    row = check_case(find_cases(tmp_path)[0])
    assert any(
        word in text for text in row["problems"] + row["warnings"] for word in message.split("|")
    )


def test_one_grid_is_a_tenth_of_a_voxel_and_more_is_told_in_mm(tmp_path: Path) -> None:
    folder = write_case(tmp_path, "P", PATIENT.images, DISK, PATIENT.affine)
    for shift, problems in ((0.7, 0), (1.5, 1)):
        moved = PATIENT.affine.copy()
        moved[0, 3] += shift
        nib.save(nib.Nifti1Image(PATIENT.images[3], moved), folder / "P_t2.nii.gz")
        row = check_case(find_cases(tmp_path)[0])
        assert len(row["problems"]) == problems
    assert (
        "by up to 1.5 mm" in row["problems"][0]
        and "0.8 mm, a tenth of a voxel" in row["problems"][0]
    )


def test_labels_that_occur_in_no_patient_are_named() -> None:
    rows = [{"problems": [], "volumes_ml": {"NCR": 3.0, "ED": 1.0, "ET": 0.0}}] * 2
    assert len(of_cohort(rows)) == 1 and "label 3 (ET) occurs in no patient" in of_cohort(rows)[0]
    assert (
        "all 2 references are empty"
        in of_cohort([{"problems": [], "volumes_ml": {"NCR": 0, "ED": 0, "ET": 0}}] * 2)[0]
    )
    assert of_cohort([{"problems": [], "volumes_ml": None}]) == []


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    for index in range(2):
        made = make_patient(0, index, 8.0)
        labels = np.array([0, 1, 2, 4], np.uint8)[made.reference]
        write_case(tmp_path / "in", f"P{index}", made.images, labels, made.affine)
    return tmp_path / "in"


@pytest.mark.parametrize("name", ["", "a.tar", "a.zip", "a.tar.gz"])
def test_check_of_a_sound_folder_or_archive_is_0_and_writes_nothing_in_it(
    cohort: Path, tmp_path: Path, name: str, capsys
) -> None:
    place = pack(cohort, tmp_path / name) if name else cohort
    before = sorted(tmp_path.rglob("*"))
    assert main(["check", str(place), "--jobs", "1"]) == 0
    assert "2 patient(s)" in capsys.readouterr().out and sorted(tmp_path.rglob("*")) == before


def test_check_prints_a_table_and_writes_it_as_csv_and_html(
    cohort: Path, tmp_path: Path, capsys
) -> None:
    (cohort / "P1" / "P1_t2.nii.gz").write_bytes(b"<html>please sign in</html>")
    (cohort / "P0" / "P0_<b>.nii.gz").write_bytes(b"x")
    files = ["--csv", str(tmp_path / "c.csv"), "--html", str(tmp_path / "c.html")]
    assert main(["check", str(cohort), "--jobs", "1", *files]) == 1
    out = capsys.readouterr().out
    assert (
        "P0       ok" in out
        and "P1       problem" in out
        and "P1_t2.nii.gz" in out
        and "web page" in out
    )
    with open(tmp_path / "c.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == FIELDS and [row["status"] for row in rows] == [
        "ok",
        "problem",
        "not used",
    ]
    page = (tmp_path / "c.html").read_text()
    assert "P0_&lt;b&gt;.nii.gz" in page and "<b>.nii" not in page
    assert "P1_t2.nii.gz" in problems_text(check_path(cohort, 1).rows)


def test_check_says_why_there_is_nothing_to_check(tmp_path: Path, capsys) -> None:
    for path, message in ((tmp_path, "no patient in"), (tmp_path / "none", "is not there")):
        assert main(["check", str(path)]) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "P").mkdir()
    assert main(["check", str(tmp_path), "--csv", str(tmp_path / "P")]) == 1
    assert "is a folder" in capsys.readouterr().err


def test_twins_are_named_in_the_report(cohort: Path, tmp_path: Path) -> None:
    made = make_patient(0, 0, 8.0)
    write_case(cohort, "P2", made.images, np.zeros_like(DISK), made.affine)
    assert any("P0, P2 have the same scans" in text for text in check_path(cohort, 1).warnings)


def test_a_run_names_what_it_does_not_use_and_what_is_odd(cohort: Path, tmp_path: Path) -> None:
    (cohort / "more.7z").write_bytes(b"x")
    assert "more.7z: a 7-Zip archive" in unused_at(cohort)
    rows = {"training": check_path(cohort, 1).rows, "test": []}
    rows["training"][0]["warnings"].append("patient P0: odd")
    (tmp_path / "patients.json").write_text(json.dumps({"rows": rows}))
    assert "patient P0: odd" in warnings_of(tmp_path) and warnings_of(cohort) == []


def test_a_reference_of_other_scans_is_named(tmp_path: Path) -> None:
    patient = make_patient(0, 0, 8.0)
    assert not any("outside" in text for text in oddities(patient)["warnings"])
    elsewhere = np.roll(patient.reference, patient.reference.shape[0] // 2, 0)
    elsewhere[:4] = 1
    warnings = oddities(replace(patient, reference=elsewhere))["warnings"]
    assert any("% of its reference lies outside the brain" in text for text in warnings)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_affine_without_numbers_is_not_called_another_grid(
        tmp_path: Path, value: float) -> None:
    folder = write_case(tmp_path, "P1", np.ones((4, 5, 6, 7), np.int16), None, suffix=".nii")
    for path in folder.iterdir():
        content = bytearray(path.read_bytes())
        content[280:284] = np.float32(value).tobytes()  # srow_x
        path.write_bytes(content)
    problems = check_case(find_cases(folder)[0])["problems"]
    assert len(problems) == 1 and "affine holds values that are NaN or infinite" in problems[0]


def test_a_table_never_replaces_a_scan(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, message in (("a.nii.gz", "name of a scan"), ("file/a.csv", "is not a folder")):
        with pytest.raises(BratsError, match=message):
            check_outputs(tmp_path / name)


def test_a_zip_without_scans_is_refused_before_a_run(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "best.pt", "w") as archive:
        archive.writestr("archive/data.pkl", "x")
    with pytest.raises(BratsError, match="zip file without a NIfTI scan"):
        unused_at(tmp_path / "best.pt")
