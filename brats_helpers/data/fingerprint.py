"""The fingerprint of a scan: figures of its size, its intensities and how its contrasts go together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ..basics.constants import MODALITIES

LOOKED_AT = 60_000                                    # voxels of the brain's box, about, on a grid
FEWEST_VOXELS = 1000                                  # of brain among them, or all are looked at
QUANTILES = (0.05, 0.5, 0.95)                         # of the z-scores in the brain


def scan_fingerprint(volume: np.ndarray, mean: Sequence[float], std: Sequence[float], grid_mm: Sequence[float],
             spacing_mm: Sequence[float]) -> dict[str, float]:
    """The figures of one patient: images (4, D, H, W), 0 outside the brain, on voxels of `grid_mm` (d h w).

    spacing_mm: of the scan as it was stored; a finer one is no difference, for the network sees the grid. Keys begin with
    the kind of figure: "ml" and "mm" of the brain, "voxel" of the scan, "z" a contrast's quantile, "r" the correlation of
    two contrasts.
    """
    step = max(1, round((volume[0].size / LOOKED_AT) ** (1 / 3)))
    inside = _on_a_grid(volume, step)
    if inside.shape[1] < FEWEST_VOXELS:
        step, inside = 1, _on_a_grid(volume, 1)
    z = (inside - np.reshape(mean, (-1, 1))) / np.reshape(std, (-1, 1))
    figures = {"ml brain": inside.shape[1] * step**3 * float(np.prod(grid_mm)) / 1000,
               "voxel": float(np.maximum(spacing_mm, grid_mm).max())}
    extents = np.multiply(volume.shape[1:], grid_mm)
    figures |= {f"mm {name}": float(mm) for name, mm in zip(("up", "forward", "across"), extents, strict=True)}
    for name, values in zip(MODALITIES, np.quantile(z, QUANTILES, axis=1).T, strict=True):
        figures |= {f"z {name} {q}": float(value) for q, value in zip(QUANTILES, values, strict=True)}
    with np.errstate(invalid="ignore", divide="ignore"):      # a contrast may have one value where it is looked at
        together = np.nan_to_num(np.corrcoef(z))
    figures |= {f"r {MODALITIES[a]} {MODALITIES[b]}": float(together[a, b]) for a, b in combinations(range(len(z)), 2)}
    return figures


def _on_a_grid(volume: np.ndarray, step: int) -> np.ndarray:
    """What is brain on every so-manieth voxel along each axis: (4, n)."""
    some = volume[:, ::step, ::step, ::step].reshape(len(volume), -1)
    return some[:, (some != 0).any(0)]
