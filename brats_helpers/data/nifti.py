"""Open and compare a patient's NIfTI files; refuse them with a message that says what is wrong."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import NoReturn

import nibabel as nib
import numpy as np

from ..basics.constants import LARGEST_MM, SMALLEST_MM
from ..basics.errors import BratsError
from ..basics.files import GZIP, GZIP_HEADER, Packed, gunzip
from .records import Case

NIFTI2 = (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # of a NIfTI-2 header: 540 in either byte order
POINTERS = {  # the first bytes of files that only name the image, and what to do
    b"version https://git-lfs": ("Git LFS", "run `git lfs pull` where it came from"),
    b"/annex/objects": ("git-annex", "run `git annex get` there"),
    b"outs:": ("DVC", "run `dvc pull` where it came from")}
UNPACK, RECOMPRESS = "unpack it", "unpack it, or compress it by gzip"
CONVERT = "convert it to .nii.gz"
OTHERS = {  # the first bytes of files that are something else, and what to do
    b"<": ("a web page or XML, often a login or error page",
           "sign in where it came from and download it again"),
    b"PK\x03\x04": ("a zip archive", UNPACK),
    b"7z\xbc\xaf": ("a 7-Zip archive", UNPACK),
    b"Rar!": ("a RAR archive", UNPACK),
    b"BZh": ("compressed by bzip2", RECOMPRESS),
    b"\xfd7zXZ": ("compressed by xz", RECOMPRESS),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", RECOMPRESS),
    b"NRRD": ("an NRRD file", CONVERT),
    b"ObjectType": ("a MetaImage file", CONVERT),
    b"\x89HDF": ("an HDF5 or MINC file", CONVERT),
    b"{": ("JSON text, perhaps an error message", "download it again"),
    b"\x89PNG": ("a picture", "use the scan that it was made from")}
# What nibabel raises for headers that are not NIfTI's.
UNREADABLE = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError,
              nib.wrapstruct.WrapStructError, ValueError, OverflowError)
UNITS = {1: ("meters", 1000.0), 3: ("micrometers", 0.001)}  # NIfTI's codes, and mm in one of them
LARGEST_VOXELS = 2**28  # of a volume, 645 along each edge
LONGEST_MM = 1000  # edge of a volume
SLACK = 2**26  # bytes that a file may hold besides its voxels
SAME_GRID = 0.1  # of a voxel, by which two files of one grid may differ
EQUAL = 1e-3  # relative slack: float32 rounds the limits, and messages show four digits


def fail(case: Case, path: Path | Packed, problem: str, remedy: str) -> NoReturn:
    """Raise BratsError with the patient, the file, what is wrong and what to do."""
    raise BratsError(f"patient {case.name}, {path}: {problem}; {remedy}.")


def open_image(case: Case, path: Path | Packed) -> nib.Nifti1Image:
    """Open an image: its header is read, and its voxels are not yet an array.

    Compression is recognized by content, not by name. BratsError if it is not a sound NIfTI file.
    """
    content = b""
    try:
        most = _refuse_huge(case, path) + SLACK
        content = path.read_bytes()
        _refuse_others(case, path, content)
        for _ in range(3):  # some files are compressed twice
            if content.startswith(GZIP):
                content = gunzip(content, most)
                _refuse_others(case, path, content)
        kind = nib.Nifti2Image if content[:4] in NIFTI2 else nib.Nifti1Image
        image = kind.from_bytes(content)
    except OSError as error:
        fail(case, path, f"cannot be opened as NIfTI ({error})",
             "its content is cut short or damaged: get the file again" if content
             else "restore it, or allow it to be read")
    except UNREADABLE as error:
        fail(case, path, f"cannot be opened as NIfTI ({error})", "its header is not NIfTI's: "
             "export it again as .nii.gz, or leave this patient out")
    _check_size(case, path, image, len(content))
    shape = image.shape
    if len(shape) > 3 and set(shape[3:]) == {1} and not (case.channels and path in case.images):
        stored = image.dataobj  # (X, Y, Z, 1)
        place = (shape[:3], stored.dtype, stored.offset, stored.slope, stored.inter)
        array = nib.arrayproxy.ArrayProxy(stored.file_like, place)
        image = kind(array, image.affine, image.header, extra={"shape": shape})
    return image


def _check_size(case: Case, path: Path | Packed, image: nib.Nifti1Image, held: int) -> None:
    """Refuse a header that promises more bytes than the file holds, or dimensions below 1."""
    if min(image.shape, default=1) < 1:
        fail(case, path, f"its shape is {image.shape}, and every dimension must be 1 or more",
             "its header is damaged: get the file again")
    if image.dataobj.offset < image.header.single_vox_offset:
        fail(case, path, f"by its header, voxels begin at byte {image.dataobj.offset}, inside of "
             "the header", "its header is damaged: export it again")
    promised = prod(image.shape) * image.get_data_dtype().itemsize
    if promised > held:
        fail(case, path, f"its header promises {promised:,} bytes of voxels, and it holds {held:,}",
             "the file is damaged: get it again")


def _refuse_huge(case: Case, path: Path | Packed) -> int:
    """Refuse more voxels than a scan of a head has, by the header alone; returns their bytes.

    Zeros compress to a thousandth, so a small file may need more memory than there is.
    """
    place, offset = (path.archive, path.offset) if isinstance(path, Packed) else (path, 0)
    with open(place, "rb") as file:
        file.seek(offset)
        start = file.read(1 << 16)
    shape, size = (), 2**34
    with contextlib.suppress(zlib.error, *UNREADABLE):  # `open_image` names what is damaged
        for _ in range(3):
            if start.startswith(GZIP):
                start = zlib.decompressobj(GZIP_HEADER).decompress(start, 1 << 15)
        kind = nib.Nifti2Header if start[:4] in NIFTI2 else nib.Nifti1Header
        header = kind(start[:kind.template_dtype.itemsize], check=False)
        if header["magic"].item().startswith(b"n"):
            shape = header.get_data_shape()
            size = prod(map(abs, shape)) * int(header["bitpix"]) // 8
    if prod(shape[:3]) > LARGEST_VOXELS or prod(shape) > 4 * LARGEST_VOXELS:
        fail(case, path, f"its header promises {' x '.join(map(str, shape))} voxels, and a scan "
             f"of a head has at most {LARGEST_VOXELS:,}", "if the header is right, resample it to "
             "1 mm; if not, get the file again")
    return size


def _refuse_others(case: Case, path: Path | Packed, content: bytes) -> None:
    start = content[:64].lstrip(b"\xef\xbb\xbf \r\n\t")
    for magic, (title, remedy) in POINTERS.items():
        if start.startswith(magic):
            fail(case, path, f"this is a {title} pointer, not the image", remedy)
    others = [other for magic, other in OTHERS.items() if start.startswith(magic)]
    if not content:
        others = [("empty, 0 bytes", "copy or download it again")]
    if content[257:262] == b"ustar":
        others = [("a tar archive", UNPACK)]
    if content[128:132] == b"DICM":
        others = [("a DICOM file", "convert its series with dcm2niix")]
    for title, remedy in others:
        fail(case, path, f"cannot be opened as NIfTI (it is {title})", remedy)


def check_geometry(case: Case, scans: Sequence[nib.Nifti1Image]) -> None:
    """Raise BratsError for scans that are not on one axis-aligned grid of plausible voxels."""
    wanted, first = 4 if case.channels else 3, case.images[0]
    for path, scan in zip(case.images, scans, strict=True):
        if len(scan.shape) != wanted:
            several = wanted == 3 and len(scan.shape) > 3
            fail(case, path, f"its shape is {scan.shape}, and {wanted} dimensions are needed",
                 f"it holds {prod(scan.shape[3:])} volumes or colors: save the right one alone"
                 if several else "save it as one volume" if wanted == 3
                 else "save the four contrasts as one 4D file")
        if scan.shape != scans[0].shape:
            fail(case, path, f"its shape {scan.shape} is not the {scans[0].shape} of {first.name}",
                 "register the modalities to one grid")
        check_same_grid(case, path, scan, scans[0].affine, first.name)
    if case.channels and scans[0].shape[3] <= max(case.channels):
        fail(case, first, f"it has {scans[0].shape[3]} channel(s), and {max(case.channels) + 1} "
             "are needed", "add the missing contrasts, or correct dataset.json")
    for path, scan in zip(case.images, scans, strict=True):
        check_voxels(case, path, scan)
    matrix = scans[0].affine[:3, :3]
    along = np.abs(matrix) > 1e-3 * np.abs(matrix).max()  # each index along one axis, and one alone
    if (along.sum(0) != 1).any() or (along.sum(1) != 1).any():
        fail(case, first, "its axes are oblique to the body's (see the affine)",
             "resample it to an axis-aligned grid first")


def guessed_axes(case: Case, scans: Sequence[nib.Nifti1Image]) -> tuple[str, ...]:
    """Return a warning if headers do not tell the axes (both codes 0), or tell two of them."""
    torn = [path.name for path, scan in zip(case.images, scans, strict=True) if _contradicts(scan)]
    if torn:
        return (f"qform and sform of {', '.join(torn)} place the voxels differently: sform is "
                "used, and programs that use qform may show the mask elsewhere; write one in both",)
    silent = [path.name for path, scan in zip(case.images, scans, strict=True)
              if not (scan.header["sform_code"] or scan.header["qform_code"])]
    if not silent:
        return ()
    axes = "".join(nib.aff2axcodes(scans[0].affine))
    return (f"{', '.join(silent)} does not say where left, right and front are (sform_code and "
            f"qform_code are 0): {axes} is assumed; compare with the source, and write its affine",)


def _contradicts(scan: nib.Nifti1Image) -> bool:
    """Tell whether qform and sform, both set, place a corner over a voxel apart."""
    header = scan.header
    if not (header["sform_code"] and header["qform_code"]):
        return False
    with contextlib.suppress(*UNREADABLE):  # quaternions without a meaning
        moved = _farthest_mm(scan, header.get_qform() - header.get_sform())
        return bool(moved > max(header.get_zooms()[:3]))
    return False


def _farthest_mm(scan: nib.Nifti1Image, difference: np.ndarray) -> float:
    """Return how far apart two affines, of this difference, place a corner at most, in mm."""
    corners = [(*corner, 1) for corner in product(*((0, n - 1) for n in scan.shape[:3]))]
    return float(np.linalg.norm((difference @ np.array(corners).T)[:3], axis=0).max())


def check_voxels(case: Case, path: Path | Packed, scan: nib.Nifti1Image) -> None:
    """Raise BratsError for units other than mm, odd voxel sizes, or a header unlike its affine."""
    zooms = np.array(scan.header.get_zooms()[:3], float)
    edges = np.linalg.norm(scan.affine[:3, :3], axis=0)
    unit, factor = UNITS.get(int(scan.header["xyzt_units"]) & 7, ("mm", 1.0))
    if unit != "mm":
        fail(case, path, f"its header gives lengths in {unit}, so that its voxels of "
             f"{_size(zooms)} are {_size(zooms * factor)} mm; mm are needed",
             "write its affine in mm and set the unit by header.set_xyzt_units('mm'); if the "
             "numbers are mm already, set the unit alone")
    if not np.allclose(edges, zooms, rtol=0.01):
        fail(case, path, f"its voxels are {_size(zooms)} mm by the header and {_size(edges)} mm by "
             "the affine", "correct the one that is wrong")
    if edges.min() < SMALLEST_MM * (1 - EQUAL) or edges.max() > LARGEST_MM * (1 + EQUAL):
        fail(case, path, f"its voxels are {_size(edges)} mm, and {SMALLEST_MM} to {LARGEST_MM:g} "
             "mm are plausible", "correct the voxel size in its header, or resample it")
    if (lengths := edges * scan.shape[:3]).max() > LONGEST_MM:
        fail(case, path, f"its volume measures {_size(lengths)} mm, and a scan of a head at most "
             f"{LONGEST_MM:,} mm", "correct the voxel size in its header, or crop it")


def _size(edges: np.ndarray) -> str:
    return " x ".join(f"{edge:.4g}" for edge in edges)


def check_same_grid(case: Case, path: Path | Packed, scan: nib.Nifti1Image, affine: np.ndarray,
                    other: str) -> None:
    """Raise BratsError if an affine moves a corner of the volume by over a tenth of a voxel."""
    if not np.isfinite([scan.affine, affine]).all():
        fail(case, path, "its affine holds values that are NaN or infinite",
             "write it again with the affine of its source")
    moved = _farthest_mm(scan, scan.affine - affine)
    allowed = SAME_GRID * float(np.linalg.norm(affine[:3, :3], axis=0).min())
    if not moved <= allowed * (1 + EQUAL):  # also where it overflows
        fail(case, path, f"its affine differs from that of {other} by up to {moved:.4g} mm, and "
             f"{allowed:.4g} mm, a tenth of a voxel, is allowed", "register it to the same grid")


def voxels(case: Case, path: Path | Packed, image: nib.Nifti1Image) -> np.ndarray:
    """Return the voxels in their own type (scaled if the header has a scale), all finite.

    BratsError if they cannot be read, are not numbers, or are NaN or infinite.
    """
    try:
        array = _in_place(image.dataobj)
    except (OSError, ValueError, OverflowError) as error:
        fail(case, path, f"its voxels cannot be read ({error})",
             "the file is damaged: get it again")
    if array.dtype.kind not in "iuf":
        fail(case, path, f"its voxels are of type {array.dtype}: complex numbers or colors",
             "save it as one number per voxel")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        fail(case, path, f"{np.count_nonzero(~np.isfinite(array))} voxels are NaN or infinite",
             "set them to 0 if they lie outside the brain, or leave this patient out")
    return array


def _in_place(stored: nib.arrayproxy.ArrayProxy) -> np.ndarray:
    """Return a proxy's array; without scaling, the bytes in memory, which nibabel would copy."""
    content = stored.file_like.getbuffer()
    whole = 0 <= stored.offset <= len(content) - prod(stored.shape) * stored.dtype.itemsize
    if (stored.slope, stored.inter) != (1, 0) or not stored.dtype.isnative or not whole:
        return np.asanyarray(stored)  # raises if voxels are missing
    return np.ndarray(stored.shape, stored.dtype, content, stored.offset, order="F")
