"""From a scanner's DICOM series to one NIfTI file, with nothing of the patient but the voxels.

A series is a folder of slices, one file each. Where a slice lies stands in three attributes: ImageOrientationPatient
(the directions of its rows and columns), ImagePositionPatient (its first voxel) and PixelSpacing (DICOM PS3.3,
section C.7.6.2.1.1). DICOM's axes point to the patient's left, back and head, NIfTI's to the right, front and head.
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

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])              # millimeters in DICOM's axes to those of NIfTI
GAP = 0.01                                            # mm by which the steps between slices may differ
NEEDED = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SeriesInstanceUID")


def write_series(image: np.ndarray, affine: np.ndarray, folder: Path, **attributes: object) -> list[Path]:
    """Write a volume, (X, Y, Z) int16 of 0 or more, as a scanner would: one file for each step of the third index.

    attributes are set in every file by their DICOM keyword, as in PatientName="Doe^Jane". Returns the paths.
    """
    to_lps, series, study = TO_RAS @ affine, generate_uid(), generate_uid()
    edges = np.linalg.norm(to_lps[:3, :3], axis=0)
    along_x, along_y = to_lps[:3, 0] / edges[0], to_lps[:3, 1] / edges[1]
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(image.shape[2]):
        pixels = np.ascontiguousarray(image[:, :, k].T.astype("<u2"))    # rows run along Y, columns along X
        file = Dataset()
        file.SOPClassUID, file.SOPInstanceUID, file.Modality = MRImageStorage, generate_uid(), "MR"
        file.SeriesInstanceUID, file.StudyInstanceUID, file.InstanceNumber = series, study, k + 1
        file.Rows, file.Columns = pixels.shape
        file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 0
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
        file.ImageOrientationPatient = [_decimal(v) for v in (*along_x, *along_y)]
        file.ImagePositionPatient = [_decimal(v) for v in to_lps[:3] @ [0, 0, k, 1]]
        file.PixelSpacing, file.SliceThickness = [_decimal(edges[1]), _decimal(edges[0])], _decimal(edges[2])
        file.PixelData = pixels.tobytes()
        for keyword, value in attributes.items():
            setattr(file, keyword, value)
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(Path(folder) / f"slice{k:04d}.dcm")
        pydicom.dcmwrite(paths[-1], file, enforce_file_format=True)
    return paths


def _decimal(value: float) -> str:
    return f"{value:.10g}"[:16]                       # DICOM's decimal strings have at most 16 characters


def read_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A folder of one series as a volume, (X, Y, Z) int16 or float32, and its affine, (4, 4), to NIfTI's millimeters.

    The slices are put in order by their position, not by their names. BratsError names the file where one is no DICOM
    slice, belongs to another series, differs in geometry, or where a slice is missing.
    """
    files = sorted(p for p in Path(folder).iterdir() if p.is_file() and not p.name.startswith(".")) \
        if Path(folder).is_dir() else []
    if not files:
        raise BratsError(f"{folder} holds no DICOM files: give the folder of one series.")
    slices = [_read_slice(path) for path in files]
    for path, other in zip(files, slices, strict=True):
        if other.SeriesInstanceUID != slices[0].SeriesInstanceUID:
            raise BratsError(f"{path} belongs to another series than {files[0].name}: put each series in its own folder.")
        if not all(np.allclose(other[a].value, slices[0][a].value, atol=1e-4)
                   for a in ("ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")):
            raise BratsError(f"{path} differs from {files[0].name} in orientation, voxel size or shape: they make no volume.")
    return _stack(slices, folder)


def _read_slice(path: Path) -> Dataset:
    try:
        found = pydicom.dcmread(path)
        if missing := [name for name in NEEDED if name not in found]:
            raise BratsError(f"{path} lacks {', '.join(missing)}: this is no slice of a volume; remove it.")
        pydicom.pixels.pixel_array(found)             # decodes, and raises where that fails
    except (InvalidDicomError, AttributeError, ValueError, NotImplementedError, RuntimeError, EOFError, KeyError) as error:
        raise BratsError(f"{path} cannot be read as a DICOM slice ({error}): remove it, or export it again.") from error
    if str(found.get("BurnedInAnnotation", "NO")).upper() == "YES":
        raise BratsError(f"{path} says that text is burned into its pixels (BurnedInAnnotation), which may name the patient: "
                         "it is not converted.")
    return found


def _stack(slices: Sequence[Dataset], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    along_x, along_y = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(along_x, along_y)
    heights = np.array([normal @ np.array(s.ImagePositionPatient, float) for s in slices])
    order = np.argsort(heights, kind="stable")
    steps = np.diff(heights[order])
    step = float(np.median(steps)) if len(steps) else float(slices[0].get("SliceThickness", 1))
    if len(steps) and (step < GAP or np.ptp(steps) > GAP):
        odd = int(np.abs(steps - step).argmax())
        raise BratsError(f"{folder}: {len(slices)} slices, most of them {step:.3f} mm apart, and {steps[odd]:.3f} mm after "
                         f"number {odd + 1}: a slice is missing or there twice; export the series again.")
    row_mm, column_mm = map(float, slices[0].PixelSpacing)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = along_x * column_mm, along_y * row_mm, normal * step
    lps[:3, 3] = np.array(slices[order[0]].ImagePositionPatient, float)
    volume = np.stack([_intensities(slices[i]).T for i in order], -1)
    return volume, TO_RAS @ lps


def _intensities(found: Dataset) -> np.ndarray:
    """A slice as numbers: int16 if the file's are stored as they are and fit, else float32; np.stack widens a mixture."""
    slope, intercept = float(found.get("RescaleSlope", 1)), float(found.get("RescaleIntercept", 0))
    pixels = found.pixel_array
    if (slope, intercept) == (1, 0) and pixels.max(initial=0) <= 32767:
        return pixels.astype(np.int16)
    return (pixels * slope + intercept).astype(np.float32)


def convert_series(folder: Path, path: Path) -> None:
    """Convert a folder of DICOM slices to one NIfTI file: voxels and affine, and nothing else of the headers.

    Names, dates and numbers in the DICOM headers are not taken over; a face in the voxels still is the patient's:
    remove it (skull-strip) before a scan leaves the hospital.
    """
    volume, affine = read_series(folder)
    image = nib.Nifti1Image(volume, affine)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
