"""Compute a scan's fingerprint, in nnU-Net's sense: statistics of size and intensities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ..basics.constants import MODALITIES

SAMPLED_VOXELS = 60_000  # about, on a grid in the brain's box
FEWEST_VOXELS = 1000  # of brain among them; with fewer, all voxels are used
QUANTILES = (0.05, 0.5, 0.95)  # of the z-scores in the brain
TWIN_VOXELS = 200_000  # about, on a grid in the whole volume
TWIN_BANDS = 10  # of equal numbers of voxels, sorted by intensity


def scan_fingerprint(volume: np.ndarray, mean: Sequence[float], std: Sequence[float],
                     grid_mm: Sequence[float], spacing_mm: Sequence[float]) -> dict[str, float]:
    """Compute the statistics of one patient's images, (4, D, H, W), 0 outside the brain.

    `grid_mm` and `spacing_mm` are the voxel edges of the images and of the stored scan, d h w. Keys
    begin with the kind: "ml" and "mm" of the brain, "voxel" its longest edge in mm, "z" a quantile
    of a modality's z-scores, "r" the correlation of two modalities.
    """
    step = max(1, round((volume[0].size / SAMPLED_VOXELS) ** (1 / 3)))
    inside = _sample_brain(volume, step)
    if inside.shape[1] < FEWEST_VOXELS:
        step, inside = 1, _sample_brain(volume, 1)
    z = (inside - np.reshape(mean, (-1, 1))) / np.reshape(std, (-1, 1))
    found = {"ml brain": inside.shape[1] * step**3 * float(np.prod(grid_mm)) / 1000,
             "voxel": float(np.maximum(spacing_mm, grid_mm).max())}
    extents = np.multiply(volume.shape[1:], grid_mm)
    for name, mm in zip(("up", "forward", "across"), extents, strict=True):
        found[f"mm {name}"] = float(mm)
    for name, values in zip(MODALITIES, np.quantile(z, QUANTILES, axis=1).T, strict=True):
        found |= {f"z {name} {q}": float(v) for q, v in zip(QUANTILES, values, strict=True)}
    with np.errstate(invalid="ignore", divide="ignore"):  # a sampled modality may be constant
        r = np.nan_to_num(np.corrcoef(z))
    for a, b in combinations(range(len(z)), 2):
        found[f"r {MODALITIES[a]} {MODALITIES[b]}"] = float(r[a, b])
    return found


def identity(images: np.ndarray) -> list[float]:
    """Compute 46 numbers that copies of a patient's images, (4, X, Y, Z), have in common.

    They are means of the z-scores in the brain, in ten bands from the darkest voxels to the
    brightest, and the modalities' correlations; [] for almost no brain. Scaling, another type or a
    flip does not change them. Rounding the voxels to 8 bits moves them by up to 0.013, less than it
    moves quantiles. Of 12 real patients, the nearest two differ by 0.22.
    """
    step = max(1, round((images[0].size / TWIN_VOXELS) ** (1 / 3)))
    grid = tuple(_mirrored(size, step) for size in images.shape[1:])
    some = images[:, *grid].reshape(len(images), -1)
    inside = some[:, (some != 0).any(0)].astype(np.float64)
    if inside.shape[1] < TWIN_BANDS:
        return []
    with np.errstate(invalid="ignore", divide="ignore"):  # a sampled modality may be constant
        z = (inside - inside.mean(1, keepdims=True)) / inside.std(1, keepdims=True)
        r = np.corrcoef(z)[np.triu_indices(len(z), 1)]
    bands = np.array_split(np.sort(z, axis=1), TWIN_BANDS, axis=1)
    return np.nan_to_num([*np.ravel([band.mean(1) for band in bands]), *r]).round(4).tolist()


def _mirrored(size: int, step: int) -> slice:
    """Return a grid that is its own mirror image, with this step or a smaller one."""
    step = next(s for s in range(step, 0, -1) if (size - 1) % s % 2 == 0)
    return slice((size - 1) % step // 2, None, step)


def _sample_brain(volume: np.ndarray, step: int) -> np.ndarray:
    """Take brain voxels on a grid with this step: (4, n)."""
    some = volume[:, ::step, ::step, ::step].reshape(len(volume), -1)
    return some[:, (some != 0).any(0)]
