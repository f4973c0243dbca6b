"""Compare the intensities of two cohorts, compartment by compartment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..basics.constants import LABEL_SHORT, MODALITY_TITLES
from ..data.preprocessing import Prepared

COMPARTMENTS = {0: "healthy", **LABEL_SHORT}
VOXELS = 2000  # up to twice as many are sampled from each patient's compartment


def z_scores_of(patients: Sequence[Prepared], label: int) -> np.ndarray:
    """Return z-scores of one compartment (0: brain without tumor) of some patients: (4, n)."""
    found = []
    for patient in patients:
        images, mean, std = patient.images, patient.meta.mean, patient.meta.std
        inside = images[:, (patient.reference == label) & (images != 0).any(0)]
        inside = inside[:, ::max(1, inside.shape[1] // VOXELS)]
        found.append((inside - np.reshape(mean, (-1, 1))) / np.reshape(std, (-1, 1)))
    return np.concatenate(found, axis=1)


def distances(here: Sequence[Prepared],
              there: Sequence[Prepared]) -> dict[str, dict[str, float]]:
    """Measure how far two cohorts' z-scores are apart, in standard deviations of a brain.

    Returns compartment -> modality -> Wasserstein distance, NaN if one has no such voxel.
    """
    from scipy.stats import wasserstein_distance  # takes a second to import
    table = {}
    for label, name in COMPARTMENTS.items():
        a, b = z_scores_of(here, label), z_scores_of(there, label)
        table[name] = {title: float(wasserstein_distance(x, y)) if x.size and y.size else np.nan
                       for title, x, y in zip(MODALITY_TITLES.values(), a, b, strict=True)}
    return table
