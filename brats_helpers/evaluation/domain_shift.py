"""Domain shift: warn of a patient whose scan differs from all that a network was trained on.

A network's probabilities do not show how far a scan is from the training data, and the farther it
is, the less they can be trusted (Ovadia et al. 2019, arXiv:1906.02530). So a checkpoint keeps the
range of each statistic of `data.fingerprint` over the training patients. A patient far outside a
range is segmented with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..basics.constants import MODALITY_TITLES

Ranges = Mapping[str, Sequence[float]]  # statistic -> lowest and highest value
# A value may lie this many widths of its range outside it, or MIN_MARGIN if that is more.
MARGIN = 1.0
MIN_MARGIN = {"ml": 150.0, "mm": 12.0, "voxel": 0.25, "z": 0.4, "r": 0.25}  # by unit
MIN_PATIENTS = 5  # a range of fewer means nothing


def ranges(patients: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Find the range of each statistic over the training patients; empty for too few of them."""
    if len(patients) < MIN_PATIENTS:
        return {}
    return {key: [min(p[key] for p in patients), max(p[key] for p in patients)]
            for key in patients[0]}


def union_of_ranges(trainings: Sequence[Ranges]) -> dict[str, list[float]]:
    """Join the ranges of several training runs; empty if any of them is."""
    if not all(trainings):
        return {}
    return {key: [min(t[key][0] for t in trainings), max(t[key][1] for t in trainings)]
            for key in trainings[0]}


def outside_ranges(statistics: Mapping[str, float], training_ranges: Ranges) -> list[str]:
    """Describe each statistic of a patient that is far outside its range, the farthest first."""
    found = []
    for key, (low, high) in training_ranges.items():
        value = statistics.get(key, low)  # a file from elsewhere may have other keys
        margin = max(MARGIN * (high - low), MIN_MARGIN[key.split()[0]])
        excess = max(low - value, value - high) / margin
        if excess > 1:
            name, unit = _name_and_unit(key)
            found.append((excess, f"{name} is {value:.4g}{unit} "
                                  f"({low:.4g} to {high:.4g}{unit} in training)"))
    return [text for _, text in sorted(found, reverse=True)]


def _name_and_unit(key: str) -> tuple[str, str]:
    kind, *rest = key.split()
    if kind == "z":
        return f"{MODALITY_TITLES[rest[0]]}'s {100 * float(rest[1]):g}th percentile (z-score)", ""
    if kind == "r":
        return "the correlation of " + " with ".join(MODALITY_TITLES[name] for name in rest), ""
    if kind == "ml":
        return "the brain's volume", " ml"
    if kind == "voxel":
        return "the longest voxel edge", " mm"
    return f"the brain's {dict(up='height', forward='length', across='width')[rest[0]]}", " mm"
