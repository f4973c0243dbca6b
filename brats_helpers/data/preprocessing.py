"""Turn a scan into the network's input, and the network's arrays back to the scan's grid.

`prepare` crops a scan to the brain and keeps the scanner's integers. The training device computes
the z-score from the mean and standard deviation in the file. Arrays are (D, H, W) in LPS.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from math import ceil

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ..basics.constants import LABEL_SHORT, MODALITIES, ORIENTATION
from ..basics.device import Device
from ..basics.errors import BratsError
from .cases import Patient
from .fingerprint import scan_fingerprint
from .storage import Meta, Prepared

FINER = 1.25  # an axis is downsampled if its voxels are finer than the target by more than this
SAMPLES = 500  # tumor voxels kept of each label, to center patches on


# ---- the steps

def to_lps(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Reorient (X, Y, Z), in any axis-aligned orientation, to (D, H, W) in LPS; returns a view."""
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(ORIENTATION))
    return nib.apply_orientation(array, turn).T


def lps_spacing(spacing: Sequence[float], affine: np.ndarray) -> tuple[float, ...]:
    """Reorder voxel edges in mm from the file's axes to x, y, z of the body."""
    body_axes = nib.io_orientation(affine)[:, 0]  # of each of the file's axes
    return tuple(float(spacing[axis]) for axis in np.argsort(body_axes))


def brain_mask(images: Sequence[np.ndarray]) -> np.ndarray:
    """Mark the voxels, (...) bool, where any modality of (C, ...) is not 0; masks may differ."""
    mask = images[0] != 0
    for image in images[1:]:
        mask |= image != 0
    return mask


def bounding_box(mask: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Find the smallest box around a mask, (first, past the last) of each axis."""
    plane = mask.any(axis=0)
    lines = (mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))
    return tuple((int(line.argmax()), int(len(line) - line[::-1].argmax())) for line in lines)


def padded_box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Find the box around a mask, widened by `margin` voxels as far as the volume reaches."""
    return tuple(slice(max(0, low - margin), high + margin) for low, high in bounding_box(mask))


def slice_with_most_tumor(labels: np.ndarray, axis: int = -1) -> int:
    """Find the slice across an axis with the most tumor, or the middle one if there is none."""
    areas = np.moveaxis(labels > 0, axis, 0).sum((1, 2))
    return int(areas.argmax()) if areas.any() else len(areas) // 2


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Find the largest connected part of a boolean mask; voxels are connected by faces."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def statistics(images: np.ndarray, mask: np.ndarray,
               name: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Compute each modality's mean and standard deviation in the brain, both (C,) float64.

    0 and 1 stand for a modality that is 0 everywhere. BratsError if another one is constant.
    """
    mean, std = np.zeros(len(images)), np.zeros(len(images))
    for n, image in enumerate(images):
        if not image.any():  # a modality that was not scanned
            std[n] = 1
            continue
        values = image[mask].astype(np.float64)
        mean[n] = values.mean()
        values -= mean[n]  # in place, because memory access is the bottleneck
        std[n] = np.sqrt(np.square(values, out=values).mean())
    if not std.all():
        flat = ", ".join(m for m, s in zip(MODALITIES, std, strict=False) if s == 0)
        raise BratsError(f"patient {name}: {flat} has one value in all of the brain, which cannot "
                         "be normalized; get the file again, or leave this patient out.")
    return mean, std


def normalize(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Z-score the brain, set the rest to 0, append its mask: (4, ...) to (5, ...) float32.

    The brain is found first: after the z-score, "above 0" would find only voxels brighter than
    average. This is the reference for `normalize_batch`.
    """
    mask = brain_mask(images)
    shape = (-1, *[1] * mask.ndim)
    scored = (images - np.reshape(mean, shape)) / np.reshape(std, shape)
    return np.concatenate([scored * mask, mask[None]]).astype(np.float32)


def normalize_batch(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Z-score a batch on its device, as `normalize` does for one patient.

    images are (B, 4, D, H, W) of any type, 0 outside the brain; mean and std are (B, 4). Returns
    (B, 5, D, H, W) float32.
    """
    brain = images[:, :1] != 0
    for image in images[:, 1:].split(1, dim=1):
        brain |= image != 0
    out = torch.empty(len(images), images.shape[1] + 1, *images.shape[2:], device=images.device)
    shape = (*mean.shape, 1, 1, 1)
    out[:, :-1] = images  # and the rest in place: memory access is the bottleneck
    out[:, :-1].sub_(mean.view(shape)).div_(std.view(shape)).mul_(brain)
    out[:, -1:] = brain
    return out


def network_input(prepared: Prepared, device: Device) -> Tensor:
    """Put a prepared patient on the device as the network's input: (5, D, H, W) float32."""
    images = torch.from_numpy(prepared.images[None]).to(device.torch_device)
    mean, std = (torch.tensor([values], device=device.torch_device)
                 for values in (prepared.meta.mean, prepared.meta.std))
    return normalize_batch(images, mean, std)[0]


# ---- a patient

def prepare(patient: Patient, spacing_mm: float, content_hash: str = "") -> Prepared:
    """Reorient to LPS, crop to the brain, and downsample to `spacing_mm` (`FINER` is the limit).

    BratsError for a modality with one value in all of the brain.
    """
    scans = [to_lps(image, patient.affine) for image in patient.images]  # views
    mask = brain_mask(scans)
    box = bounding_box(mask)
    inside = tuple(slice(*edge) for edge in box)
    mask = mask[inside]
    volume = np.zeros((len(scans) + 1, *mask.shape), patient.images.dtype)
    for channel, scan in zip(volume, scans, strict=False):
        channel[:] = scan[inside]
    if patient.reference is not None:
        volume[-1] = to_lps(patient.reference, patient.affine)[inside]
    spacing = lps_spacing(patient.spacing, patient.affine)[::-1]  # d h w
    factor = tuple(float(spacing_mm / s) if spacing_mm / s > FINER else 1.0 for s in spacing)
    if max(factor) > 1:
        labels = downsample_labels(volume[-1], factor)
        images = downsample(volume[:-1], factor)
        volume = np.concatenate([images, labels[None].astype(images.dtype)])
        mask = brain_mask(volume[:-1])
    images, labels = volume[:-1], volume[-1]
    mean, std = statistics(images, mask, patient.name)
    return Prepared(volume, Meta(
        name=patient.name, shape=patient.images.shape[1:],
        affine=tuple(map(tuple, patient.affine.tolist())), bounding_box=box, downsampling=factor,
        mean=tuple(mean.tolist()), std=tuple(std.tolist()), content_hash=content_hash,
        has_reference=patient.reference is not None, tumor_rows=tumor_rows(labels),
        tumor_voxels=sample_voxels(labels, patient.name),
        fingerprint=scan_fingerprint(images, mean, std, np.multiply(factor, spacing), spacing)))


def tumor_rows(labels: np.ndarray) -> tuple[int, int]:
    """Find the rows of (D, H, W) along H with a tumor, (first, past the last); (0, 0) if none."""
    return bounding_box(labels != 0)[1] if labels.any() else (0, 0)


def sample_voxels(labels: np.ndarray, name: str) -> dict[str, list[int]]:
    """Draw at most SAMPLES voxels of each label, as flat indices; the name is the seed."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    tumor, found = np.flatnonzero(labels != 0), {}
    label_of = labels.ravel()[tumor]
    for label, short in LABEL_SHORT.items():
        voxels = tumor[label_of == label]
        found[short] = voxels[np.sort(rng.permutation(len(voxels))[:SAMPLES])].tolist()
    return found


# ---- grids

def downsample(images: np.ndarray, factor: Sequence[float]) -> np.ndarray:
    """Downsample images (C, D, H, W) in the same type; the last voxel may reach past the end.

    Interpolation is trilinear with edges aligned. A factor of 2 averages 2 x 2 x 2 voxels, and
    larger factors skip voxels.
    """
    small = rescale(images, [1 / f for f in factor])
    if images.dtype.kind == "f":
        return small.astype(np.float32)
    return np.rint(small).astype(images.dtype)


def downsample_labels(labels: np.ndarray, factor: Sequence[float]) -> np.ndarray:
    """Downsample labels (D, H, W): each voxel gets the label with the largest trilinear weight."""
    shares = rescale(np.stack([labels == n for n in range(4)]), [1 / f for f in factor])
    return shares.argmax(0).astype(np.uint8)


def rescale(array: np.ndarray, scale: Sequence[float]) -> np.ndarray:
    """Interpolate (C, D, H, W) trilinearly and keep the first voxel's outer edge in place."""
    tensor = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None]
    shape = array.shape[1:]
    target_shape = [ceil(round(n * s, 6)) for n, s in zip(shape, scale, strict=True)]
    # Pad the far end, then cut: rounding inside torch could make the result a voxel too short.
    pad = [max(0, ceil(t / s) + 1 - n) for t, n, s in zip(target_shape, shape, scale, strict=True)]
    tensor = F.pad(tensor, (0, pad[2], 0, pad[1], 0, pad[0]),
                   mode="replicate" if min(scale) >= 1 else "constant")
    scaled = F.interpolate(tensor, scale_factor=list(scale), mode="trilinear", align_corners=False,
                           recompute_scale_factor=False)[0].numpy()
    d, h, w = target_shape
    return scaled[:, :d, :h, :w]


def restore(array: np.ndarray, meta: Meta) -> np.ndarray:
    """Return an array on the prepared grid, (C, D, H, W), to the scan's, (C, X, Y, Z).

    It is 0 outside the brain's box. Probabilities (floating point) are interpolated; labels
    (integers) take the nearest voxel.
    """
    size = [stop - start for start, stop in meta.bounding_box]
    if max(meta.downsampling) > 1:
        if array.dtype.kind == "f":
            array = rescale(array, meta.downsampling)
        else:
            array = _nearest(array, meta.downsampling, size)
    full = np.zeros((len(array), *meta.shape[::-1]), array.dtype).transpose(0, 3, 2, 1)
    box = tuple(slice(*edge) for edge in meta.bounding_box)
    d, h, w = size
    for channel, whole in zip(array, full, strict=True):
        to_lps(whole, np.array(meta.affine))[box] = channel[:d, :h, :w]  # writes through a view
    return full


def _nearest(array: np.ndarray, factor: Sequence[float], size: Sequence[int]) -> np.ndarray:
    for axis, (f, n) in enumerate(zip(factor, size, strict=True), start=1):
        nearest = np.minimum(((np.arange(n) + 0.5) / f).astype(int), array.shape[axis] - 1)
        array = array.take(nearest, axis)
    return array
