"""Find, read and check patients on disk, and write masks.

File names are in `layouts`, lists like dataset.json in `datalists`, labels in `labels`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from ..basics.constants import LABEL_SHORT, MODALITIES
from ..basics.errors import BratsError
from ..basics.files import GZIP, Packed, atomic_path, write_file
from ..basics.jobs import death_message, worker_count, worker_death_errors
from .finding import find
from .fingerprint import identity
from .labels import lookup, numbering, refusal, rounded, scheme_of
from .nifti import (
    check_geometry,
    check_same_grid,
    fail,
    guessed_axes,
    open_image,
    voxels,
)
from .plausibility import oddities
from .records import Case, Patient

LARGEST = 1e15  # intensity, so that no sum of squares overflows
NESTED = ("one volume in which each region is painted over the larger one: first edema's label, "
          "then the core's, then the enhancing tumor's")
TWIN = 0.02  # largest difference between copies in the numbers of `identity`


def find_cases(folder: Path) -> list[Case]:
    """Return all patients below a folder, sorted by name, as `finding.find` does."""
    return find(folder).cases


def on_disk(case: Case, folder: Path) -> Case:
    """Return the patient with unpacked files; those in a tar are written into `folder`."""
    def written(path: Path | Packed | None) -> Path | None:
        if not isinstance(path, Packed):
            return path
        target = Path(folder) / case.name / path.name
        write_file(target, path.read_bytes())
        return target

    return replace(case, images=tuple(map(written, case.images)), reference=written(case.reference))


# ---- reading

def read_case(case: Case) -> Patient:
    """Read and check a patient; BratsError names patient, file, what is wrong and what to do."""
    if problem := case.problem or (case.reference and case.reference_problem):
        raise BratsError(problem)
    scans = [open_image(case, path) for path in case.images]
    affine = scans[0].affine
    check_geometry(case, scans)
    notes = tuple(f"{path.name} has the shape {scan.extra['shape']} and is read as {scan.shape}"
                  for path, scan in zip(case.images, scans, strict=True) if scan.extra)
    if case.channels:
        volume = voxels(case, case.images[0], scans[0])
        arrays = [volume[..., c] for c in case.channels]
    else:
        arrays = [voxels(case, path, scan) for path, scan in zip(case.images, scans, strict=True)]
    # One type for all four, float32 if any needs it; NIfTI's first index stays the fastest.
    paths = case.images * (len(arrays) // len(case.images))
    images = np.stack([_compact(case, path, a).T for path, a in zip(paths, arrays, strict=True)])
    images = images.transpose(0, 3, 2, 1)
    present = [m for m in MODALITIES if m not in case.missing]
    for n, image in enumerate(images):
        middle = image[..., image.shape[-1] // 2]  # usually enough
        if not (middle.any() or image.any()):
            fail(case, case.images[0 if case.channels else n], f"{present[n]} is 0 everywhere",
                 "export it again from its source, or leave this patient out")
    for n, name in enumerate(MODALITIES):
        if name in case.missing:
            images = np.insert(images, n, 0, axis=0)
    reference, number = read_reference(case, images.shape[1:], affine)
    return Patient(case.name, images, reference, affine, notes, number, guessed_axes(case, scans))


def incomplete(case: Case) -> Case:
    """Accept a patient who lacks modalities: `read_case` then fills them with 0."""
    only = case.images and case.problem.startswith(f"patient {case.name} in ")  # not "has 2 files"
    return replace(case, problem="") if case.missing and only else case


def _compact(case: Case, path: Path | Packed, array: np.ndarray) -> np.ndarray:
    """Convert to int16 where that loses nothing, else to float32."""
    if array.dtype in (np.int16, np.uint8):
        return array.astype(np.int16, copy=False)
    low, high = float(array.min()), float(array.max())  # -low would wrap in unsigned integers
    whole = array.dtype.kind in "iu" or bool((array == np.rint(array)).all())
    if whole and low >= -32768 and high <= 32767:
        return array.astype(np.int16)
    if max(-low, high) > LARGEST:
        fail(case, path, f"its values reach {max(-low, high):.3g}", "export it again with the "
             "scanner's intensities, or correct the scale in its header (scl_slope)")
    return array.astype(np.float32)


def read_reference(case: Case, shape: tuple[int, ...], affine: np.ndarray
                   ) -> tuple[np.ndarray | None, int]:
    """Read the expert's labels on a grid, 0 to 3, (X, Y, Z) uint8, and their `labels.numbering`.

    None and 0 without a reference.
    """
    if case.reference is None:
        return None, 0
    image = open_image(case, case.reference)
    if image.shape != shape:
        fail(case, case.reference, *_other_shape(case, image, shape))
    check_same_grid(case, case.reference, image, affine, "the images")
    array = voxels(case, case.reference, image).T  # contiguous: NIfTI's first index runs fastest
    where = np.flatnonzero(array != 0)  # few voxels are marked: handle them alone
    marked = rounded(array.ravel()[where])
    values = np.unique(marked).tolist()
    if wrong := refusal(case, values):
        fail(case, case.reference, *wrong)
    labels = np.zeros(array.shape, np.uint8)
    labels.ravel()[where] = lookup(scheme_of(case).table)[marked.astype(np.uint8)]
    return labels.T, numbering(case, values)


def _other_shape(case: Case, image: nib.Nifti1Image, shape: tuple[int, ...]) -> tuple[str, str]:
    """Return what is wrong with a reference of another shape, often one-hot, and what to do."""
    if len(image.shape) == 4 and shape in (image.shape[:3], image.shape[1:]):
        axis = 3 if image.shape[:3] == shape else 0
        array = voxels(case, case.reference, image)
        if ((array == 0) | (array == 1)).all():
            most = array.sum(axis, dtype=np.int64).max()
            return (f"its shape is {image.shape}: it looks one-hot, a mask of 0 and 1 for each "
                    f"{'label' if most < 2 else 'region, which overlap'}, and one volume of labels "
                    "is needed", f"save {_joined(array, axis) if most < 2 else NESTED}")
    return (f"its shape {image.shape} is not the images' {shape}",
            "use the reference that was drawn on these images")


def _joined(masks: np.ndarray, axis: int) -> str:
    """Return the expression that joins masks to labels 0, 1, 2 and so on."""
    whole = masks.any(axis).all()  # then the first mask is the background's
    return (f"np.argmax(masks, {axis})" if whole else f"np.where(masks.any({axis}), "
            f"np.argmax(masks, {axis}) + 1, 0)") + ", its numbers changed to the data set's labels"


# ---- checking

def check_case(case: Case) -> dict:
    """Return a row for the cohort's table.

    Keys: name, problems (why it cannot be used), warnings (what is likely wrong), notes, shape,
    spacing_mm, orientation, dtype, volumes_ml by label, images, reference, identity, enhancing (see
    `records.Patient`).
    """
    try:
        patient = read_case(case)
    except BratsError as error:
        return _row(case, str(error))
    except MemoryError:
        return _row(case, f"patient {case.name}: there is not enough memory for its scans; close "
                          "other programs, or use fewer processes.")
    volumes = None
    if patient.reference is not None:
        counts = np.bincount(patient.reference.ravel(), minlength=4)
        ml = counts * np.prod(patient.spacing) / 1000
        volumes = {name: round(float(ml[label]), 3) for label, name in LABEL_SHORT.items()}
    return _row(case) | {
        "shape": patient.images.shape[1:], "orientation": patient.orientation,
        "volumes_ml": volumes, "spacing_mm": [round(s, 4) for s in patient.spacing],
        "dtype": str(patient.images.dtype), "identity": identity(patient.images),
        "enhancing": patient.numbering, **oddities(patient)}


def _row(case: Case, *problems: str) -> dict:
    return {"name": case.name, "problems": list(problems), "warnings": [], "notes": [],
            **dict.fromkeys(("shape", "spacing_mm", "orientation", "dtype", "volumes_ml")),
            "identity": [], "enhancing": 0, "images": [str(p) for p in case.images],
            "reference": str(case.reference) if case.reference else None}


def check_cohort(cases: Iterable[Case], jobs: int = -1) -> list[dict]:
    """Run `check_case` on all patients in parallel, with progress; returns the rows in order.

    If a process dies, the remaining patients are checked one at a time.
    """
    cases, rows, alone = list(cases), [], False
    pool = Parallel(n_jobs=worker_count(jobs, len(cases)), return_as="generator")
    with tqdm(total=len(cases), desc="check", unit="patient") as progress:
        while len(rows) < len(cases):
            before = len(rows)
            try:
                for row in pool(map(delayed(check_case), cases[before:][:1 if alone else None])):
                    rows.append(row)
                    progress.update()
            except worker_death_errors() as error:
                if alone:
                    rows.append(_row(cases[before],
                                     f"patient {cases[before].name}: {death_message(error)}"))
                alone = True  # find out who kills the process
    return rows


def file_state(case: Case, path: Path | Packed) -> tuple[int, int]:
    """Return a file's size in bytes and its checksum; BratsError if it is gone or unreadable.

    The checksum is CRC-32; that of a gzip file is its own, the last eight bytes.
    """
    try:
        file = path if isinstance(path, Packed) else Packed(path, path.name, 0, path.stat().st_size)
        if file.starts_with(GZIP):  # whatever its name
            return file.size, int.from_bytes(file.read_bytes(last=8), "little")
        return file.size, zlib.crc32(file.read_bytes())
    except OSError as error:
        fail(case, path, f"cannot be read ({error})",
             "it was moved or deleted: put it back, or find the patients again")


def find_twins(rows: Iterable[Mapping]) -> list[list[str]]:
    """Return groups of patients with the same images, from the rows of `check_case`.

    Copies that were scaled, flipped, compressed again or saved as another type, even of 8 bits, are
    found, too. A group belongs on one side of a split.
    """
    rows = [row for row in rows if row.get("identity")]
    numbers, groups, grouped = np.array([row["identity"] for row in rows]), [], set()
    for n, row in enumerate(rows):
        if n not in grouped:
            same = np.flatnonzero(np.abs(numbers - numbers[n]).max(axis=1) <= TWIN).tolist()
            grouped.update(same)
            groups.append([row["name"], *(rows[i]["name"] for i in same if i > n)])
    return [names for names in groups if len(names) > 1]


# ---- writing

def write_mask(path: Path, mask: np.ndarray, affine: np.ndarray, like: Case | None = None) -> None:
    """Write a mask of labels 0 to 3, (X, Y, Z), as uint8, with the geometry of the case `like`.

    Labels on disk have the numbers of the patient's data set (`labels.scheme_of`); ET is 4 without
    `like`. BratsError if the disk is full or read-only.
    """
    on_disk = scheme_of(like or Case("", (), None)).on_disk
    image = nib.Nifti1Image(np.array(on_disk, np.uint8)[mask], affine)
    if like is not None:
        header = open_image(like, like.images[0]).header
        image.header["xyzt_units"] = header["xyzt_units"]
        image.set_sform(affine, code=max(1, int(header["sform_code"])))
        image.set_qform(affine, code=max(1, int(header["qform_code"])))
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
