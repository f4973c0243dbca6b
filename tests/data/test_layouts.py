"""Public layouts are read as they are, and what is on disk but not used is named."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import pack, small_volumes, write_case

from brats_helpers.basics.constants import MODALITIES
from brats_helpers.basics.errors import BratsError
from brats_helpers.data.archive import (
    extract,
    find_patients,
    is_archive,
    readable_in_place,
)
from brats_helpers.data.cases import find_cases, incomplete, read_case
from brats_helpers.data.datalists import labels_of
from brats_helpers.data.finding import find
from brats_helpers.data.labels import NO_CLASS, refusal
from brats_helpers.data.pipeline import content_hash
from brats_helpers.data.records import Case
from brats_helpers.data.sources import resolve_source
from brats_helpers.phantoms.anatomy import brats_affine

IMAGES, LABELS = small_volumes()
INSIDE = np.where(LABELS == 4, 3, LABELS)  # as the project has them
EDEMA_FIRST = np.select([LABELS == 2, LABELS == 1, LABELS == 4], [1, 2, 3], 0).astype(np.uint8)


def put(path: Path, array: np.ndarray = LABELS) -> Path:
    """Write one volume."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, brats_affine(1.0)), path)
    return path


def put_all(root: Path, names: str) -> None:
    """Write FLAIR, T1, T1CE, T2 and the reference under these names."""
    for name, array in zip(names.split(), [*IMAGES, LABELS], strict=False):
        put(root / name, array)


def nnunet(root: Path) -> None:
    for channel, image in enumerate(IMAGES[[1, 2, 3, 0]]):
        put(root / "imagesTr" / f"B_7_{channel:04d}.nii.gz", image)
    put(root / "labelsTr" / "B_7.nii.gz", EDEMA_FIRST)
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"},
                "numTraining": 1,
                "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3],
                           "enhancing tumor": [3]},
            }
        )
    )


def monai(root: Path) -> None:
    put_all(root, "a.nii.gz b.nii.gz c.nii.gz d.nii.gz e.nii.gz")
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "t2", "1": "t1", "2": "flair", "3": "t1gd"},
                "labels": {"0": "background", "1": "necrotic core", "2": "edema",
                           "4": "enhancing tumor"},
                "training": [
                    {"fold": 0, "image": [f"{n}.nii.gz" for n in "dbac"], "label": "e.nii.gz"}
                ],
            }
        )
    )


UPENN = "images_structural/U-1_11/U-1_11_"
KAGGLE = "B_5/B_5_{0}.nii/00000057_{1}.nii"
LAYOUTS: dict[str, tuple[Callable[[Path], None] | str, str]] = {
    "UPENN": (
        f"{UPENN}FLAIR.nii.gz {UPENN}T1.nii.gz {UPENN}T1GD.nii.gz {UPENN}T2.nii.gz "
        "images_segm/U-1_11_segm.nii.gz",
        "U-1_11",
    ),
    "UCSF": (
        "P_nifti/P_FLAIR.nii.gz P_nifti/P_T1.nii.gz P_nifti/P_T1c.nii.gz P_nifti/P_T2.nii.gz "
        "P_nifti/P_tumor_segmentation.nii.gz",
        "P",
    ),
    "TCGA": (
        "T/T_1996_flair.nii.gz T/T_1996_t1.nii.gz T/T_1996_t1Gd.nii.gz T/T_1996_t2.nii.gz "
        "T/T_1996_GlistrBoost_ManuallyCorrected.nii.gz",
        "T_1996",
    ),
    "Toolkit": ("P_fla.nii.gz P_t1.nii.gz P_t1c.nii.gz P_t2.nii.gz P_seg.nii.gz", "P"),
    "355": (
        "B_355/B_355_flair.nii B_355/B_355_t1.nii B_355/B_355_t1ce.nii B_355/B_355_t2.nii "
        "B_355/W39_1998.09.19_Segm.nii",
        "B_355",
    ),
    "BIDS": (
        "sub-1/ses-2/anat/sub-1_ses-2_FLAIR.nii.gz sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz "
        "sub-1/ses-2/anat/sub-1_ses-2_ce-gadolinium_T1w.nii.gz "
        "sub-1/ses-2/anat/sub-1_ses-2_T2w.nii.gz "
        "derivatives/m/sub-1/ses-2/anat/sub-1_ses-2_space-orig_dseg.nii.gz",
        "sub-1_ses-2",
    ),
    "folder per file": (
        " ".join(
            KAGGLE.format(*pair)
            for pair in (("flair", "brain_flair"), ("t1", "brain_t1"), ("t1ce", "brain_t1ce"),
                         ("t2", "brain_t2"), ("seg", "final_seg"))
        ),
        "B_5",
    ),
    "folder per modality": ("FLAIR/p.nii.gz T1/p.nii.gz T1CE/p.nii.gz T2/p.nii.gz seg/p.nii.gz",
                            "p"),
    "anat": ("p/anat/flair.nii p/anat/t1.nii p/anat/t1c.nii p/anat/t2.nii p/anat/seg.nii", "p"),
    "nnU-Net": (nnunet, "B_7"),
    "MONAI": (monai, "d"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_public_layouts_are_read_as_they_are(tmp_path: Path, layout: str) -> None:
    made, name = LAYOUTS[layout]
    put_all(tmp_path, made) if isinstance(made, str) else made(tmp_path)
    found = find(tmp_path)
    assert [case.name for case in found.cases] == [name] and found.unused == []
    patient = read_case(found.cases[0])
    assert np.array_equal(patient.images, IMAGES) and np.array_equal(patient.reference, INSIDE)


def test_other_contrasts_of_public_sets_are_no_patients_and_need_nothing(tmp_path: Path) -> None:
    put_all(tmp_path, LAYOUTS["UCSF"][0])
    for ending in ("T1_bias", "ADC", "brain_segmentation", "GlistrBoost", "DTI_eddy_FA"):
        put(tmp_path / "P_nifti" / f"P_{ending}.nii.gz")
    found = find(tmp_path)
    assert len(found.cases) == 1 and found.cases[0].reference.name == "P_tumor_segmentation.nii.gz"
    assert len(found.unused) == 5 and not any(one.remedy for one in found.unused)


def test_links_are_followed_once_and_broken_ones_are_named(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "store", "P", IMAGES, LABELS)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "P").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "Q").symlink_to(tmp_path / "gone")
    found = find(tmp_path / "in")
    assert [case.name for case in found.cases] == ["P"]
    assert any("gone, which is not there; restore" in str(one) for one in found.unused)


LEFT = {
    "more.7z": "7-Zip",
    "more.rar": "RAR",
    "more.zip": "an archive next to patients",
    "a.zip.001": "split archive",
    "P/P_dwi.mha": "MetaImage",
    "P/P_t2.nii.gz.part": "has not finished",
    "P/P_t1.nii.gz.dvc": "dvc pull",
    "P/.P_t2.nii.gz.a8Xk2Q": "a hidden file",
    "P/.P_t1.nii.gz.icloud": "iCloud",
    "P/P_t2 (1).nii.gz": "has a file for t2 already",
    "P/P_GT.nii.gz": "file for the reference already",
    "labels/P.nii.gz": "rename it to P_seg.nii.gz",
    "P/s1.dcm": "dcm2niix",
    "x.nii.gz": "ends in no known contrast",
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_used_is_named_with_reason_and_remedy(tmp_path: Path, name: str) -> None:
    write_case(tmp_path, "P", IMAGES, LABELS)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "README.md").write_text("no scan")
    found = find(tmp_path)
    assert [str(one.path) for one in found.unused] == [str(tmp_path / name)]
    assert LEFT[name] in str(found.unused[0]) and found.unused[0].remedy


def test_empty_folders_of_patients_and_folders_named_as_files_are_named(tmp_path: Path) -> None:
    write_case(tmp_path, "P_01", IMAGES, LABELS)
    (tmp_path / "P_02").mkdir()
    (tmp_path / "x.nii").mkdir()
    (tmp_path / "notes").mkdir()
    said = " ".join(map(str, find(tmp_path).unused))
    assert (
        "P_02: a folder named like a patient's" in said
        and "x.nii: a folder with the name of a file" in said
    )
    assert "notes" not in said
    for number, name in enumerate(("readme.txt", "report.pdf", ".DS_Store", "P_06_flair.txt",
                                   "deep/v.csv", "s.dcm"), 3):
        path = tmp_path / f"P_{number:02d}" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    (tmp_path / "notes" / "readme.txt").write_text("x")
    named = [one.path.name for one in find(tmp_path).unused]
    assert sorted(named) == ["P_02", "P_03", "P_04", "P_05", "P_06", "P_07", "s.dcm", "x.nii"]


@pytest.mark.parametrize(
    ("file", "other", "asked"),
    [("t2", "P_t2 (1)", "rename it to P_t2.nii.gz"),
     ("t1ce", "P_T1X", "rename it to P_t1ce.nii.gz"),
     ("t1ce", "P_contrast", "rename it to P_t1ce.nii.gz"),
     ("flair", "P_FLAIR_2", "rename it to P_flair.nii.gz")],
)
def test_a_near_miss_stands_in_the_incomplete_patients_problem(tmp_path: Path, file: str,
                                                               other: str, asked: str) -> None:
    folder = write_case(tmp_path, "P", IMAGES, LABELS)
    (folder / f"P_{file}.nii.gz").rename(folder / f"{other}.nii.gz")
    found = find(tmp_path)
    assert f"{other}.nii.gz is there" in found.cases[0].problem and asked in found.cases[0].problem
    assert found.unused == []


def test_files_called_alike_take_their_folders_names(tmp_path: Path) -> None:
    for name in ("A", "B"):
        write_case(tmp_path / name, "scan", IMAGES, LABELS)
        (tmp_path / name / "scan").rename(tmp_path / f"_{name}")
    assert [case.name for case in find_cases(tmp_path)] == ["_A", "_B"]
    for name in ("A", "B"):
        put_all(tmp_path / name / "2019", "flair.nii t1.nii t1ce.nii t2.nii seg.nii")
    assert [case.name for case in find_cases(tmp_path)] == ["A_2019", "B_2019", "_A", "_B"]


def test_a_patients_own_folder_is_named_after_it(tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    put_all(tmp_path / "P5", "flair.nii.gz t1n.nii.gz t1c.nii.gz t2.nii.gz")
    monkeypatch.chdir(tmp_path / "P5")
    assert find_cases(Path())[0].name == "P5"


def test_what_this_project_wrote_is_not_found_as_input(tmp_path: Path) -> None:
    write_case(tmp_path, "P", IMAGES, LABELS)
    work = tmp_path / "work"
    write_case(work / "cases" / "training", "P", IMAGES, LABELS)
    for name in ("config.json", "cohort.json"):
        (work / name).write_text("{}")
    put(work / "predictions" / "P.nii.gz")
    put(tmp_path / "masks" / "P.nii.gz")
    (tmp_path / "masks" / "predictions.csv").write_text("case\n")
    found = find(tmp_path)
    assert len(found.cases) == 1 and found.unused == []
    (tmp_path / "masks" / "predictions.csv").write_text("id,survival\n")  # somebody else's table
    assert [one.path.name for one in find(tmp_path).unused] == ["P.nii.gz"]


@pytest.mark.parametrize("odd", ["P_post_T1", "P_Gd_T1", "P_postcontrast_T1"])
def test_a_word_before_the_modality_makes_no_second_patient(tmp_path: Path, odd: str) -> None:
    put_all(tmp_path, f"P_FLAIR.nii P_pre_T1.nii {odd}.nii P_T2.nii")
    (case,) = find(tmp_path).cases
    assert case.missing == ("t1", "t1ce") and f"{odd}.nii is there" in case.problem
    visit = tmp_path / "visits"
    put_all(visit, "P_post_FLAIR.nii P_post_T1.nii P_post_T1ce.nii P_post_T2.nii")
    assert [case.name for case in find(visit).cases] == ["P_post"]


def test_halves_in_folders_of_one_name_stay_two_persons(tmp_path: Path) -> None:
    put_all(tmp_path, "A/001/flair.nii A/001/t1.nii B/001/t1ce.nii B/001/t2.nii")
    assert [(case.name, case.missing) for case in find(tmp_path).cases] == [
        ("A_001", ("t1ce", "t2")), ("B_001", ("flair", "t1"))]


def test_a_listed_patient_without_a_file_or_a_known_channel_is_named(tmp_path: Path) -> None:
    nnunet(tmp_path)
    (tmp_path / "imagesTr" / "B_7_0000.nii.gz").unlink()  # T1
    (case,) = find(tmp_path).cases
    assert case.name == "B_7" and "add t1." in case.problem
    content = json.loads((tmp_path / "dataset.json").read_text())
    listed = [f"imagesTr/B_7_{n:04d}.nii.gz" for n in range(4)]
    content["training"] = [{"image": listed}]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    (case,) = find(tmp_path).cases
    assert case.name == "B_7" and "B_7_0000.nii.gz, which is not there" in case.problem
    content["channel_names"] = {str(n): name for n, name in enumerate(
        ("ADC", "DWI", "T1", "T1ce", "T2", "Flair"))}
    put(tmp_path / "imagesTr" / "B_7_0000.nii.gz")
    for others in ([], [{"image": listed[:2]}]):
        content["training"], content["test"] = [{"image": listed[:2]}], others
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        assert "add flair, t1, t1ce, t2" in find(tmp_path).cases[0].problem


def test_a_channel_that_nnunets_list_does_not_name_is_left_out(tmp_path: Path) -> None:
    nnunet(tmp_path)
    put(tmp_path / "imagesTr" / "B_7_0004.nii.gz")
    found = find(tmp_path)
    assert [one.path.name for one in found.unused] == ["B_7_0004.nii.gz"]
    assert "its channel, 4, is not in channel_names" in str(found.unused[0])
    assert np.array_equal(read_case(found.cases[0]).images, IMAGES)
    (tmp_path / "imagesTr" / "B_7_0001.nii.gz").unlink()  # T1CE
    assert "has 3 images in" in (problem := find(tmp_path).cases[0].problem)
    assert "add t1ce." in problem


def test_what_a_list_leaves_out_is_named_as_image_or_reference(tmp_path: Path) -> None:
    write_case(tmp_path, "P", IMAGES, LABELS)
    nnunet(tmp_path / "n")
    put(tmp_path / "n" / "labelsTr" / "B_9.nii.gz")
    put(tmp_path / "d" / "imagesTr" / "B_050.nii.gz", np.moveaxis(IMAGES, 0, -1))
    put(tmp_path / "d" / "imagesTs" / "B_051.nii.gz", np.moveaxis(IMAGES, 0, -1))
    said = "\n".join(map(str, find(tmp_path).unused))
    assert "B_9.nii.gz: a reference, and no images of B_9 in imagesTr are read" in said
    assert 'B_050.nii.gz: no dataset.json lists it; add it to the "training" list' in said
    assert 'B_051.nii.gz: no dataset.json lists it; add it to the "test" list' in said
    assert "rename" not in said


@pytest.mark.parametrize("endings", [("a.tar", "b.tar"), ("a.zip", "b.zip"), ("a.tar.gz", "b.tar")])
def test_all_archives_of_a_folder_are_read(tmp_path: Path, endings: tuple[str, str]) -> None:
    (tmp_path / "in").mkdir()
    for name, file in zip("PQ", endings, strict=True):
        pack(write_case(tmp_path / name, name, IMAGES, LABELS).parent, tmp_path / "in" / file)
    (tmp_path / "in" / "c.7z").write_bytes(b"7z\xbc\xaf")
    place = resolve_source(tmp_path / "in")
    assert place == tmp_path / "in" and is_archive(place)
    extract(place, tmp_path / "out")
    assert [case.name for case in find_patients(tmp_path / "out").cases] == ["P", "Q"]
    if endings == ("a.tar", "b.tar"):
        found = find_patients(place)
        assert [case.name for case in found.cases] == ["P", "Q"] and "7-Zip" in str(found.unused)
    extract(tmp_path / "in" / endings[0], tmp_path / "out")  # and then one of them
    assert [case.name for case in find_patients(tmp_path / "out").cases] == ["P"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [("x.tar", "w:gz"), ("x.tgz", "w"), ("x.tar.xz", "w:xz"), ("x.zip", "w"),
     ("x.tar.bz2", "w:bz2"), ("download", "w"), ("x.tar", "zip"), ("x.tbz", "w:bz2"),
     ("x.tbz2", "w:bz2"), ("x.txz", "w:xz"), ("download", "w:bz2"), ("x.dat", "w:gz")],
)
def test_content_decides_and_not_the_ending(tmp_path: Path, name: str, mode: str) -> None:
    folder = write_case(tmp_path / "s", "P", IMAGES, LABELS)
    if mode == "zip":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path in folder.iterdir():
                archive.write(path, f"P/{path.name}")
    else:
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(folder, "P")
    assert is_archive(resolve_source(tmp_path / name))
    extract(tmp_path / name, tmp_path / "out")
    assert [case.name for case in find_cases(tmp_path / "out")] == ["P"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("x.7z", b"7z\xbc\xaf", "a 7-Zip archive.*tar, tar.gz"), ("x.rar", b"Rar!", "a RAR archive"),
     ("x.zip", b"7z\xbc\xaf", "a 7-Zip archive"), ("x.zip", b"<html>", "a web page"),
     ("x.tar", b"", "is empty"), ("x.tar", b"version https://git-lfs", "git lfs pull"),
     ("x.zip.001", b"PK\x03\x04", "split archive"), ("x.nii.gz", b"\x1f\x8b", "is one scan"),
     ("x.txt", b"hello", "no archive that can be read")],
)
def test_what_is_no_archive_is_named(tmp_path: Path, name: str, content: bytes,
                                     message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BratsError, match=message):
        resolve_source(tmp_path / name)


def test_a_folder_named_as_an_archive_is_a_folder(tmp_path: Path) -> None:
    write_case(tmp_path / "x.tar", "P", IMAGES, LABELS)
    assert [case.name for case in find_patients(resolve_source(tmp_path / "x.tar")).cases] == ["P"]


GOOD = {"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "training": [{"image": "B.nii.gz"}]}
FOREIGN: dict[str, tuple[object, str]] = {
    "a list": ([1], "holds a list"),
    "null": (None, "holds null"),
    "broken": ("{", "cannot be read as JSON"),
    "text keys": (GOOD | {"modality": {"a": "FLAIR"}}, "numbered"),
    "a text": (GOOD | {"modality": "x"}, "not a table"),
    "two channels": (GOOD | {"modality": {"0": "FLAIR"}}, "are needed"),
    "deep": ("[" * 99_999, "cannot be read as JSON"),
    "no channels": ({"training": GOOD["training"]}, 'has no "modality"'),
    "empty": ({}, "lists no patients"),
    "a table of patients": (GOOD | {"training": {"a": 1}}, "is a dict, not a list"),
    "a number": (GOOD | {"training": [{"image": 5}]}, "is not text"),
    "no image": (GOOD | {"training": [{}]}, 'no "image"'),
    "no images": (GOOD | {"training": [{"image": []}]}, "lists no image"),
    "a label of another kind": (GOOD | {"training": [{"image": "B.nii.gz", "label": {}}]}, ""),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_dataset_json_gives_a_sentence(tmp_path: Path, kind: str) -> None:
    content, message = FOREIGN[kind]
    put(tmp_path / "B.nii.gz", np.moveaxis(IMAGES, 0, -1))
    (tmp_path / "dataset.json").write_text(
        content if isinstance(content, str) and kind != "a text" else json.dumps(content)
    )
    if kind.startswith("a label"):
        assert len(find_cases(tmp_path)) == 1
        return
    with pytest.raises(BratsError, match="no patient") as error:
        find(tmp_path)
    assert f"{tmp_path / 'dataset.json'}: " in str(error.value) and message in str(error.value)


@pytest.mark.parametrize("labels", [{"a": 1, "b": 2}, {"edema": 1, "necrosis": 1}])
def test_labels_that_a_list_does_not_explain_are_not_used(tmp_path: Path, labels: dict) -> None:
    nnunet(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(
        json.dumps(content | {"labels": {"background": 0, **labels}})
    )
    found = find(tmp_path)
    assert found.cases[
        0
    ].reference is None and "necrotic core in BraTS and edema in nnU-Net's" in str(found.unused[0])


def test_nnunets_ignored_voxels_leave_the_other_labels_their_meaning() -> None:
    named = {"background": 0, "edema": 1, "necrotic core": 2, "enhancing tumor": 3, "ignore": 4}
    assert labels_of({"labels": named}) == ((1, 2), (2, 1), (3, 3), (4, NO_CLASS))


BIDS_SCANS = "FLAIR T1w ce-gadolinium_T1w T2w"


@pytest.mark.parametrize(("table", "reads"), [
    ("index\tname\n1\tedema\n2\tnecrosis\n4\tenhancing tumor\n", True),
    ("index\tname\n1\tblob\n", False), (f"index\tname\n1\t{'x' * 200_000}\n", False),
    ("", False), ("\0", False)])
def test_bidss_table_says_what_the_labels_mean(tmp_path: Path, table: str, reads: bool) -> None:
    scans = " ".join(f"sub-1/anat/sub-1_{end}.nii.gz" for end in BIDS_SCANS.split())
    put_all(tmp_path / "set", f"{scans} derivatives/m/sub-1/anat/sub-1_dseg.nii.gz")
    (tmp_path / "set/derivatives/m/dseg.tsv").write_text(table)
    found = find(tmp_path / "set")
    assert [one.path.name for one in found.unused] == ([] if reads else ["sub-1_dseg.nii.gz"])
    if reads:
        swapped = np.array([0, 2, 1, 3])[INSIDE]
        assert np.array_equal(read_case(found.cases[0]).reference, swapped)
    else:
        assert found.cases[0].reference is None and "dseg.tsv does not say" in str(found.unused[0])


def test_a_table_above_the_data_set_is_not_its_own(tmp_path: Path) -> None:
    scans = " ".join(f"sub-1/anat/sub-1_{end}.nii.gz" for end in (*BIDS_SCANS.split(), "dseg"))
    put_all(tmp_path / "set", scans)
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\tedema\n")
    case, = find(tmp_path / "set").cases
    assert case.reference and not case.labels


@pytest.mark.parametrize("start", ["", "derivatives/m"])
def test_bidss_processed_scans_are_read_where_there_are_no_raw_ones(tmp_path: Path,
                                                                    start: str) -> None:
    for home in ("sub-1/anat/sub-1", "derivatives/m/sub-1/anat/sub-1",
                 "derivatives/m/sub-2/anat/sub-2"):
        put_all(tmp_path, " ".join(f"{home}_{end}.nii.gz" for end in BIDS_SCANS.split()))
    found = find(tmp_path / start)
    assert [case.name for case in found.cases] == ["sub-1", "sub-2"]
    assert ("derivatives" in str(found.cases[0].images[0])) == bool(start)
    assert len(found.unused) == (0 if start else 1)


@pytest.mark.parametrize("single", [False, True])
def test_a_list_with_a_fifth_contrast_gives_the_four(tmp_path: Path, single: bool) -> None:
    nnunet(tmp_path)
    put(tmp_path / "imagesTr" / "B_7_0004.nii.gz")
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["channel_names"]["4"] = "ADC"
    if single:  # the Decathlon's way: one file of all channels
        volumes = [nib.load(file) for file in sorted((tmp_path / "imagesTr").iterdir())]
        stacked = np.stack([np.asarray(volume.dataobj) for volume in volumes], -1)
        shutil.rmtree(tmp_path / "imagesTr")
        (tmp_path / "imagesTr").mkdir()
        nib.Nifti1Image(stacked, volumes[0].affine).to_filename(tmp_path / "imagesTr/B_7.nii.gz")
        content["training"] = [{"image": "imagesTr/B_7.nii.gz", "label": "labelsTr/B_7.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = find(tmp_path)
    assert np.array_equal(read_case(found.cases[0]).images, IMAGES)
    assert [one.path.name for one in found.unused] == ([] if single else ["B_7_0004.nii.gz"])


@pytest.mark.parametrize("agent", ["acq-post", "acq-gd", "acq-ce", "acq-mprageT1CE", "ce-gad"])
@pytest.mark.parametrize("plain", ["", "_acq-pre", "_acq-space", "_acq-preGd", "_acq-noncontrast",
                                   "_acq-nogad", "_ce-none"])
def test_bids_tells_by_acq_or_ce_what_has_contrast_agent(tmp_path: Path, agent: str,
                                                         plain: str) -> None:
    ends = f"FLAIR acq{plain[4:]}_T1w {agent}_T1w T2w" if "acq" in plain else (
        f"FLAIR {plain.strip('_')}_T1w {agent}_T1w T2w".replace(" _", " "))
    put_all(tmp_path, " ".join(f"sub-1/anat/sub-1_{end}.nii.gz" for end in ends.split()))
    (case,) = find(tmp_path).cases
    assert not case.problem and agent in case.images[2].name and agent not in case.images[1].name


def test_folders_named_by_a_visit_keep_the_person(tmp_path: Path) -> None:
    for place in ("P1/2019-01-05", "P1/2020-02-01", "P2/baseline", "P2/week-044"):
        put_all(tmp_path, " ".join(f"{place}/{name}.nii.gz" for name in "FLAIR T1 CT1 T2".split()))
    assert [case.name for case in find(tmp_path).cases] == [
        "P1_2019-01-05", "P1_2020-02-01", "P2_baseline", "P2_week-044"]


def test_a_numbered_folder_for_each_contrast_is_one_patient(tmp_path: Path) -> None:
    for person in ("EGD-1", "EGD-2"):
        put_all(tmp_path, " ".join(f"{person}/{n}_{name}/NIFTI/{name}.nii.gz" for n, name
                                   in enumerate("FLAIR T1 T1GD T2".split(), 1)))
    found = find(tmp_path)
    assert [(case.name, case.problem) for case in found.cases] == [("EGD-1", ""), ("EGD-2", "")]


def test_what_was_deleted_is_no_patient(tmp_path: Path) -> None:
    for place in ("P1", "#recycle/P2", "@eaDir/P3", "lost+found/P4"):
        put_all(tmp_path / place, "f_flair.nii f_t1.nii f_t1ce.nii f_t2.nii f_seg.nii")
    assert len(find(tmp_path).cases) == 1


def test_masks_of_one_region_second_references_and_pictures_are_named(tmp_path: Path) -> None:
    put_all(tmp_path, " ".join(f"P1/P1_{end}.nii.gz" for end in "flair t1 t1ce t2 seg".split()))
    put(tmp_path / "better" / "P1_seg.nii.gz")
    put(tmp_path / "derivatives" / "sub-1_label-lesion_mask.nii.gz")
    (tmp_path / "slices").mkdir()
    (tmp_path / "slices" / "a.tif").touch()
    found = find(tmp_path)
    said = " ".join(map(str, found.unused))
    assert found.cases[0].reference == tmp_path / "P1" / "P1_seg.nii.gz"
    for text in ("one more reference of P1, and", "a mask of one region", "the format TIFF"):
        assert text in said, said
    (tmp_path / "only").mkdir()
    for number in range(3):
        (tmp_path / "only" / f"{number}.png").touch()
    with pytest.raises(BratsError, match=r"the format PNG.*and 2 more like it"):
        find(tmp_path / "only")


def test_a_list_may_name_its_files_from_above(tmp_path: Path) -> None:
    nnunet(tmp_path / "D")
    listed = json.loads((tmp_path / "D" / "dataset.json").read_text())
    names = sorted(p.name for p in (tmp_path / "D" / "imagesTr").iterdir())[:4]
    listed["dataset"] = {"a": {"images": [f"../D/imagesTr/{name}" for name in names]}}
    (tmp_path / "E").mkdir()
    (tmp_path / "E" / "dataset.json").write_text(json.dumps(listed))
    found = find(tmp_path / "E")
    assert len(found.cases) == 1 and not found.unused


def test_a_class_that_is_no_tumor_is_refused_only_where_it_occurs() -> None:
    known = {"background": 0, "necrosis": 1, "edema": 2, "enhancing tumor": 3}
    found = labels_of({"labels": known | {"resection cavity": 4}})
    assert found == (*labels_of({"labels": known}), (4, NO_CLASS))
    case = Case("P", (), None, labels=found)
    assert "labels [4] are not among [0, 1, 2, 3]" in refusal(case, [1, 4])[0]
    assert refusal(case, [1, 2, 3]) is None
    assert labels_of({"labels": {"background": 0, "cavity": 1}}) is None
    for other in ("liver", "RC", "unlabeled", "ignore label"):
        assert labels_of({"labels": known | {other: 4}}) == found
    regions = {"whole tumor": [1, 2, 3, 4], "core": [1, 3], "enhancing": [3]}
    for named in (regions | {"cavity": [4]}, {"cavity": [4]} | regions):
        assert (4, NO_CLASS) in labels_of({"labels": named})
    assert labels_of({"labels": list(known)}) == labels_of({"labels": known})


@pytest.mark.parametrize("name", ["non-contrast-enhancing tumor", "unenhancing", "not enhancing",
                                  "non  enhancing", "nonenhancing core", "necrotic/non-enhancing"])
def test_what_does_not_enhance_is_core(name: str) -> None:
    classes = {"background": 0, name: 1, "edema": 2, "contrast-enhancing tumor": 3}
    assert labels_of({"labels": classes}) == ((1, 1), (2, 2), (3, 3))
    regions = {"whole tumor": [1, 2, 3], f"{name} (core)": [1], "enhancing tumor": [3]}
    assert labels_of({"labels": regions}) == ((1, 1), (2, 2), (3, 3))


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_table_of_labels_may_be_separated_otherwise(tmp_path: Path, separator: str) -> None:
    put_all(tmp_path, " ".join(f"sub-1/anat/sub-1_{end}.nii.gz" for end in BIDS_SCANS.split()))
    put(tmp_path / "sub-1" / "anat" / "sub-1_dseg.nii.gz", EDEMA_FIRST)
    rows = ("index,name", "1,edema", "2,necrosis", "3,enhancing tumor")
    (tmp_path / "dseg.tsv").write_text("\n".join(rows).replace(",", separator))
    assert np.array_equal(read_case(find(tmp_path).cases[0]).reference, INSIDE)


def test_a_derived_scan_is_not_called_needless_where_it_is_the_only_one(tmp_path: Path) -> None:
    for end in ("flair", "t1", "t1ce", "t2", "T1_bias"):
        put(tmp_path / "P1" / f"P1_{end}.nii.gz")
    put(tmp_path / "P2" / "P2_T1_bias.nii.gz")
    put(tmp_path / "P2" / "P2_DTI_FA.nii.gz")
    remedies = {one.path.name: one.remedy for one in find(tmp_path).unused}
    assert "rename it to X_flair" in remedies.pop("P2_T1_bias.nii.gz")
    assert not any(remedies.values())


@pytest.mark.parametrize("listed", [False, True], ids=["by nnU-Net's folders", "by a list"])
@pytest.mark.parametrize("gone", [(1,), (0, 1, 2)], ids=["one", "three"])
def test_predict_takes_the_channels_of_nnunets_list_that_are_there(
        tmp_path: Path, gone: tuple[int, ...], listed: bool) -> None:
    nnunet(tmp_path)
    files = [tmp_path / "imagesTr" / f"B_7_{n:04d}.nii.gz" for n in range(4)]
    if listed:
        content = json.loads((tmp_path / "dataset.json").read_text())
        content["training"] = [{"image": [f"imagesTr/{path.name}" for path in files]}]
        (tmp_path / "dataset.json").write_text(json.dumps(content))
    whole = find(tmp_path).cases[0]
    for number in gone:
        files[number].unlink()
    case, = find(tmp_path).cases
    left = [m for m, path in zip(MODALITIES, whole.images, strict=True) if path.is_file()]
    assert case.name == "B_7" and case.missing == tuple(m for m in MODALITIES if m not in left)
    with pytest.raises(BratsError, match="B_7_000[01].nii.gz|add .*t1ce"):
        read_case(case)
    images = read_case(incomplete(case)).images
    for n, name in enumerate(MODALITIES):
        assert np.array_equal(images[n], IMAGES[n] if name in left else np.zeros_like(IMAGES[n]))


def test_a_second_reference_bars_a_patient_only_where_references_are_used(tmp_path: Path) -> None:
    folder = write_case(tmp_path, "P", IMAGES, LABELS)
    put(folder / "P_segm.nii.gz")
    case, = find(tmp_path).cases
    with pytest.raises(BratsError, match="2 files for seg.*keep one"):
        read_case(case)
    assert np.array_equal(read_case(replace(case, reference=None)).images, IMAGES)


def test_channels_that_are_not_numbered_from_0_are_refused(tmp_path: Path) -> None:
    for numbers in ("1234", "0124"):
        nnunet(tmp_path)
        content = json.loads((tmp_path / "dataset.json").read_text())
        content["channel_names"] = dict(zip(numbers, ("T1", "T1ce", "T2", "Flair"), strict=True))
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        with pytest.raises(BratsError, match="its channels are numbered"):
            find(tmp_path)


def test_a_lists_image_of_two_contrasts_is_refused(tmp_path: Path) -> None:
    nnunet(tmp_path)
    for channel, name in enumerate(("t1", "t1ce", "t2", "flair")):
        put(tmp_path / "imagesTr" / f"X_{name}_{channel:04d}.nii.gz")
    assert [case.name for case in find(tmp_path).cases if not case.problem] == ["B_7"]
    assert all("also names its contrast" in case.problem for case in find(tmp_path).cases[1:])
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["training"] = [{"image": [f"imagesTr/B_7_{n:04d}.nii.gz" for n in (0, 1, 1, 3)]}]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert "B_7_0001.nii.gz twice" in find(tmp_path).cases[0].problem
    content["training"] = [{"image": [f"imagesTr/B_7_{n:04d}.nii.gz" for n in (1, 2, 3)]}]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    case = find(tmp_path).cases[0]  # the first three channels, or the last three
    assert "has 3 images" in case.problem and not case.missing


def test_a_list_of_one_contrast_leaves_a_whole_patient_whole(tmp_path: Path) -> None:
    write_case(tmp_path, "P", IMAGES, LABELS)
    listed = {"training": [{"image": "P/P_flair.nii.gz", "label": "P/P_seg.nii.gz"}]}
    (tmp_path / "dataset_fold0.json").write_text(json.dumps(listed))
    (case,) = find(tmp_path).cases
    assert np.array_equal(read_case(case).images, IMAGES)


def test_a_tar_with_a_table_of_labels_is_unpacked(tmp_path: Path) -> None:
    put(tmp_path / "in" / "sub-1" / "anat" / "sub-1_dseg.nii.gz")
    for name, unpacked in (("dseg.tsv", True), ("datalist.json", True),
                           ("dataset_description.json", False)):
        (tmp_path / "in" / name).write_text("{}")
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.add(tmp_path / "in", "in")
        assert readable_in_place(tmp_path / "x.tar") != unpacked
        (tmp_path / "in" / name).unlink()


def test_a_patient_is_prepared_anew_when_the_list_changes(tmp_path: Path) -> None:
    nnunet(tmp_path)
    case = find(tmp_path).cases[0]
    other = replace(case, labels=tuple((number, 4 - here) for number, here in case.labels))
    assert content_hash(case, 1.0) != content_hash(other, 1.0)


def test_what_lies_beside_nnunets_files_is_no_channel(tmp_path: Path) -> None:
    nnunet(tmp_path)
    (tmp_path / "imagesTr" / "B_7_0000.nii.gz.md5").write_text("0")
    put(tmp_path / "imagesTr" / "._B_7_0000.nii.gz")
    assert np.array_equal(read_case(find(tmp_path).cases[0]).images, IMAGES)
