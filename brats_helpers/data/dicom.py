"""Convert a scanner's DICOM series to a NIfTI file with the voxels and nothing else of the patient.

A series is a folder of slices, one file each, placed by ImagePositionPatient (the first voxel),
ImageOrientationPatient (the directions of rows and columns) and PixelSpacing (DICOM PS3.3, section
C.7.6.2.1.1). DICOM's axes point left, back and up, NIfTI's right, forward and up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from ..basics.errors import BratsError
from ..basics.files import atomic_path

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from DICOM's axes to NIfTI's
TOLERANCE_MM = 0.01  # by which the steps between slices may differ
REQUIRED = {"ImageOrientationPatient": 6, "ImagePositionPatient": 3, "PixelSpacing": 2,
            "SeriesInstanceUID": 1}  # how many values each has
USUAL = {"SamplesPerPixel": 1, "NumberOfFrames": 1, "PhotometricInterpretation": "MONOCHROME2"}
SHARED = ("ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")


def write_series(image: np.ndarray, affine: np.ndarray, folder: Path,
                 **attributes: object) -> list[Path]:
    """Write a volume, (X, Y, Z) int16 of 0 or more, as a scanner does: one file per slice along Z.

    `attributes` set DICOM keywords in every file, as in PatientName="Doe^Jane".
    """
    to_lps, series, study = TO_RAS @ affine, generate_uid(), generate_uid()
    edges = np.linalg.norm(to_lps[:3, :3], axis=0)
    along_x, along_y = to_lps[:3, 0] / edges[0], to_lps[:3, 1] / edges[1]
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(image.shape[2]):
        pixels = np.ascontiguousarray(image[:, :, k].T.astype("<u2"))  # (Y, X)
        known = {
            "SOPClassUID": MRImageStorage, "SOPInstanceUID": generate_uid(), "Modality": "MR",
            "SeriesInstanceUID": series, "StudyInstanceUID": study, "InstanceNumber": k + 1,
            "Rows": pixels.shape[0], "Columns": pixels.shape[1], "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0,
            "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
            "ImageOrientationPatient": _decimals(*along_x, *along_y),
            "ImagePositionPatient": _decimals(*to_lps[:3] @ [0, 0, k, 1]),
            "PixelSpacing": _decimals(edges[1], edges[0]),
            "SliceThickness": _decimals(edges[2])[0], "PixelData": pixels.tobytes()}
        file = Dataset()
        for keyword, value in (known | attributes).items():
            setattr(file, keyword, value)
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(Path(folder) / f"slice{k:04d}.dcm")
        pydicom.dcmwrite(paths[-1], file, enforce_file_format=True)
    return paths


def _decimals(*values: float) -> list[str]:
    return [f"{value:.10g}"[:16] for value in values]  # DICOM's decimals have 16 characters at most


def read_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a folder of one series: volume, (X, Y, Z) int16 or float32, and affine to mm, (4, 4).

    Slices are ordered by position, not by file name. BratsError names a file that is no DICOM
    slice, belongs to another series or differs in geometry, and reports a missing slice.
    """
    files = [path for path in sorted(Path(folder).glob("[!.]*")) if path.is_file()]
    if not files:
        raise BratsError(f"{folder} holds no DICOM files: give the folder of one series.")
    slices = [_read_slice(path) for path in files]
    first = slices[0]
    for path, found in zip(files, slices, strict=True):
        if found.SeriesInstanceUID != first.SeriesInstanceUID:
            raise BratsError(f"{path} belongs to another series than {files[0].name}: "
                             "put each series in its own folder.")
        if not all(np.allclose(found[k].value, first[k].value, atol=1e-4) for k in SHARED):
            raise BratsError(f"{path} differs from {files[0].name} in orientation, voxel size or "
                             "shape: they do not form a volume.")
    return _stack(slices, folder)


def _read_slice(path: Path) -> Dataset:
    try:
        found = pydicom.dcmread(path)
        if missing := [name for name, count in REQUIRED.items()
                       if not found.get(name) or np.size(found[name].value) != count]:
            raise BratsError(f"{path} lacks {', '.join(missing)}: this is not a slice of a volume; "
                             "remove it.")
        _refuse_odd(path, found)
        pydicom.pixels.pixel_array(found)  # raises if the pixels cannot be decoded
    except (InvalidDicomError, TypeError, OSError, AttributeError, ValueError, NotImplementedError,
            RuntimeError, EOFError, KeyError) as error:
        raise BratsError(f"{path} cannot be read as a DICOM slice ({error}): remove it, or export "
                         "it again.") from error
    if str(found.get("BurnedInAnnotation", "NO")).upper() == "YES":
        raise BratsError(f"{path} says that text is burned into its pixels (BurnedInAnnotation), "
                         "which may name the patient: it is not converted.")
    return found


def _refuse_odd(path: Path, found: Dataset) -> None:
    """Raise BratsError for colors, several frames, inverted gray, or a place that is no number."""
    for name, usual in USUAL.items():
        if (value := found.get(name) or usual) != usual:
            raise BratsError(f"{path} has {name} {value}, and {usual} is needed: export the series "
                             "as gray slices, one to a file.")
    place = np.array([*found.ImagePositionPatient, *found.ImageOrientationPatient], float)
    if not np.isfinite(place).all() or min(map(float, found.PixelSpacing)) <= 0:
        raise BratsError(f"{path} has no usable position or PixelSpacing: export it again.")


def _stack(slices: Sequence[Dataset], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Stack slices along their normal; BratsError if the steps between them differ."""
    first = slices[0]
    along_x, along_y = np.reshape(first.ImageOrientationPatient, (2, 3)).astype(float)
    normal = np.cross(along_x, along_y)
    positions = np.array([s.ImagePositionPatient for s in slices], float)
    order = np.argsort(positions @ normal, kind="stable")
    steps = np.diff((positions @ normal)[order])
    step = float(np.median(steps) if len(steps) else first.get("SliceThickness") or 1)
    if len(steps) and (step < TOLERANCE_MM or np.ptp(steps) > TOLERANCE_MM):
        odd = int(np.abs(steps - step).argmax())
        raise BratsError(f"{folder}: {len(slices)} slices, most of them {step:.3f} mm apart, and "
                         f"{steps[odd]:.3f} mm after number {odd + 1}: a slice is missing or "
                         "duplicated; export the series again.")
    row_mm, column_mm = map(float, first.PixelSpacing)
    to_lps = np.eye(4)
    to_lps[:3].T[:] = along_x * column_mm, along_y * row_mm, normal * step, positions[order[0]]
    return np.stack([_intensities(slices[i]).T for i in order], -1), TO_RAS @ to_lps


def _intensities(found: Dataset) -> np.ndarray:
    """Return a slice, (Y, X): int16 if that holds the stored values, else scaled, float32."""
    slope = float(found.get("RescaleSlope") or 1)  # an empty element is None
    intercept = float(found.get("RescaleIntercept") or 0)
    pixels = found.pixel_array
    if (slope, intercept) == (1, 0) and pixels.max(initial=0) <= 32767:
        return pixels.astype(np.int16)
    return (pixels * slope + intercept).astype(np.float32)


def convert_series(folder: Path, path: Path) -> None:
    """Convert a folder of DICOM slices to one NIfTI file, without the headers' names and dates.

    A face in the voxels still identifies the patient: remove it (skull-strip) before a scan leaves
    the hospital.
    """
    volume, affine = read_series(folder)
    image = nib.Nifti1Image(volume, affine)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
