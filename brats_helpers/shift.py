"""Domain shift: what the patients of a training looked like, and in what another patient differs from all of them.

A network's probabilities do not say how far a scan is from those that it learnt from, and the farther it is, the less they
can be trusted (Ovadia et al. 2019, arXiv:1906.02530). So a few plain figures of every patient are kept: the size of the brain
and of its voxels, the shape of each contrast's histogram, and how contrasts go together. A scan whose figures lie outside of
all that training saw is segmented all the same, with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import wasserstein_distance

from .constants import LABEL_SHORT, MODALITIES, MODALITY_TITLES

if TYPE_CHECKING:                                     # which imports this module
    from .preprocessing import Prepared

COMPARTMENTS = {0: "healthy", **LABEL_SHORT}
VOXELS = 2000                                         # of a patient's compartment, at most, when cohorts are compared
LOOKED_AT = 60_000                                    # voxels of the brain's box, about, on a grid
FEWEST_VOXELS = 1000                                  # of brain among them, or all are looked at
QUANTILES = (0.05, 0.5, 0.95)                         # of the z-scores in the brain
MARGIN = 1.0                                          # of a range's width, that a figure may lie outside before it is named
LEAST = {"ml": 150.0, "mm": 12.0, "voxel": 0.25, "z": 0.4, "r": 0.25}   # and at least that much, by kind of figure
FEWEST = 5                                            # patients that a range is worth anything from


def describe(volume: np.ndarray, mean: Sequence[float], std: Sequence[float], grid_mm: Sequence[float],
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


def ranges(patients: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The smallest and the largest of each figure over the patients of a training; empty for too few of them."""
    if len(patients) < FEWEST:
        return {}
    return {key: [min(p[key] for p in patients), max(p[key] for p in patients)] for key in patients[0]}


def widest(trainings: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """The ranges of several trainings together; empty where one of them is."""
    if not all(trainings):
        return {}
    return {key: [min(t[key][0] for t in trainings), max(t[key][1] for t in trainings)] for key in trainings[0]}


def unlike(figures: Mapping[str, float], seen: Mapping[str, Sequence[float]]) -> list[str]:
    """In what a patient lies far outside of what training saw, a sentence each; the farthest first."""
    found = []
    for key, (low, high) in seen.items():
        margin = max(MARGIN * (high - low), LEAST[key.split()[0]])
        excess = max(low - figures[key], figures[key] - high) / margin
        if excess > 1:
            found.append((excess, f"{_named(key)} is {figures[key]:.4g}, and was {low:.4g} to {high:.4g} in training"))
    return [text for _, text in sorted(found, reverse=True)]


def scores_of(patients: Sequence[Prepared], label: int) -> np.ndarray:
    """z-scores of one compartment (0: the brain without tumor) over some patients: (4, n)."""
    found = []
    for patient in patients:
        images, mean, std = patient.volume[:-1], patient.meta.mean, patient.meta.std
        inside = images[:, (patient.volume[-1] == label) & (images != 0).any(0)]
        inside = inside[:, ::max(1, inside.shape[1] // VOXELS)]
        found.append((inside - np.reshape(mean, (-1, 1))) / np.reshape(std, (-1, 1)))
    return np.concatenate(found, axis=1)


def distances(here: Sequence[Prepared], there: Sequence[Prepared]) -> dict[str, dict[str, float]]:
    """How far two cohorts' z-scores are apart: compartment -> contrast -> Wasserstein distance, in deviations of a brain.

    NaN where one of them has no voxel of a compartment.
    """
    table = {}
    for label, name in COMPARTMENTS.items():
        a, b = scores_of(here, label), scores_of(there, label)
        some = a.shape[1] and b.shape[1]
        table[name] = {title: float(wasserstein_distance(x, y)) if some else float("nan")
                       for title, x, y in zip(MODALITY_TITLES.values(), a, b, strict=True)}
    return table


def _named(key: str) -> str:
    kind, *rest = key.split()
    if kind == "z":
        return f"{MODALITY_TITLES[rest[0]]}'s {float(rest[1]):.0%} quantile of z-scores"
    if kind == "r":
        return f"the correlation of {MODALITY_TITLES[rest[0]]} with {MODALITY_TITLES[rest[1]]}"
    return {"ml": "the brain's volume in ml", "voxel": "the voxels' longest edge in mm"}.get(
        kind, f"the brain's extent {' '.join(rest)} in mm")
