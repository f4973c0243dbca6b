"""Compare the intensities of two cohorts, compartment by compartment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import wasserstein_distance

from ..basics.constants import LABEL_SHORT, MODALITY_TITLES
from ..data.preprocessing import Prepared

COMPARTMENTS = {0: "healthy", **LABEL_SHORT}
VOXELS = 2000                                         # of a patient's compartment, at most, when cohorts are compared


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
