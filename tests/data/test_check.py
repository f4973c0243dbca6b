"""The command check, and what it says of scans that cannot be what their names say."""

from __future__ import annotations

import csv
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import pack, write_case
from joblib.externals.loky.process_executor import TerminatedWorkerError
from scipy import ndimage

from brats_helpers.__main__ import main
from brats_helpers.basics.errors import BratsError
from brats_helpers.data import cases
from brats_helpers.data.cases import (
    Patient,
    check_case,
    find_cases,
    find_twins,
    incomplete,
    read_case,
)
from brats_helpers.data.check import (
    FIELDS,
    check_outputs,
    check_path,
    problems_text,
    report_text,
    unused_at,
    warnings_of,
)
from brats_helpers.data.fingerprint import identity
from brats_helpers.data.plausibility import cohort_warnings, oddities
from brats_helpers.phantoms.kinds import KINDS, make_patient

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
    x, y, z = np.indices(images.shape[1:]) - np.reshape(np.array(images.shape[1:]) / 2,
                                                        (3, 1, 1, 1))
    images[1][(images[1] == 0) & ((x / 14.5) ** 2 + (y / 14.5) ** 2 + (z / 9.4) ** 2 < 1)] = 5


def cut(images: np.ndarray, slices: int) -> np.ndarray:
    """Keep T1 above this slice alone."""
    images[1, ..., :slices] = 0
    return images


ODD = {
    "swapped": (lambda im: im[[3, 1, 2, 0]], "FLAIR and T2 look swapped"),
    "twice": (lambda im: im[[0, 1, 1, 3]], "t1 and t1ce are the same image"),
    "scaled": (lambda im: np.stack([im[0], im[1], im[1] * 2, im[3]]),
               "t1 and t1ce are nearly the same image"),
    "minus one": (lambda im: fill(im, 1, -1),
                  r"t1's background is not 0 \(-1\): was it skull-stripped"),
    "z-scored": (lambda im: ((im - im[im > 0].mean()) / im[im > 0].std()).astype(np.float32),
                 "flair's background is not 0"),
    "skull": (unstripped, "was t1 skull-stripped"),
    "mirrored": (lambda im: np.stack([im[0], im[1], im[2, ::-1], im[3]]),
                 "^patient P: t1ce seems mirrored from left to right: .* Dice of 1.000 after"),
    "upside down": (lambda im: np.stack([im[0], im[1], im[2], im[3, ..., ::-1]]),
                    "^patient P: t2 seems mirrored upside down"),
    "one voxel": (lambda im: cut(im, 17), "t1 covers 0% .* too little of it"),
    "a third": (lambda im: cut(im, 12), "t1 covers .* too little of it"),
    "a part": (lambda im: cut(im, 8), "t1 covers 7.% of .*: was it scanned or exported in part"),
    "a part of three": (lambda im: cut(np.stack([im[0] * 0, *im[1:]]), 12), "t1 covers .* too"),
    "constant": (lambda im: np.stack([im[0], (im[1] != 0).astype(np.int16), im[2], im[3]]),
                 "t1 has one value, 1"),
}


@pytest.mark.parametrize("kind", ODD)
def test_implausible_scans_are_named_by_cause_and_modality(kind: str) -> None:
    edit, message = ODD[kind]
    odd = oddities(changed(edit))
    said = odd["problems"] + odd["warnings"]
    assert any(re.search(message, text) for text in said), said
    assert all(text.startswith("patient P: ") for text in said)


EXCHANGED = {"T1 and T2 look swapped": [0, 3, 2, 1], "T1CE and T2 look swapped": [0, 1, 3, 2],
             "T1 and T1CE may be swapped": [0, 2, 1, 3]}


@pytest.mark.parametrize("said", EXCHANGED)
def test_exchanged_contrasts_are_named(said: str) -> None:
    enhancing = PATIENT.images.copy()  # in vessels
    enhancing[2][np.random.default_rng(0).random(enhancing[2].shape) < 0.02] *= 2
    for images in (enhancing, enhancing * np.int16(2)):
        good = oddities(replace(PATIENT, images=images))
        assert not any("swapped" in said for said in good["warnings"] + good["notes"])
        odd = oddities(replace(PATIENT, images=images[EXCHANGED[said]]))
        assert any(said in one for one in odd["warnings"] + odd["notes"]), odd


def test_a_tumor_that_is_brighter_in_t1_tells_that_t1_and_t1ce_are_swapped() -> None:
    for exchanged, count in (([0, 1, 2, 3], 0), ([0, 2, 1, 3], 1)):
        odd = oddities(replace(PATIENT, images=PATIENT.images[exchanged]))["warnings"]
        said = [text for text in odd if "T1 and T1CE may be swapped: the enhancing tumor" in text]
        assert len(said) == len(odd) == count


def test_negative_scans_are_named_as_inverted_or_normalized() -> None:
    for edit, kind, said in ((lambda im: -im, "warnings", "negative in 100% .* inverted"),
                             (lambda im: np.where(im, im - np.int16(np.median(im[im > 0])), 0),
                              "notes", "normalized already")):
        odd = oddities(changed(lambda im, edit=edit: np.stack([im[0], edit(im[1]), *im[2:]])))
        assert not any("swapped" in text for text in odd["warnings"])
        assert any(re.search(f"t1 is .*{said}", text) for text in odd[kind]), odd
    row = oddities(Patient("P", np.full((4, 9, 9, 9), 7, np.int16), None, np.eye(4)))
    assert "flair has one value, 7" in row["problems"][0]


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
    [(1e-3, "meter", "in meters"), (1e3, "micron", "in micrometers"), (1, "meter", "in meters"),
     (1e-3, "mm", "0.008 x 0.008 x 0.008 mm"), (1e3, "mm", "plausible"),
     (0.02, "unknown", "plausible"), (2.5, "mm", "liters|skull-stripped"),
     (0.1, "mm", "the brain has")],
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
    for shift, problems in ((0.7, 0), (0.8, 0), (-0.80004, 0), (0.802, 1), (1.5, 1)):
        moved = PATIENT.affine.copy()
        moved[0, 3] += shift
        nib.save(nib.Nifti1Image(PATIENT.images[3], moved), folder / "P_t2.nii.gz")
        row = check_case(find_cases(tmp_path)[0])
        assert len(row["problems"]) == problems
        assert shift != 0.802 or "by up to 0.802 mm, and 0.8 mm" in row["problems"][0]
    assert (
        "by up to 1.5 mm" in row["problems"][0]
        and "0.8 mm, a tenth of a voxel" in row["problems"][0]
    )


def test_labels_that_occur_in_no_patient_are_named() -> None:
    rows = [{"problems": [], "volumes_ml": {"NCR": 3.0, "ED": 1.0, "ET": 0.0}}] * 2
    (said,) = cohort_warnings(rows)
    assert "ET occurs in no reference" in said
    (said,) = cohort_warnings([{"problems": [], "volumes_ml": {"NCR": 0, "ED": 0, "ET": 0}}] * 2)
    assert "all 2 references are empty" in said
    assert cohort_warnings([{"problems": [], "volumes_ml": None}]) == []


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


def test_check_prints_a_table_and_writes_it_as_csv_and_html(cohort: Path, tmp_path: Path,
                                                            capsys) -> None:
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
    assert tuple(rows[0]) == FIELDS and [row["status"] for row in rows] == ["ok", "problem",
                                                                            "not used"]
    page = (tmp_path / "c.html").read_text()
    assert "P0_&lt;b&gt;.nii.gz" in page and "<b>.nii" not in page
    assert "P1_t2.nii.gz" in problems_text(check_path(cohort, 1).rows)


class Dying:
    """Stands for joblib's Parallel where the process of P1 is killed."""

    def __init__(self, **_: object) -> None:
        pass

    def __call__(self, tasks: Iterable[tuple]) -> Iterator[dict]:
        for function, arguments, _ in tasks:
            if arguments[0].name == "P1":
                raise TerminatedWorkerError
            yield function(*arguments)


def test_a_killed_process_is_the_problem_of_one_patient(cohort: Path, monkeypatch, capsys,
                                                        faults) -> None:
    made = make_patient(0, 2, 8.0)
    write_case(cohort, "P2", made.images, None, made.affine)
    monkeypatch.setattr(cases, "Parallel", Dying)
    assert main(["check", str(cohort), "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert "P0       ok" in said and "P2       ok" in said and "1 with a problem" in said
    assert "P1       problem" in said and "its process was killed" in said
    faults("killed workers")


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


def eight_bits(images: np.ndarray) -> np.ndarray:
    """Each modality scaled to 0..255 and rounded down."""
    return (images / images.max((1, 2, 3), keepdims=True) * 255).astype(np.uint8)


COPIES = {"doubled": lambda im: im * 2, "of another type": lambda im: im.astype(np.float32),
          "of 8 bits": eight_bits, "flipped": lambda im: im[:, ::-1],
          "upside down": lambda im: im[..., ::-1]}


@pytest.mark.parametrize("kind", COPIES)
def test_a_changed_copy_of_a_patient_is_a_twin(cohort: Path, kind: str) -> None:
    made = make_patient(0, 0, 8.0)
    write_case(cohort, "copy", COPIES[kind](made.images), None, made.affine)
    write_case(cohort, "other", make_patient(0, 2, 8.0).images, None, made.affine)
    said = [text for text in check_path(cohort, 1).warnings if "the same scans" in text]
    assert said == ["P0, copy have the same scans: keep one of them"]


def test_different_patients_are_no_twins(real_cases) -> None:
    made = [make_patient(seed, n, 8.0, look) for look in KINDS for seed, n
            in ((1, 0), (1, 1), (2, 0))]
    rows = [{"name": str(n), "identity": identity(one.images)} for n, one in enumerate(made)]
    assert find_twins(rows + [check_case(case) for case in real_cases]) == []


def test_each_of_thirty_patients_has_one_twin_its_copy_of_8_bits() -> None:
    made = [make_patient(1, n, 8.0, look).images for look in KINDS for n in range(15)]
    rows = [{"name": f"{n}{kind}", "identity": identity(change(images))}
            for kind, change in (("", lambda im: im), (" again", eight_bits))
            for n, images in enumerate(made)]
    assert find_twins(rows) == [[str(n), f"{n} again"] for n in range(30)]


def test_namesakes_are_reported_and_the_others_checked(cohort: Path, capsys) -> None:
    """BraTS 2018 has a folder for each grade."""
    for index, grade in enumerate(("HGG", "LGG")):
        made = make_patient(0, index + 3, 8.0)
        write_case(cohort / grade, "X", made.images, None, made.affine)
    assert main(["check", str(cohort), "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert "4 patient(s)" in out and "2 ok, 2 with a problem" in out
    assert re.search("HGG_X +problem.*\n    two patients are called X: .*HGG/X.* and .*LGG/X", out)


def test_a_control_character_in_a_name_breaks_no_table(cohort: Path, tmp_path: Path,
                                                       capsys) -> None:
    for old, new in (("P1", "P\n1"), ("P0/P0_seg.nii.gz", "P0/P0_seg\udcff.nii.gz")):
        (cohort / old).rename(cohort / new)
    (cohort / "Icon\r").touch()  # of macOS
    files = ["--csv", str(tmp_path / "c.csv"), "--html", str(tmp_path / "c.html")]
    assert main(["check", str(cohort), "--jobs", "1", *files]) == 1
    out = capsys.readouterr().out
    assert "P\\n1 has a name with a line break" in out and "P0_seg\\udcff" in out
    assert "1 not used" in out and "2 patient(s)" in out
    with open(tmp_path / "c.csv", newline="", encoding="utf-8") as file:
        assert not any("\n" in cell for row in csv.reader(file) for cell in row)
    assert "P\\n1" in (tmp_path / "c.html").read_text(encoding="utf-8")
    packed = pack(cohort, tmp_path / "a.tar")
    assert "P\\n1" in report_text(check_path(packed, 1))


@pytest.mark.parametrize(("shape", "row"), [((1,), "notes"), ((3,), "problems")])
def test_a_fourth_dimension_is_read_if_it_is_1(tmp_path: Path, shape: tuple, row: str) -> None:
    folder = write_case(tmp_path, "P", PATIENT.images, DISK, PATIENT.affine)
    for kind, array in (("t1", PATIENT.images[1]), ("seg", DISK)):
        array = np.repeat(array[..., None], shape[0], axis=-1)
        nib.save(nib.Nifti1Image(array, PATIENT.affine), folder / f"P_{kind}.nii.gz")
    found = check_case(find_cases(tmp_path)[0])
    said = {"notes": "P_t1.nii.gz has the shape .*, 1\\) and is read as",
            "problems": "P_t1.nii.gz: its shape is .*, 3\\), and 3 .* 3 volumes or colors"}
    assert any(re.search(said[row], text) for text in found[row]), found
    if row == "notes":
        patient = read_case(find_cases(tmp_path)[0])
        assert np.array_equal(patient.images, PATIENT.images)
        assert np.array_equal(patient.reference, PATIENT.reference)


def test_scans_without_an_ending_and_links_to_devices_are_named(cohort: Path) -> None:
    (cohort / "P0" / "P0_t1.nii.gz").rename(cohort / "P0" / "P0_t1")
    (cohort / "P1" / "odd.nii.gz").symlink_to("/dev/null")
    said = report_text(check_path(cohort, 1))
    assert "P0_t1 is there: is it t1?" in said and "rename it to P0_t1.nii" in said
    assert "odd.nii.gz: neither a file nor a folder" in said


def test_slices_without_an_ending_are_named_as_dicom_and_checksums_are_not_named(
        cohort: Path) -> None:
    (cohort / "P2").mkdir()
    for name in ("IM0001", "IM0002", "1.2.840.113619"):
        (cohort / "P2" / name).write_bytes(bytes(128) + b"DICM" + bytes(9))
    (cohort / "P0" / "P0_t1.nii.gz.md5").write_text("d41d8cd9")
    (cohort / "LICENSE").write_text("MIT")
    said = report_text(check_path(cohort, 1))
    assert "1.2.840.113619: in the format DICOM, but NIfTI is needed (and 2 more like it)" in said
    assert "1 not used" in said


@pytest.mark.parametrize(("value", "said"), [(1e300, r"values reach \d\.\d+e\+30\d.*scl_slope"),
                                             (1e9, "")])
def test_intensities_that_would_overflow_are_refused(tmp_path: Path, value: float, said: str,
                                                     recwarn) -> None:
    folder = write_case(tmp_path, "P", PATIENT.images, None, PATIENT.affine)
    huge = nib.Nifti1Image(PATIENT.images[1] * value, PATIENT.affine)
    nib.save(huge, folder / "P_t1.nii.gz")
    problems = check_case(find_cases(tmp_path)[0])["problems"]
    assert re.search(said, problems[0]) if said else problems == []
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


LISTS = {"a number that is no digit": ({"channel_names": {"\u00b2": "T2"}}, "are numbered"),
         "a label that is no digit": ({"labels": {"edema": "\u00b2"}}, "not say what its labels"),
         "a path that is too long": ({"training": [{"image": "x" * 5000 + ".nii.gz"}]}, "too long"),
         "a line break in a path": ({"training": [{"image": "x\ny.nii.gz"}]}, "is not a path"),
         "a label that is not there": (
             {"training": [{"image": [f"imagesTr/a_000{n}.nii.gz" for n in range(4)],
                            "label": "gone.nii.gz"}]}, "1 file.s. that are not there, .*gone")}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_another_shape_is_named(tmp_path: Path, kind: str) -> None:
    write_case(tmp_path / "P", "P", PATIENT.images, DISK, PATIENT.affine)
    folder = write_case(tmp_path, "imagesTr", PATIENT.images, DISK, PATIENT.affine,
                        ("_0000", "_0001", "_0002", "_0003", "_seg"))
    (tmp_path / "labelsTr").mkdir()
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace("imagesTr", "a")))
    (folder / "a_seg.nii.gz").rename(tmp_path / "labelsTr" / "a.nii.gz")
    content, said = LISTS[kind]
    channels = {"0": "FLAIR", "1": "T1", "2": "T1CE", "3": "T2"}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": channels} | content))
    assert re.search(said, report_text(check_path(tmp_path, 1)))


def test_a_folder_named_like_a_file_is_used_if_it_holds_one_scan(cohort: Path) -> None:
    for index in (0, 1):
        path = cohort / f"P{index}" / f"P{index}_t1.nii.gz"
        path.rename(path.with_name("moved"))
        path.mkdir()
        path.with_name("moved").rename(path / "any.nii.gz")
    assert check_path(cohort, 1).sound
    shutil.copy(cohort / "P0" / "P0_t1.nii.gz" / "any.nii.gz",
                cohort / "P0" / "P0_t1.nii.gz" / "b.nii.gz")
    (cohort / "P1" / "P1_t1.nii.gz" / "any.nii.gz").rename(
        cohort / "P1" / "P1_t1.nii.gz" / "any.txt")
    said = report_text(check_path(cohort, 1))
    assert re.search("P0 has 2 files for t1: .*any.nii.gz, .*b.nii.gz; keep one", said)
    assert "P1_t1.nii.gz is there: a folder with the name of a file, and no scan in it" in said


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


@pytest.mark.parametrize("missing", [False, True])
def test_a_header_that_does_not_tell_the_axes_is_warned_of_with_what_is_assumed(
        tmp_path: Path, missing: bool) -> None:
    folder = write_case(tmp_path, "P1", PATIENT.images, None, PATIENT.affine, suffix=".nii")
    case = find_cases(folder)[0]
    assert not any("does not say" in text for text in check_case(case)["warnings"])
    for path in folder.iterdir():
        content = bytearray(path.read_bytes())
        content[252:256] = bytes(4)  # qform_code and sform_code
        path.write_bytes(content)
    if missing:
        (folder / "P1_t2.nii").unlink()
        case = incomplete(find_cases(folder)[0])
    warnings = check_case(case)["warnings"]
    assert any("P1_t1ce.nii" in text and "does not say where left, right and front" in text
               and "LAS is assumed" in text for text in warnings), warnings


def test_two_headers_that_contradict_each_other_are_warned_of(tmp_path: Path) -> None:
    folder = write_case(tmp_path, "P1", PATIENT.images, None, PATIENT.affine, suffix=".nii")
    for turned, warned in ((np.eye(4), False), (np.diag([-1, 1, 1, 1]), True)):
        for path in folder.iterdir():
            image = nib.load(path)
            voxels = np.asarray(image.dataobj).copy()
            image = nib.Nifti1Image(voxels, image.get_sform())
            image.set_sform(image.affine, 1)
            image.set_qform(turned @ image.affine, 1)
            nib.save(image, path)
        said = check_case(find_cases(folder)[0])["warnings"]
        assert any("qform and sform of P1_flair.nii" in text for text in said) == warned


def test_a_reference_that_fills_the_brain_is_named() -> None:
    brain = (PATIENT.images != 0).any(0)
    warnings = oddities(replace(PATIENT, reference=brain.astype(np.uint8) * 2))["warnings"]
    assert warnings == ["patient " + PATIENT.name + ": its reference marks 100% of the brain as "
                        "tumor, and at most 60% are plausible: is it a mask of the brain?"]


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
    with pytest.raises(BratsError, match="/dev/full is a device"):
        check_outputs(Path("/dev/full"))
    with pytest.raises(BratsError, match="was named for two tables"):
        check_outputs(tmp_path / "a", tmp_path / "a")
    with pytest.raises(BratsError, match="cannot be written .*name another place"):
        check_outputs(Path("/proc/none/a.csv"))
    check_outputs(tmp_path / "new" / "a.csv", None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_compressed_archive_is_named_as_the_place_of_its_files(cohort: Path, tmp_path: Path,
                                                                 capsys) -> None:
    (cohort / "P1" / "P1_t2.nii.gz").write_bytes(b"damaged")
    (cohort / "P0" / "P0_odd.nii.gz").write_bytes(b"x")
    archive = pack(cohort, tmp_path / "a.tar.gz")
    said = report_text(check_path(archive, 1))
    assert f"{archive}/P1/P1_t2.nii.gz: cannot be opened" in said and "brats-check" not in said
    assert f"{archive}/P0/P0_odd.nii.gz: " in said
    assert main(["check", str(cohort), "--jobs", "0"]) == 1
    assert "jobs=0 cannot work" in capsys.readouterr().err


def test_a_zip_without_scans_is_refused_before_a_run(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "best.pt", "w") as archive:
        archive.writestr("archive/data.pkl", "x")
    with pytest.raises(BratsError, match="zip file without a NIfTI scan"):
        unused_at(tmp_path / "best.pt")
    with pytest.raises(BratsError, match="zip file without a NIfTI scan"):
        check_path(tmp_path / "best.pt")


def _elsewhere(images: np.ndarray) -> np.ndarray:
    return np.stack([images[0], np.roll(images[1], 3, axis=1), *images[2:]])


def _larger(images: np.ndarray) -> np.ndarray:
    wide = ndimage.grey_dilation(images[1], (3, 1, 1))
    return np.stack([images[0], np.where(images[1] > 0, images[1], wide), *images[2:]])


def _holes(images: np.ndarray) -> np.ndarray:
    images = images.copy()
    images[..., 6:9] = 0
    return images


@pytest.mark.parametrize(("edit", "said"), [
    (_elsewhere, "t1's brain misses .* of where the brain of the others is"),
    (_larger, "t1's brain is .* larger than that of the others"),
    (_holes, "3 slices inside the brain are 0 in all contrasts"),
    (lambda images: images[[1, 0, 2, 3]], "FLAIR and T1 may be swapped")])
def test_a_misplaced_brain_lost_slices_and_flair_for_t1_are_named(edit: Callable,
                                                                  said: str) -> None:
    assert not any(re.search(said, text) for text in oddities(PATIENT)["warnings"])
    warnings = oddities(replace(PATIENT, images=edit(PATIENT.images)))["warnings"]
    assert any(re.search(said, text) for text in warnings), warnings


def test_contrasts_of_which_two_were_skull_stripped_are_not_called_empty() -> None:
    images = np.pad(PATIENT.images, ((0, 0), *((8, 8),) * 3))
    images[:2] = np.maximum(images[:2], ndimage.grey_dilation(images[:2], (1, 13, 13, 13)) // 4)
    found = oddities(replace(PATIENT, images=images, reference=None))
    assert not found["problems"] and any("were all skull-stripped" in t for t in found["warnings"])


def test_half_a_brain_is_asked_about() -> None:
    half = PATIENT.images.copy()
    half[..., :half.shape[-1] // 2] = 0
    for images, asked in ((PATIENT.images, False), (half, True)):
        warnings = oddities(replace(PATIENT, images=images, reference=None))["warnings"]
        assert any("is the scan whole" in text for text in warnings) == asked
