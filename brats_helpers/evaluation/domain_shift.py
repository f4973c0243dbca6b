"""Domain shift: what the patients of a training looked like, and in what another patient differs from all of them.

A network's probabilities do not say how far a scan is from those that it learnt from, and the farther it is, the less they
can be trusted (Ovadia et al. 2019, arXiv:1906.02530). So a few plain figures of every patient are kept: the size of the brain
and of its voxels, the shape of each contrast's histogram, and how contrasts go together. A scan whose figures lie outside of
all that training saw is segmented all the same, with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..basics.constants import MODALITY_TITLES

MARGIN = 1.0                                          # of a range's width, that a figure may lie outside before it is named
LEAST = {"ml": 150.0, "mm": 12.0, "voxel": 0.25, "z": 0.4, "r": 0.25}   # and at least that much, by kind of figure
FEWEST = 5                                            # patients that a range is worth anything from


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


def _named(key: str) -> str:
    kind, *rest = key.split()
    if kind == "z":
        return f"{MODALITY_TITLES[rest[0]]}'s {float(rest[1]):.0%} quantile of z-scores"
    if kind == "r":
        return f"the correlation of {MODALITY_TITLES[rest[0]]} with {MODALITY_TITLES[rest[1]]}"
    return {"ml": "the brain's volume in ml", "voxel": "the voxels' longest edge in mm"}.get(
        kind, f"the brain's extent {' '.join(rest)} in mm")
