"""Compute a scan's fingerprint, as nnU-Net uses the word: statistics of size and intensities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ..basics.constants import MODALITIES

SAMPLED_VOXELS = 60_000  # about, on a grid in the brain's box
FEWEST_VOXELS = 1000  # of brain among them; with fewer, all voxels are used
QUANTILES = (0.05, 0.5, 0.95)  # of the z-scores in the brain


def scan_fingerprint(volume: np.ndarray, mean: Sequence[float], std: Sequence[float],
                     grid_mm: Sequence[float], spacing_mm: Sequence[float]) -> dict[str, float]:
    """Compute the statistics of one patient's images, (4, D, H, W), 0 outside the brain.

    grid_mm: voxel edges of the images, d h w. spacing_mm: of the stored scan, if coarser. Keys
    begin with the kind: "ml" and "mm" of the brain, "voxel" in mm, "z" a quantile of a modality,
    "r" the correlation of two modalities.
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


def _sample_brain(volume: np.ndarray, step: int) -> np.ndarray:
    """Take brain voxels on a grid with this step: (4, n)."""
    some = volume[:, ::step, ::step, ::step].reshape(len(volume), -1)
    return some[:, (some != 0).any(0)]
