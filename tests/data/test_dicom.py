"""DICOM series: read as ITK reads them, malformed ones refused, no identifier kept."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from brats_helpers.basics.errors import BratsError
from brats_helpers.data.dicom import convert_series, read_series, write_series

IDENTIFIERS = {
    "PatientName": "Doe^Jane", "PatientID": "MRN-4711", "PatientBirthDate": "19700102",
    "PatientSex": "F",
    "PatientAddress": "Elm Street 7", "PatientTelephoneNumbers": "555-0199",
    "OtherPatientIDs": "SSN-078051120",
    "InstitutionName": "StMary Hospital", "InstitutionAddress": "Hill Road 1",
    "ReferringPhysicianName": "House^Gregory",
    "PerformingPhysicianName": "Wilson^James", "OperatorsName": "Foreman^Eric",
    "AccessionNumber": "ACC-99812",
    "StudyDate": "20210304", "StudyTime": "131415", "StudyID": "STUDY-31337",
    "StudyDescription": "headache of JaneDoe",
    "SeriesDescription": "FLAIR JaneDoe", "PatientComments": "neighbor of JohnRoe",
    "StationName": "MRSCANNER7",
    "DeviceSerialNumber": "SN-55501", "ProtocolName": "BRAIN-PROTO-9", "EthnicGroup": "ETHNIC-X"}


def volume(seed: int = 0, shape: tuple[int, int, int] = (7, 6, 5)) -> tuple[np.ndarray, np.ndarray]:
    """Intensities and an oblique, anisotropic affine."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    # slices are stacked along rows x columns, which is right-handed in LPS
    turn *= np.linalg.det(turn)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * rng.uniform(0.5, 4, 3), rng.uniform(-90, 90, 3)
    return rng.integers(0, 4000, shape).astype(np.int16), affine


@given(st.integers(0, 500), st.tuples(st.integers(2, 8), st.integers(2, 8), st.integers(2, 6)))
@settings(max_examples=20, deadline=None)
def test_what_is_written_is_read_by_us_and_by_itk(seed: int, shape: tuple[int, int, int]) -> None:
    image, affine = volume(seed, shape)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_series(image, affine, Path(folder))
        ours, placed = read_series(Path(folder))
        assert np.array_equal(ours, image)
        assert ours.dtype == np.int16
        assert np.allclose(placed, affine, atol=1e-4)
        theirs = SimpleITK.ReadImage([str(path) for path in paths])
        assert np.array_equal(SimpleITK.GetArrayFromImage(theirs).T, image)
        corner = theirs.TransformIndexToPhysicalPoint([n - 1 for n in shape])
        assert np.allclose(np.array(corner) * [-1, -1, 1],
                           (affine @ [*(n - 1 for n in shape), 1])[:3], atol=1e-3)


def test_names_do_not_decide_the_order_and_scaled_values_are_scaled(tmp_path: Path) -> None:
    image, affine = volume()
    paths = write_series(image, affine, tmp_path / "a", RescaleSlope="0.5", RescaleIntercept="-3")
    for number, path in enumerate(paths):
        path.rename(tmp_path / "a" / f"{(number * 3) % 5}.dcm")
    read, placed = read_series(tmp_path / "a")
    assert np.array_equal(read, image * np.float32(0.5) - 3)
    assert np.allclose(placed, affine, atol=1e-4)


def test_no_identifier_is_left(tmp_path: Path) -> None:
    image, affine = volume()
    write_series(image, affine, tmp_path / "scan", **IDENTIFIERS)
    header = pydicom.dcmread(tmp_path / "scan" / "slice0000.dcm")
    assert all(keyword in header for keyword in IDENTIFIERS)  # they were there to be lost
    convert_series(tmp_path / "scan", tmp_path / "out.nii.gz")
    content = gzip.decompress((tmp_path / "out.nii.gz").read_bytes())
    told = [*IDENTIFIERS.values(), header.SeriesInstanceUID, header.StudyInstanceUID,
            header.SOPInstanceUID, "scan", "Doe"]
    assert not [word for word in told if str(word).encode() in content]
    voxels = np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj)
    # header, voxels, nothing after them
    assert np.array_equal(voxels, image) and len(content) == 352 + voxels.nbytes
    plain = nib.Nifti1Header.from_fileobj(io.BytesIO(content[:352]))
    assert not any(bytes(plain[field]).strip(b"\0")
                   for field in ("descrip", "aux_file", "intent_name", "db_name"))


def change(index: int, **attributes: object) -> Callable[[Path], None]:
    """A damage: some attributes of one slice."""
    def apply(folder: Path) -> None:
        path = folder / f"slice{index:04d}.dcm"
        file = pydicom.dcmread(path)
        for keyword, value in attributes.items():
            delattr(file, keyword) if value is None else setattr(file, keyword, value)
        file.save_as(path)
    return apply


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a slice missing": (lambda f: (f / "slice0002.dcm").unlink(), "a slice is missing"),
    "a slice twice": (lambda f: shutil.copy(f / "slice0002.dcm", f / "copy.dcm"),
                      "a slice is missing or duplicated"),
    "another series": (change(1, SeriesInstanceUID="1.2.3"),
                       "slice0001.dcm belongs to another series"),
    "another voxel size": (change(1, PixelSpacing=["9", "9"]),
                           "slice0001.dcm differs from slice0000.dcm"),
    "no position": (change(1, ImagePositionPatient=None),
                    "slice0001.dcm lacks ImagePositionPatient"),
    "an orientation of five numbers": (
        change(1, ImageOrientationPatient=["1", "0", "0", "0", "1"]),
        "slice0001.dcm lacks ImageOrientationPatient"),
    "an empty position": (change(1, ImagePositionPatient=""), "slice0001.dcm lacks ImagePositionP"),
    "no pixels": (change(1, PixelData=None), "slice0001.dcm cannot be read as a DICOM slice"),
    "burned-in text": (change(1, BurnedInAnnotation="YES"),
                       "slice0001.dcm says that text is burned"),
    "colors": (change(1, SamplesPerPixel=3), "0001.dcm has SamplesPerPixel 3, and 1 is needed"),
    "several frames": (change(1, NumberOfFrames=2), "slice0001.dcm has NumberOfFrames 2"),
    "inverted gray": (change(1, PhotometricInterpretation="MONOCHROME1"), "and MONOCHROME2 is nee"),
    "voxels of no size": (change(1, PixelSpacing=["0", "1"]), "slice0001.dcm has no usable"),
    "a text file": (lambda f: (f / "notes.txt").write_text("hello"),
                    "notes.txt cannot be read as a DICOM slice"),
    "cut short": (
        lambda f: os.truncate(f / "slice0001.dcm", os.path.getsize(f / "slice0001.dcm") - 20),
        "0001.dcm cannot"),
    "an empty folder": (lambda f: [p.unlink() for p in f.iterdir()], "holds no DICOM files"),
}


def test_empty_elements_have_their_usual_values(tmp_path: Path) -> None:
    image, affine = volume()
    write_series(image, affine, tmp_path, RescaleSlope="", RescaleIntercept="")
    assert np.array_equal(read_series(tmp_path)[0], image)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_series_is_refused_by_name_and_nothing_is_written(tmp_path: Path, damage: str,
                                                                    faults) -> None:
    write_series(*volume(), tmp_path / "scan")
    apply, message = DAMAGES[damage]
    apply(tmp_path / "scan")
    with pytest.raises(BratsError, match=message):
        convert_series(tmp_path / "scan", tmp_path / "out" / "x.nii.gz")
    assert not (tmp_path / "out").exists()
    faults("malformed DICOM series")
