"""From a scan to what the network reads, and back.

Crop to the brain, keep the scanner's integers (lossless, compressed, one file a patient), and leave
the z-score to the device that trains: its mean and deviation travel with the file. Arrays here are
(D, H, W) = (z, y, x) in the orientation LPS; `restore` goes back to the scan's own grid.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import blosc2
import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from joblib import Parallel, delayed
from tqdm import tqdm

from .cases import Case, Patient, file_state, read_case
from .constants import LABEL_SHORT, MODALITIES, ORIENTATION
from .errors import BratsError
from .files import atomic_path, isal_zlib, sweep
from .shift import describe

FORMAT = 5                                            # of a prepared file
AGAIN = "run notebook 03 again, which makes it anew"
FINER = 1.25                                          # a scan is resampled where its voxels are finer by this factor
SAMPLES = 500                                         # tumor voxels kept a label, to centre patches on
# A seventh more bytes than zstd, and a patch in two thirds of the time (benchmarks/README.md).
COMPRESSION = {"codec": blosc2.Codec.LZ4HC, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
ROWS = 8                                              # of a channel, in all slices: a block, decompressed as a whole


@dataclass(frozen=True)
class Meta:
    """What is known of a prepared patient beside its voxels; enough to go back to the scan's own grid."""

    name: str
    shape: tuple[int, int, int]                       # of the scan, (X, Y, Z)
    affine: tuple[tuple[float, ...], ...]             # of the scan
    box: tuple[tuple[int, int], ...]                  # the brain in the scan, LPS, d h w: first and one past the last
    factor: tuple[float, float, float]                # voxels of the scan a voxel of the grid, d h w
    mean: tuple[float, ...]                           # of each modality over the brain
    std: tuple[float, ...]
    has_reference: bool
    source: str                                       # fingerprint of the files
    tumor_rows: tuple[int, int] = (0, 0)              # of h, that the tumor is in: first and one past the last
    tumor_voxels: dict[str, list[int]] = field(default_factory=dict)   # label's short name -> places in the flat (D, H, W)
    figures: dict[str, float] = field(default_factory=dict)       # of `shift.describe`


@dataclass
class Prepared:
    """A patient as the network's data path stores it."""

    volume: np.ndarray                                # (5, D, H, W): four modalities, and labels 0 to 3 (0: no reference)
    meta: Meta


# ---------------------------------------------------------------- the steps

def to_lps(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(X, Y, Z) in any axis-aligned orientation to (D, H, W) in LPS; a view, nothing is copied."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(ORIENTATION))
    return nib.apply_orientation(array, turn).T


def lps_spacing(spacing: Sequence[float], affine: np.ndarray) -> tuple[float, ...]:
    """Voxel edges in mm, given for the file's axes, in the order x y z of the body."""
    axes = nib.io_orientation(affine)[:, 0].astype(int)                   # the file's axis i is the body's axes[i]
    return tuple(float(spacing[int(np.flatnonzero(axes == body)[0])]) for body in range(3))


def brain_mask(images: Sequence[np.ndarray]) -> np.ndarray:
    """Where any modality is not 0: (C, ...) to (...) bool. Modalities' own masks differ in some patients."""
    mask = images[0] != 0
    for image in images[1:]:
        mask |= image != 0
    return mask


def brain_box(mask: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The smallest box around a mask, first and one past the last voxel of each axis, from its projections."""
    plane = mask.any(axis=0)
    lines = (mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))
    return tuple((int(line.argmax()), int(len(line) - line[::-1].argmax())) for line in lines)


def statistics(images: np.ndarray, mask: np.ndarray, name: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each modality over the brain, both (C,) float64."""
    mean, std = np.zeros(len(images)), np.zeros(len(images))
    for n, image in enumerate(images):
        values = image[mask].astype(np.float64)
        mean[n] = values.mean()
        values -= mean[n]                             # in place: memory is what takes the time here
        std[n] = np.sqrt(np.square(values, out=values).mean())
    if not std.all():
        flat = ", ".join(m for m, s in zip(MODALITIES, std, strict=False) if s == 0)
        raise BratsError(f"patient {name}: {flat} has one value in all of the brain, which cannot be normalised; "
                         "get the file again, or leave this patient out.")
    return mean, std


def normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Z-scores in the brain, 0 outside, and the brain as the fifth channel: (4, ...) to (5, ...) float32.

    The brain is found before the z-score: afterwards a large part of it is negative, and "above 0" finds
    only the voxels that are brighter than average. Reference for `augment.normalise_batch`.
    """
    mask = brain_mask(images)
    shape = (-1, *[1] * mask.ndim)
    scored = (images - np.reshape(mean, shape)) / np.reshape(std, shape)
    return np.concatenate([scored * mask, mask[None]]).astype(np.float32)


# ---------------------------------------------------------------- a patient

def prepare(patient: Patient, spacing_mm: float, source: str = "") -> Prepared:
    """Turn to LPS, crop to the brain, and coarsen to `spacing_mm` where the scan is finer."""
    images = [to_lps(image, patient.affine) for image in patient.images]  # views: only what is in the box is copied
    mask = brain_mask(images)
    box = brain_box(mask)
    inside = tuple(slice(*edge) for edge in box)
    mask = mask[inside]
    volume = np.zeros((len(images) + 1, *mask.shape), patient.images.dtype)
    for channel, image in zip(volume, images, strict=False):
        channel[:] = image[inside]
    if patient.reference is not None:
        volume[-1] = to_lps(patient.reference, patient.affine)[inside]
    spacing = lps_spacing(patient.spacing, patient.affine)[::-1]          # d h w
    factor = tuple(float(spacing_mm / s) if spacing_mm / s > FINER else 1.0 for s in spacing)
    if max(factor) > 1:
        labels = coarsen_labels(volume[-1], factor)
        volume = np.concatenate([coarsen(volume[:-1], factor), labels[None].astype(volume.dtype)])
        mask = brain_mask(volume[:-1])
    mean, std = statistics(volume[:-1], mask, patient.name)
    return Prepared(volume, Meta(
        patient.name, patient.images.shape[1:], tuple(map(tuple, patient.affine.tolist())), box, factor,
        tuple(mean.tolist()), tuple(std.tolist()), patient.reference is not None, source, tumor_rows(volume[-1]),
        sample_voxels(volume[-1], patient.name), describe(volume[:-1], mean, std, np.multiply(factor, spacing), spacing)))


def tumor_rows(labels: np.ndarray) -> tuple[int, int]:
    """The rows of (D, H, W), along H, that a tumor is in: first and one past the last; (0, 0) where there is none."""
    return brain_box(labels != 0)[1] if labels.any() else (0, 0)


def sample_voxels(labels: np.ndarray, name: str) -> dict[str, list[int]]:
    """At most SAMPLES voxels of each tumor label, places in the flat array, drawn with the patient's name as the seed."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    marked, found = np.flatnonzero(labels != 0), {}
    kinds = labels.ravel()[marked]
    for label, short in LABEL_SHORT.items():
        voxels = marked[kinds == label]
        found[short] = voxels[np.sort(rng.permutation(len(voxels))[:SAMPLES])].tolist()
    return found


# ---------------------------------------------------------------- grids

def coarsen(images: np.ndarray, factor: Sequence[float]) -> np.ndarray:
    """Images (C, D, H, W) on a grid coarser by `factor`, in the same type; the last voxel may reach past the end.

    Trilinear with edges aligned: at a factor of 2 this is the mean of 2 x 2 x 2 voxels.
    """
    small = rescale(images, [1 / f for f in factor])
    return small.astype(np.float32) if images.dtype.kind == "f" else np.rint(small).astype(images.dtype)


def coarsen_labels(labels: np.ndarray, factor: Sequence[float]) -> np.ndarray:
    """Labels (D, H, W) by majority: the class that has the largest share of the coarser voxel."""
    shares = rescale(np.stack([labels == n for n in range(4)]), [1 / f for f in factor])
    return shares.argmax(0).astype(np.uint8)


def rescale(array: np.ndarray, scale: Sequence[float]) -> np.ndarray:
    """Trilinear interpolation of (C, D, H, W) that keeps the first voxel's outer edge in place."""
    tensor = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None]
    wanted = [ceil(round(n * s, 6)) if s < 1 else ceil(n * s - 1e-6) for n, s in zip(array.shape[1:], scale, strict=True)]
    # Enough voxels at the far end that rounding in floating point cannot make the result a voxel short; then cut.
    spare = [max(0, ceil(w / s) + 1 - n) for w, n, s in zip(wanted, array.shape[1:], scale, strict=True)]
    tensor = F.pad(tensor, [p for n in reversed(spare) for p in (0, n)], mode="replicate" if min(scale) >= 1 else "constant")
    scaled = F.interpolate(tensor, scale_factor=list(scale), mode="trilinear", align_corners=False,
                           recompute_scale_factor=False)[0].numpy()
    return scaled[:, :wanted[0], :wanted[1], :wanted[2]]


def restore(array: np.ndarray, meta: Meta) -> np.ndarray:
    """An array on the prepared grid, (C, D, H, W), back on the scan's: (C, X, Y, Z), 0 outside the brain's box.

    Floating point (probabilities) is interpolated, integers (labels) take the nearest voxel.
    """
    size = [stop - start for start, stop in meta.box]
    if max(meta.factor) > 1:
        array = rescale(array, meta.factor) if array.dtype.kind == "f" else _repeat(array, meta.factor, size)
    full = np.zeros((len(array), *meta.shape[::-1]), array.dtype).transpose(0, 3, 2, 1)     # laid out as the scan's voxels
    box = tuple(slice(*edge) for edge in meta.box)
    for channel, whole in zip(array, full, strict=True):
        to_lps(whole, np.array(meta.affine))[box] = channel[:size[0], :size[1], :size[2]]   # a view: whole is written to
    return full


def _repeat(array: np.ndarray, factor: Sequence[float], size: Sequence[int]) -> np.ndarray:
    for axis, (f, n) in enumerate(zip(factor, size, strict=True), start=1):
        nearest = np.minimum(((np.arange(n) + 0.5) / f).astype(int), array.shape[axis] - 1)
        array = array.take(nearest, axis)
    return array


# ---------------------------------------------------------------- files

def save(prepared: Prepared, path: Path) -> None:
    """Write a prepared patient as one Blosc2 array: LZ4 over shuffled integers, its Meta among the metadata."""
    _, depth, height, width = prepared.volume.shape
    with atomic_path(path) as temporary:
        temporary.unlink()                            # Blosc2 makes the file itself
        array = blosc2.asarray(prepared.volume, urlpath=str(temporary), chunks=(1, depth, height, width),
                               blocks=(1, depth, min(ROWS, height), width), cparams=COMPRESSION)
        # As JSON: Blosc2's own encoding of nested lists fails on empty ones before some 4.x.
        array.schunk.vlmeta["meta"] = json.dumps({"format": FORMAT, "checksum": checksum(prepared), **vars(prepared.meta)})


def checksum(prepared: Prepared) -> int:
    """CRC-32 of the voxels and of what is known of them: a disk's silent error must not become a network's."""
    return isal_zlib.crc32(np.ascontiguousarray(prepared.volume), zlib.crc32(json.dumps(vars(prepared.meta)).encode()))


def open_volume(path: Path) -> tuple[blosc2.NDArray, Meta]:
    """A prepared file, opened: an array (5, D, H, W) that decompresses what is asked of it, and its Meta.

    Patches are read unchecked, for speed; `prepared_files` and `load` compare the checksum.
    """
    array = _open(path)
    return array, _meta(_stored(array, path))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a damaged file raises becomes a BratsError; a SyntaxError is NumPy's, from what should name a type."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, SyntaxError) as error:
        raise BratsError(f"{path} is damaged ({error}): {AGAIN}.") from error


def _open(path: Path) -> blosc2.NDArray:
    if not Path(path).is_file():
        raise BratsError(f"{path} is missing: run notebook 03 first, which prepares the patients.")
    with _reading(path):                              # mapped: read where it is looked at, and the file does not stay open
        mapped = torch.from_file(str(path), size=Path(path).stat().st_size, dtype=torch.uint8).numpy()
    return open_mapped(mapped, path)


def open_mapped(mapped: np.ndarray, path: Path) -> blosc2.NDArray:
    """The array in a prepared file's bytes, (N,) uint8, which are not copied: what `open_volume` keeps as its `mapped`."""
    with _reading(path):
        array = blosc2.ndarray_from_cframe(mapped)    # what `blosc2.open` does too, after much else
        array.mapped = mapped                         # kept as long as the array, by old versions as well
        if array.chunks != (1, *array.shape[1:]) or array.schunk.nchunks != len(array):
            raise ValueError(f"a shape of {array.shape}")
    return array


def _stored(array: blosc2.NDArray, path: Path) -> dict:
    with _reading(path):
        text = array.schunk.vlmeta["meta"]
        stored = json.loads(text) if isinstance(text, str) else {}
        if stored.pop("format", None) != FORMAT:
            raise BratsError(f"{path} was written by another version: {AGAIN}.")
    return stored


def read_patch(array: blosc2.NDArray, meta: Meta, corner: Sequence[int], into: np.ndarray) -> None:
    """Fill (5, d, h, w) with the voxels from `corner` on, (3,) in d h w; with 0, the background, outside of the volume.

    Slicing the array gives the same, later: here each block is still in the processor's cache when what is wanted of it
    is copied to its place, and what has no tumor in the reference is not read.
    """
    _, depth, height, width = array.shape
    rows, schunk = array.blocks[2], array.schunk
    first, last = np.maximum(corner, 0).tolist(), np.minimum(np.add(corner, into.shape[1:]), array.shape[1:]).tolist()
    d, h, w = (slice(a - c, b - c) for a, b, c in zip(first, last, corner, strict=True))
    block = np.empty((depth, rows, width), array.dtype)
    wanted = block[first[0]:last[0], :, first[2]:last[2]]
    narrow = wanted.shape[::2] != into.shape[1::2]
    tumor = range(meta.tumor_rows[0] // rows, ceil(meta.tumor_rows[1] / rows))
    pieces = []                                       # a block's number, what is wanted of its rows, and where that goes
    for number in range(first[1] // rows, ceil(last[1] / rows)):
        low, high = max(number * rows, first[1]), min((number + 1) * rows, last[1])
        pieces.append((number, slice(low - number * rows, high - number * rows), slice(low - corner[1], high - corner[1])))
    into[:, :, :h.start] = into[:, :, h.stop:] = 0
    for channel, place in enumerate(into):
        for number, some, there in pieces:
            if channel == len(MODALITIES) and number not in tumor:
                place[:, there] = 0
                continue
            begin = (channel * ceil(height / rows) + number) * block.size
            schunk.get_slice(begin, begin + block.size, block)
            if narrow:                                # while it is in the cache, too
                place[:, there] = 0
            place[d, there, w] = wanted[:, some]


def _meta(stored: dict) -> Meta:
    return Meta(**{k: tuple(map(tuple, v)) if k in ("affine", "box") else tuple(v) if isinstance(v, list) else v
                   for k, v in stored.items() if k != "checksum"})


def load(path: Path) -> Prepared:
    """Read a whole prepared patient into memory; BratsError where it is not what was written."""
    array = _open(path)
    stored = _stored(array, path)
    with _reading(path):
        prepared, written = Prepared(np.empty(array.shape, array.dtype), _meta(stored)), stored["checksum"]
        read_patch(array, prepared.meta, (0, 0, 0), prepared.volume)
    if checksum(prepared) != written:
        raise BratsError(f"{path} is damaged (its checksum is not that of its content): {AGAIN}.")
    return prepared


# ---------------------------------------------------------------- a cohort

def fingerprint(case: Case, spacing_mm: float) -> str:
    """Changes with a patient's files and with the target grid; of a .gz it reads gzip's own checksum, 8 bytes."""
    digest = hashlib.sha256(f"{FORMAT} {spacing_mm}".encode())
    for path in (*case.images, case.reference):
        if path is not None:
            size, checksum = file_state(case, path)
            digest.update(f"{path.name} {size} {checksum}".encode())
    return digest.hexdigest()[:16]


def preprocess_case(case: Case, folder: Path, spacing_mm: float) -> Meta:
    """Prepare one patient into `folder`/<name>.b2nd, unless the same is there already."""
    path, source = Path(folder) / f"{case.name}.b2nd", fingerprint(case, spacing_mm)
    with contextlib.suppress(BratsError):             # missing, damaged or of another version: made anew
        before = load(path)
        if before.meta.source == source:
            return before.meta
    prepared = prepare(read_case(case), spacing_mm, source)
    save(prepared, path)
    return prepared.meta


def preprocess_cohort(cases: Sequence[Case], folder: Path, spacing_mm: float, jobs: int = -1) -> list[Meta]:
    """Prepare all patients, in parallel and with progress; what is there already is kept."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    sweep(folder)
    metas = Parallel(n_jobs=jobs, return_as="generator")(
        delayed(preprocess_case)(case, folder, spacing_mm) for case in cases)
    return list(tqdm(metas, total=len(cases), desc="preprocess", unit="patient"))


def prepared_files(cases: Sequence[Case], folder: Path, spacing_mm: float) -> dict[str, Path]:
    """The prepared file of each patient, by name; BratsError where one is missing, damaged or made from another scan or
    grid. Reads every file once, with progress."""
    files = {case.name: Path(folder) / f"{case.name}.b2nd" for case in cases}
    metas = Parallel(n_jobs=-1, prefer="threads", return_as="generator")(delayed(_meta_of)(path) for path in files.values())
    checked = tqdm(zip(cases, metas, strict=True), total=len(cases), desc="compare with the scans", unit="patient")
    stale = [case.name for case, meta in checked if meta.source != fingerprint(case, spacing_mm)]
    if stale:
        raise BratsError(f"{len(stale)} prepared file(s) in {folder} are from other scans or another voxel size "
                         f"({', '.join(stale[:3])}{', ...' if len(stale) > 3 else ''}): run notebook 03 again.")
    return files


def _meta_of(path: Path) -> Meta:
    return load(path).meta


def verify_prepared(case: Case, path: Path) -> list[str]:
    """Compare a prepared file with the scan, voxel by voxel; returns what is wrong, an empty list if nothing is."""
    prepared, patient = load(path), read_case(case)
    problems = []
    outside = brain_mask(patient.images)
    if max(prepared.meta.factor) > 1:                 # coarsened: the geometry is what can be compared
        back = restore(prepared.volume, prepared.meta)
        overlap = 2 * np.sum(brain_mask(back[:4]) & outside) / (brain_mask(back[:4]).sum() + outside.sum())
        return [] if overlap > 0.95 else [f"the coarsened brain overlaps the scan's by {overlap:.2f} (Dice)"]
    back = restore(prepared.volume, prepared.meta)
    for modality, image, scan in zip(MODALITIES, back, patient.images, strict=False):
        if not np.array_equal(image, scan):
            problems.append(f"{modality}: {np.count_nonzero(image != scan)} voxels differ")
    if patient.reference is not None and not np.array_equal(back[4], patient.reference):
        problems.append("the reference differs")
    return problems
