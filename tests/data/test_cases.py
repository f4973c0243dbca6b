"""Finding, reading, checking and writing patients."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import small_volumes, write_case
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from brats_helpers.basics.errors import BratsError
from brats_helpers.data.cases import (
    Case,
    check_case,
    find_cases,
    find_twins,
    read_case,
    read_reference,
    write_mask,
)

BRATS23 = ("-t2f", "-t1n", "-t1c", "-t2w", "-seg")


def test_both_naming_schemes_any_depth_and_litter(tmp_path: Path) -> None:
    images, labels = small_volumes()
    write_case(tmp_path / "a" / "b", "BraTS2021_00001", images, labels)
    new = write_case(tmp_path / "c", "BraTS-GLI-00002-000", images,
                     np.where(labels == 4, 3, labels), endings=BRATS23, suffix=".nii")
    (new / "BraTS-GLI-00002-000-t2w.nii").rename(new / "BraTS-GLI-00002-000-t2W.nii")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "x_flair.nii.gz").write_bytes(b"")
    (new / "._BraTS-GLI-00002-000-t1n.nii").write_bytes(b"")
    old_case, new_case = sorted(find_cases(tmp_path), key=lambda case: case.name)[::-1]
    old, new_patient = read_case(old_case), read_case(new_case)
    assert np.array_equal(old.images, images) and old.images.dtype == np.int16
    assert np.array_equal(old.reference, new_patient.reference)
    assert set(np.unique(old.reference)) == {0, 1, 2, 3}


def test_files_without_the_patients_name_take_the_folders(tmp_path: Path) -> None:
    folder = write_case(tmp_path, "P7", *small_volumes())
    for path in folder.iterdir():
        path.rename(folder / path.name.removeprefix("P7_"))
    assert find_cases(tmp_path)[0].name == "P7"


def test_decathlon_order_and_labels(tmp_path: Path) -> None:
    images, labels = small_volumes()
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    stacked = np.moveaxis(images[[1, 0, 3, 2]], 0, -1)  # T1w, FLAIR, T2w, t1gd
    nib.save(nib.Nifti1Image(stacked, np.eye(4)), tmp_path / "imagesTr" / "BRATS_001.nii.gz")
    theirs = np.select([labels == 2, labels == 1, labels == 4], [1, 2, 3], 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(theirs, np.eye(4)), tmp_path / "labelsTr" / "BRATS_001.nii.gz")
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {
                "modality": {"0": "T1w", "1": "FLAIR", "2": "T2w", "3": "t1gd"},
                "training": [
                    {"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}
                ],
                "test": [],
            }
        )
    )
    patient = read_case(find_cases(tmp_path)[0])
    assert np.array_equal(patient.images, images)
    assert np.array_equal(patient.reference, np.where(labels == 4, 3, labels))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("float64 integers", np.int16), ("fractions", np.float32), ("negative", np.int16),
     ("int32, too large", np.float32)],
)
def test_types_lose_nothing(tmp_path: Path, kind: str, dtype: type) -> None:
    images, labels = small_volumes()
    changed = {"float64 integers": images.astype(np.float64), "fractions": images + np.float32(0.5),
               "negative": -images, "int32, too large": images.astype(np.int32) * 100}[kind]
    patient = read_case(
        find_cases(write_case(tmp_path, "P", changed, labels.astype(np.float32)))[0]
    )
    assert patient.images.dtype == dtype and np.array_equal(patient.images, changed)


def _break(folder: Path, what: str, images: np.ndarray, labels: np.ndarray) -> None:
    flair, t2, seg = (folder / f"P_{kind}.nii.gz" for kind in ("flair", "t2", "seg"))
    if what == "truncated":
        t2.write_bytes(t2.read_bytes()[:900])
    elif what == "lfs":
        t2.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif what == "nan":
        nib.save(
            nib.Nifti1Image(np.where(images[3] == 0, np.nan, images[3]), nib.load(flair).affine), t2
        )
    elif what == "shape":
        nib.save(nib.Nifti1Image(images[3][:-1], nib.load(flair).affine), t2)
    elif what == "affine":
        nib.save(nib.Nifti1Image(images[3], np.eye(4)), t2)
    elif what == "4D":
        nib.save(nib.Nifti1Image(np.stack([images[3]] * 2, -1), nib.load(flair).affine), t2)
    elif what == "zero":
        nib.save(nib.Nifti1Image(np.zeros_like(images[3]), nib.load(flair).affine), t2)
    else:
        bad = {"label 5": labels + (labels == 1) * 4, "3 and 4": labels + (labels == 2)}[
            what
        ].astype(np.uint8)
        nib.save(nib.Nifti1Image(bad, nib.load(flair).affine), seg)


@pytest.mark.parametrize(
    ("what", "message"),
    [("truncated", "get"), ("lfs", "git lfs pull"), ("nan", "NaN"), ("shape", "shape"),
     ("affine", "affine"), ("4D", "3 dimensions"), ("zero", "0 everywhere"),
     ("label 5", r"labels \[5"), ("3 and 4", "both 3 and 4")],
)
def test_damage_is_named_with_patient_and_file(tmp_path: Path, what: str, message: str) -> None:
    images, labels = small_volumes()
    _break(write_case(tmp_path, "P", images, labels), what, images, labels)
    case = find_cases(tmp_path)[0]
    with pytest.raises(BratsError, match=message) as error:
        read_case(case)
    assert "patient P" in str(error.value) and str(tmp_path) in str(error.value)
    assert check_case(case)["problems"] == [str(error.value)]


def test_an_incomplete_patient_is_found_and_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(BratsError, match="no patient"):
        find_cases(tmp_path)
    for name in ("P", "Q", "R"):
        folder = write_case(tmp_path, name, *small_volumes())
        if name == "Q":
            (folder / "Q_t1ce.nii.gz").unlink()
        if name == "R":
            (folder / "R_t1ce.nii.gz").rename(folder / "R_t2w.nii.gz")
    rows = [check_case(case) for case in find_cases(tmp_path)]
    assert not rows[0]["problems"] and "patient Q in" in rows[1]["problems"][0]
    assert "no file for t1ce" in rows[1]["problems"][0]
    assert (
        "2 files for t2" in rows[2]["problems"][0] and "no file for t1ce" in rows[2]["problems"][0]
    )


def test_label_4_since_2023_is_a_cavity_and_refused(tmp_path: Path) -> None:
    write_case(tmp_path, "P", *small_volumes(), endings=BRATS23)
    with pytest.raises(BratsError, match="patient P.*resection cavity"):
        read_case(find_cases(tmp_path)[0])


def test_mask_has_brats_labels_and_the_scans_geometry(small_case, tmp_path: Path) -> None:
    patient = read_case(small_case)
    write_mask(tmp_path / "m.nii.gz", patient.reference, patient.affine, small_case)
    written, scan = nib.load(tmp_path / "m.nii.gz"), nib.load(small_case.images[0])
    assert written.get_data_dtype() == np.uint8 and np.array_equal(written.affine, scan.affine)
    assert np.array_equal(np.asarray(written.dataobj),
                          np.asarray(nib.load(small_case.reference).dataobj))
    assert [p.name for p in tmp_path.glob(".part*")] == []


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.integers(0, 3)),
    st.sampled_from([np.uint8, np.int16, np.float32, np.float64, ">i4"]),
)
def test_labels_go_out_as_brats_has_them_and_come_back(labels: np.ndarray, dtype: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "P_seg.nii.gz"
        write_mask(path, labels, np.eye(4))
        on_disk = np.asarray(nib.load(path).dataobj)
        assert np.array_equal(on_disk == 4, labels == 3) and set(np.unique(on_disk)) <= {0, 1, 2, 4}
        nib.save(nib.Nifti1Image(on_disk.astype(dtype), np.eye(4)), path)
        back, _ = read_reference(Case("P", (path,), path), labels.shape, np.eye(4))
        assert np.array_equal(back, labels)


def test_twins_are_found_under_any_name_and_compression(tmp_path: Path) -> None:
    for name in ("A", "B", "C"):
        write_case(tmp_path, name, *small_volumes(name == "B"))
    for path in (tmp_path / "C").iterdir():  # the same scans, compressed anew
        content = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(content, compresslevel=1, mtime=5))
    assert find_twins(map(check_case, find_cases(tmp_path))) == [["A", "C"]]
