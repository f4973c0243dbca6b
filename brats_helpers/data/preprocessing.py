"""From a scan to what the network reads, and back.

Crop to the brain, keep the scanner's integers (lossless, compressed, one file a patient), and leave
the z-score to the device that trains: its mean and deviation travel with the file. Arrays here are
(D, H, W) = (z, y, x) in the orientation LPS; `restore` goes back to the scan's own grid.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ..basics.constants import LABEL_SHORT, MODALITIES, ORIENTATION
from ..basics.errors import BratsError
from .cases import Patient
from .fingerprint import scan_fingerprint

FINER = 1.25                                          # a scan is resampled where its voxels are finer by this factor
SAMPLES = 500                                         # tumor voxels kept a label, to center patches on
# Fields of Meta that prepared files store under an older name.
STORED_NAMES = {"bounding_box": "box", "downsampling": "factor", "content_hash": "source", "fingerprint": "figures"}


@dataclass(frozen=True)
class Meta:
    """What is known of a prepared patient beside its voxels; enough to go back to the scan's own grid."""

    name: str
    shape: tuple[int, int, int]                       # of the scan, (X, Y, Z)
    affine: tuple[tuple[float, ...], ...]             # of the scan
    bounding_box: tuple[tuple[int, int], ...]                  # the brain in the scan, LPS, d h w: first and one past the last
    downsampling: tuple[float, float, float]                # voxels of the scan a voxel of the grid, d h w
    mean: tuple[float, ...]                           # of each modality over the brain
    std: tuple[float, ...]
    has_reference: bool
    content_hash: str                                       # fingerprint of the files
    tumor_rows: tuple[int, int] = (0, 0)              # of h, that the tumor is in: first and one past the last
    tumor_voxels: dict[str, list[int]] = field(default_factory=dict)   # label's short name -> places in the flat (D, H, W)
    fingerprint: dict[str, float] = field(default_factory=dict)       # of `fingerprint.scan_fingerprint`

    def to_json(self) -> dict:
        """Return the fields in order, under the names that prepared files use."""
        return {STORED_NAMES.get(name, name): value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, stored: dict) -> Meta:
        """Rebuild from what `to_json` wrote, once JSON has turned the tuples into lists."""
        values = {name: stored[STORED_NAMES.get(name, name)] for name in cls.__dataclass_fields__}
        for name in ("shape", "downsampling", "mean", "std", "tumor_rows"):
            values[name] = tuple(values[name])
        for name in ("affine", "bounding_box"):
            values[name] = tuple(map(tuple, values[name]))
        return cls(**values)


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


def bounding_box(mask: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The smallest box around a mask, first and one past the last voxel of each axis, from its projections."""
    plane = mask.any(axis=0)
    lines = (mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))
    return tuple((int(line.argmax()), int(len(line) - line[::-1].argmax())) for line in lines)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Find the largest connected part of a boolean mask; voxels are connected by faces."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()


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
        raise BratsError(f"patient {name}: {flat} has one value in all of the brain, which cannot be normalized; "
                         "get the file again, or leave this patient out.")
    return mean, std


def normalize(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Z-scores in the brain, 0 outside, and the brain as the fifth channel: (4, ...) to (5, ...) float32.

    The brain is found before the z-score: afterwards a large part of it is negative, and "above 0" finds
    only the voxels that are brighter than average. Reference for `augment.normalize_batch`.
    """
    mask = brain_mask(images)
    shape = (-1, *[1] * mask.ndim)
    scored = (images - np.reshape(mean, shape)) / np.reshape(std, shape)
    return np.concatenate([scored * mask, mask[None]]).astype(np.float32)


# ---------------------------------------------------------------- a patient

def prepare(patient: Patient, spacing_mm: float, content_hash: str = "") -> Prepared:
    """Turn to LPS, crop to the brain, and coarsen to `spacing_mm` where the scan is finer."""
    images = [to_lps(image, patient.affine) for image in patient.images]  # views: only what is in the box is copied
    mask = brain_mask(images)
    box = bounding_box(mask)
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
        tuple(mean.tolist()), tuple(std.tolist()), patient.reference is not None, content_hash, tumor_rows(volume[-1]),
        sample_voxels(volume[-1], patient.name), scan_fingerprint(volume[:-1], mean, std, np.multiply(factor, spacing), spacing)))


def tumor_rows(labels: np.ndarray) -> tuple[int, int]:
    """The rows of (D, H, W), along H, that a tumor is in: first and one past the last; (0, 0) where there is none."""
    return bounding_box(labels != 0)[1] if labels.any() else (0, 0)


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
    size = [stop - start for start, stop in meta.bounding_box]
    if max(meta.downsampling) > 1:
        array = rescale(array, meta.downsampling) if array.dtype.kind == "f" else _repeat(array, meta.downsampling, size)
    full = np.zeros((len(array), *meta.shape[::-1]), array.dtype).transpose(0, 3, 2, 1)     # laid out as the scan's voxels
    box = tuple(slice(*edge) for edge in meta.bounding_box)
    for channel, whole in zip(array, full, strict=True):
        to_lps(whole, np.array(meta.affine))[box] = channel[:size[0], :size[1], :size[2]]   # a view: whole is written to
    return full


def _repeat(array: np.ndarray, factor: Sequence[float], size: Sequence[int]) -> np.ndarray:
    for axis, (f, n) in enumerate(zip(factor, size, strict=True), start=1):
        nearest = np.minimum(((np.arange(n) + 0.5) / f).astype(int), array.shape[axis] - 1)
        array = array.take(nearest, axis)
    return array


def normalize_batch(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Raw intensities to the network's five channels.

    images (B, 4, D, H, W) of any type with 0 outside the brain; mean, std (B, 4) over the patient's
    brain. Returns (B, 5, D, H, W) float32: z-scores in the brain, 0 outside, and the brain itself.
    """
    brain = images[:, :1] != 0                        # before the z-score, which makes much of the brain negative
    for image in images[:, 1:].split(1, dim=1):
        brain |= image != 0
    out = torch.empty(len(images), images.shape[1] + 1, *images.shape[2:], device=images.device)
    shape = (*mean.shape, 1, 1, 1)
    out[:, :-1] = images                              # and the rest in place: memory is what takes the time here
    out[:, :-1].sub_(mean.view(shape)).div_(std.view(shape)).mul_(brain)
    out[:, -1:] = brain
    return out
