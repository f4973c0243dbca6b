"""Patients on disk: finding them, reading them, checking them, and writing masks.

Names are those of BraTS 2020 and 2021 (`_flair`, `_seg`) and of BraTS 2023 and later (`-t2f`,
`-seg`), and the 4D files of the Medical Segmentation Decathlon's Task01_BrainTumour (Antonelli et
al. 2022, doi:10.1038/s41467-022-30695-9), whose labels 1 (edema), 2 (non-enhancing) and 3
(enhancing) become 2, 1 and 3 here.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import NoReturn

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from ..basics.constants import ARCHIVE_ENDINGS, DISK_ET, ED, ET, LABEL_SHORT, MODALITIES, NCR
from ..basics.errors import BratsError
from ..basics.files import Packed, atomic_path, gunzip, read_json

SUFFIXES = {"flair": "flair", "t2f": "flair", "t1": "t1", "t1n": "t1", "t1ce": "t1ce", "t1c": "t1ce",
            "t2": "t2", "t2w": "t2", "seg": "seg"}
FILE_NAME = re.compile(r"^(?:(?P<case>.+?)[_-])?(?P<kind>" + "|".join(SUFFIXES) + r")\.nii(?:\.gz)?$", re.IGNORECASE)
NEW_NAME = re.compile(r"t2f\.nii", re.IGNORECASE)     # FLAIR's ending since BraTS 2023, when ET became 3
MSD_CHANNELS = {"flair": "flair", "t1w": "t1", "t1": "t1", "t1gd": "t1ce", "t1ce": "t1ce", "t2w": "t2", "t2": "t2"}
MSD_LABELS = {0: 0, 1: ED, 2: NCR, 3: ET}
BRATS_LABELS = {0: 0, 1: NCR, 2: ED, 3: ET, DISK_ET: ET}
TOLERANCE = 1e-3                                      # mm, between the affines of one patient's files
GZIP = b"\x1f\x8b"                                    # the first bytes of a .gz file
NIFTI2 = (b"\x1c\x02\0\0", b"\0\0\x02\x1c")           # the first bytes of a NIfTI-2 header, 540 in either byte order
LFS = b"version https://git-lfs"                      # the first bytes of a Git LFS pointer
WANTED = ("four files a patient named like X_flair.nii.gz, X_t1.nii.gz, X_t1ce.nii.gz, X_t2.nii.gz "
          "(or X-t2f, X-t1n, X-t1c, X-t2w), or the Decathlon's imagesTr with its dataset.json")


@dataclass(frozen=True)
class Case:
    """Where a patient's files are, on disk or in a plain tar."""

    name: str
    images: tuple[Path | Packed, ...]                 # one a modality, in the order of MODALITIES; or one 4D file
    reference: Path | Packed | None                   # the expert's segmentation, where there is one
    channels: tuple[int, ...] = ()                    # of a 4D file: where each modality is in it
    problem: str = ""                                 # why it cannot be read, where the names alone say so


@dataclass
class Patient:
    """A patient in memory, in the index order (X, Y, Z) and the orientation of the files."""

    name: str
    images: np.ndarray                                # (4, X, Y, Z) int16, or float32 where int16 would lose something
    reference: np.ndarray | None                      # (X, Y, Z) uint8, labels 0 to 3
    affine: np.ndarray                                # (4, 4), voxel indices to mm, right, anterior and superior positive

    @property
    def spacing(self) -> tuple[float, ...]:
        """Edges of a voxel in mm."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def orientation(self) -> str:
        """The directions in which the three indices grow, "LPS" for BraTS."""
        return "".join(nib.aff2axcodes(self.affine))


# ---------------------------------------------------------------- finding

def find_cases(folder: Path) -> list[Case]:
    """All patients below a folder, at any depth, sorted by name; BratsError where there is none.

    A patient with a modality missing or there twice is found, too: its `problem` says so, and reading it raises that.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BratsError(f"{folder} is not a folder: give one that holds {WANTED}.")
    files = [p for p in _files_below(folder) if not _hidden(p.relative_to(folder)) and p.is_file()]
    cases = _group(files) + [case for p in files if p.name == "dataset.json" for case in _msd_cases(p)]
    if not cases:
        packed = [p for p in files if p.name.lower().endswith(ARCHIVE_ENDINGS)]
        hint = f" There is an archive in it, {packed[0].name}: give that as the source." if packed else ""
        raise BratsError(f"no patient in {folder}: looked for {WANTED}.{hint}")
    return _unique(sorted(cases, key=lambda case: case.name))


def find_packed(files: Iterable[Packed], archive: Path) -> list[Case]:
    """All patients among the files of a plain tar, sorted by name; BratsError where there is none."""
    if cases := _group(files):
        return _unique(sorted(cases, key=lambda case: case.name))
    raise BratsError(f"no patient in {archive}: looked for {WANTED}.")


def on_disk(case: Case, folder: Path) -> Case:
    """The patient with files of his own: those that lie in a tar are written into `folder`."""
    def written(path: Path | Packed | None) -> Path | None:
        if not isinstance(path, Packed):
            return path
        with atomic_path(Path(folder) / case.name / path.name) as temporary:
            temporary.write_bytes(path.read_bytes())
        return Path(folder) / case.name / path.name
    return replace(case, images=tuple(map(written, case.images)), reference=written(case.reference))


def _group(files: Iterable[Path | Packed]) -> list[Case]:
    """The patients that files are of, by their names."""
    groups: dict[tuple[Path, str], dict[str, list[Path | Packed]]] = defaultdict(lambda: defaultdict(list))
    for path in files:
        if match := FILE_NAME.match(path.name):
            name = match["case"] or path.parent.name
            groups[path.parent, name][SUFFIXES[match["kind"].lower()]].append(path)
    return [_brats_case(name, found) for (_, name), found in groups.items()]


def _files_below(folder: Path) -> list[Path]:
    """All files at any depth, sorted; a folder that may not be read is an error, or its patients would be left out unsaid."""
    def stop(error: OSError) -> NoReturn:
        raise BratsError(f"{error.filename} cannot be read ({error.strerror}): allow it (chmod), or move it away.")
    found = []
    for root, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not _is_work_folder(Path(root, name))]
        found.extend(Path(root, name) for name in names)
    return sorted(found)


def _is_work_folder(folder: Path) -> bool:
    """Whether a run wrote this folder: the copies of patients in it are not patients of the source."""
    return (folder / "cohort.json").is_file() and (folder / "config.json").is_file()


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _brats_case(name: str, found: dict[str, list[Path | Packed]]) -> Case:
    here = next(iter(found.values()))[0].parent
    problem = "".join(
        f"patient {name} has {len(paths)} files for {kind}: {', '.join(map(str, paths))}; keep one. "
        for kind, paths in found.items() if len(paths) > 1)
    if missing := [m for m in MODALITIES if m not in found]:
        problem += (f"patient {name} in {here} has no file for {', '.join(missing)}; "
                    "all four modalities are needed: add the file or remove the patient.")
    images = tuple(found[m][0] for m in MODALITIES if m in found)
    return Case(name, images, found["seg"][0] if "seg" in found else None, problem=problem.strip())


def _msd_cases(index: Path) -> list[Case]:
    """The 4D patients that a Decathlon dataset.json lists; none where it describes another kind of dataset."""
    content = read_json(index, "the download of the Decathlon's Task01_BrainTumour")
    modality = content.get("modality")
    if not isinstance(modality, dict) or not isinstance(content.get("training"), list):
        return []
    names = [MSD_CHANNELS.get(modality[key].lower()) for key in sorted(modality, key=int)]
    if sorted(map(str, names)) != sorted(MODALITIES):
        raise BratsError(f"{index} lists the channels {list(modality.values())}: FLAIR, T1w, t1gd and T2w are needed.")
    channels = tuple(names.index(m) for m in MODALITIES)
    rows = [(row["image"], row["label"]) for row in content["training"]] + [(p, None) for p in content.get("test", [])]
    return [Case(Path(image).name.split(".nii")[0], (index.parent / image,), label and index.parent / label, channels)
            for image, label in rows if (index.parent / image).is_file()]


def _unique(cases: Sequence[Case]) -> list[Case]:
    for a, b in zip(cases, cases[1:], strict=False):
        if a.name == b.name:
            raise BratsError(f"two patients are called {a.name}: {a.images[0]} and {b.images[0]}; rename or remove one.")
    return list(cases)


# ---------------------------------------------------------------- reading

def read_case(case: Case) -> Patient:
    """Read and check a patient; BratsError names the patient, the file, what is wrong and what to do."""
    if case.problem:
        raise BratsError(case.problem)
    scans = [_open(case, path) for path in case.images]
    affine = scans[0].affine
    _check_geometry(case, scans)
    if case.channels:
        volume = _voxels(case, case.images[0], scans[0])
        arrays = [volume[..., c] for c in case.channels]
    else:
        arrays = [_voxels(case, path, scan) for path, scan in zip(case.images, scans, strict=True)]
    # One type for all four, float32 if any needs it; NIfTI's first index runs fastest in memory, and is left so.
    images = np.stack([_compact(a).T for a in arrays]).transpose(0, 3, 2, 1)
    for modality, image in zip(MODALITIES, images, strict=True):
        if not (image[..., image.shape[-1] // 2].any() or image.any()):   # the middle slice is enough, where it is not 0
            _fail(case, case.images[0], f"{modality} is 0 everywhere", "get the file again, or leave this patient out")
    return Patient(case.name, images, read_reference(case, images.shape[1:], affine), affine)


def _fail(case: Case, path: Path | Packed, problem: str, remedy: str) -> NoReturn:
    raise BratsError(f"patient {case.name}, {path}: {problem}; {remedy}.")


def _open(case: Case, path: Path | Packed) -> nib.Nifti1Image:
    """The image with its header read and its voxels not yet an array."""
    try:
        content = path.read_bytes()
        if content.startswith(LFS):
            _fail(case, path, "this is a Git LFS pointer, not the image", "run `git lfs pull` where it came from")
        if content.startswith(GZIP):
            content = gunzip(content)
        kind = nib.Nifti2Image if content[:4] in NIFTI2 else nib.Nifti1Image
        image = kind.from_bytes(content)
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError,
            OSError, ValueError, OverflowError) as error:
        _fail(case, path, f"cannot be opened as NIfTI ({error})", "get the file again")
    promised = prod(image.shape) * image.get_data_dtype().itemsize
    if promised > len(content):
        _fail(case, path, f"its header promises {promised:,} bytes of voxels, and it holds {len(content):,}",
              "the file is damaged: get it again")
    return image


def open_scan(case: Case) -> nib.Nifti1Image:
    """The patient's first image, its voxels not yet read."""
    return _open(case, case.images[0])


def _check_geometry(case: Case, scans: Sequence[nib.Nifti1Image]) -> None:
    wanted = 4 if case.channels else 3
    for path, scan in zip(case.images, scans, strict=True):
        if len(scan.shape) != wanted or min(scan.shape) < 1:
            _fail(case, path, f"its shape is {scan.shape}, and {wanted} dimensions are needed", "get the file again")
        if scan.shape != scans[0].shape:
            _fail(case, path, f"its shape {scan.shape} is not the {scans[0].shape} of {case.images[0].name}",
                  "the modalities must be registered to one grid")
        if not np.allclose(scan.affine, scans[0].affine, atol=TOLERANCE):
            _fail(case, path, f"its affine differs from that of {case.images[0].name}",
                  "the modalities must be registered to one grid")
    for path, scan in zip(case.images, scans, strict=True):
        edges, zooms = np.linalg.norm(scan.affine[:3, :3], axis=0), np.array(scan.header.get_zooms()[:3])
        if not np.allclose(edges, zooms, rtol=0.01):
            _fail(case, path, f"its voxels are {zooms.round(4)} mm by the header and {edges.round(4)} mm by the "
                  "affine", "correct the one that is wrong")
    matrix = scans[0].affine[:3, :3]
    along = np.abs(matrix) > 1e-3 * np.abs(matrix).max()                 # each index along one axis, each axis along one
    if not np.isfinite(matrix).all() or (along.sum(0) != 1).any() or (along.sum(1) != 1).any():
        _fail(case, case.images[0], "its axes are oblique to the body's (see the affine)",
              "resample it to an axis-aligned grid first")


def _voxels(case: Case, path: Path | Packed, image: nib.Nifti1Image) -> np.ndarray:
    """The voxels in their own type (scaled where the header says so), all finite."""
    try:
        array = _in_place(image.dataobj)
    except (OSError, ValueError, OverflowError) as error:
        _fail(case, path, f"its voxels cannot be read ({error})", "the file is damaged: get it again")
    if array.dtype.kind not in "iuf":
        _fail(case, path, f"its voxels are of type {array.dtype}: complex numbers or colors", "numbers are needed")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        _fail(case, path, f"{np.count_nonzero(~np.isfinite(array))} voxels are NaN or infinite", "repair or leave out")
    return array


def _in_place(stored: nib.arrayproxy.ArrayProxy) -> np.ndarray:
    """What a proxy stands for; where nothing is to be scaled, the bytes in memory themselves, which nibabel would copy."""
    content = stored.file_like.getbuffer()
    whole = 0 <= stored.offset <= len(content) - prod(stored.shape) * stored.dtype.itemsize
    if (stored.slope, stored.inter) != (1, 0) or not stored.dtype.isnative or not whole:
        return np.asanyarray(stored)                  # which says what is wrong where voxels are missing
    return np.ndarray(stored.shape, stored.dtype, content, stored.offset, order="F")


def _compact(array: np.ndarray) -> np.ndarray:
    """int16 where that loses nothing, else float32."""
    if array.dtype == np.int16 or array.dtype == np.uint8:
        return array.astype(np.int16, copy=False)
    low, high = array.min(), array.max()
    whole = array.dtype.kind in "iu" or bool((array == np.rint(array)).all())
    if whole and low >= -32768 and high <= 32767:
        return array.astype(np.int16)
    return array.astype(np.float32)


def read_reference(case: Case, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray | None:
    """The expert's labels, 0 to 3, (X, Y, Z) uint8, on a grid of this shape and affine; None where there are none."""
    if case.reference is None:
        return None
    image = _open(case, case.reference)
    if image.shape != shape:
        _fail(case, case.reference, f"its shape {image.shape} is not the images' {shape}", "use the matching reference")
    if not np.allclose(image.affine, affine, atol=TOLERANCE):
        _fail(case, case.reference, "its affine differs from the images'", "use the matching reference")
    array = _voxels(case, case.reference, image).T    # contiguous: NIfTI's first index runs fastest
    table = MSD_LABELS if case.channels else BRATS_LABELS
    where = np.flatnonzero(array != 0)                # few voxels are marked: the rest is done for them alone
    marked = array.ravel()[where]
    values = np.unique(marked).tolist()
    if bad := [v for v in values if v not in table]:
        _fail(case, case.reference, f"labels {bad[:5]} are not among {sorted(table)}", "use BraTS's own labels")
    if not case.channels and DISK_ET in values:
        if NEW_NAME.search(case.images[0].name):
            _fail(case, case.reference, "it has label 4, which in files named as since BraTS 2023 is a resection cavity "
                  "(BraTS 2024), and no class here", "leave this patient out, or set those voxels to 0")
        if 3 in values:
            _fail(case, case.reference, "it has both 3 and 4; before BraTS 2017 label 3 was the non-enhancing core, now "
                  "part of 1", "change its 3 to 1")
    labels = np.zeros(array.shape, np.uint8)
    labels.ravel()[where] = np.array([table.get(v, 0) for v in range(5)], np.uint8)[marked.astype(np.uint8)]
    return labels.T


# ---------------------------------------------------------------- checking

def check_case(case: Case) -> dict:
    """A row for the cohort's table: name, problems, shape, spacing_mm, orientation, dtype and volumes_ml by label."""
    row = {"name": case.name, "problems": [], "shape": None, "spacing_mm": None, "orientation": None, "dtype": None,
           "volumes_ml": None, "images": [str(p) for p in case.images],
           "reference": str(case.reference) if case.reference else None}
    try:
        patient = read_case(case)
    except BratsError as error:
        return row | {"problems": [str(error)]}
    volumes = None
    if patient.reference is not None:
        counts = np.bincount(patient.reference.ravel(), minlength=4) * np.prod(patient.spacing) / 1000
        volumes = {name: round(float(counts[label]), 3) for label, name in LABEL_SHORT.items()}
    return row | {"shape": patient.images.shape[1:], "orientation": patient.orientation, "volumes_ml": volumes,
                  "spacing_mm": [round(s, 4) for s in patient.spacing], "dtype": str(patient.images.dtype)}


def check_cohort(cases: Iterable[Case], jobs: int = -1) -> list[dict]:
    """`check_case` for every patient, in parallel and in order, with progress."""
    cases = list(cases)
    rows = Parallel(n_jobs=jobs, return_as="generator")(delayed(check_case)(case) for case in cases)
    return list(tqdm(rows, total=len(cases), desc="check", unit="patient"))


def content_sum(path: Path | Packed) -> int:
    """A checksum of a file's voxels; of a .gz it is gzip's own, its last eight bytes, and nothing else is read."""
    file = path if isinstance(path, Packed) else Packed(path, path.name, 0, path.stat().st_size)
    if path.name.lower().endswith(".gz"):
        return int.from_bytes(file.read_bytes(last=8), "little")
    return zlib.crc32(file.read_bytes())


def file_state(case: Case, path: Path | Packed) -> tuple[int, int]:
    """Size and checksum of one of a patient's files; BratsError where it is gone or may not be read."""
    try:
        return path.size if isinstance(path, Packed) else path.stat().st_size, content_sum(path)
    except OSError as error:
        _fail(case, path, f"cannot be read ({error})", "it was moved or deleted: put it back, or find the patients again")


def find_twins(cases: Iterable[Case]) -> list[list[str]]:
    """Groups of patients whose images are the same: one could be learnt from while its twin is judged on."""
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for case in cases:
        if not case.problem:
            groups[tuple(file_state(case, path)[1] for path in case.images)].append(case.name)
    return [names for names in groups.values() if len(names) > 1]


# ---------------------------------------------------------------- writing

def write_mask(path: Path, mask: np.ndarray, affine: np.ndarray, like: Case | None = None) -> None:
    """Write labels 0 to 3, (X, Y, Z), as BraTS wants them: 0, 1, 2, 4, uint8, with the geometry of the patient `like`."""
    image = nib.Nifti1Image(np.array([0, NCR, ED, DISK_ET], np.uint8)[mask], affine)
    if like is not None:
        header = open_scan(like).header
        image.header.set_xyzt_units(*header.get_xyzt_units())
        image.set_sform(affine, code=max(1, int(header["sform_code"])))
        image.set_qform(affine, code=max(1, int(header["qform_code"])))
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
