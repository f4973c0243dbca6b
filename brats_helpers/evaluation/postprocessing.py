"""From probabilities of three regions to one label for each voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ..basics.constants import (
    ED,
    ET,
    NCR,
    REGION_THRESHOLDS,
    SMALL_COMPONENT_MM3,
    SMALL_PROBABILITY,
    SMALL_TOTAL_MM3,
)
from ..data.preprocessing import bounding_box

POSTPROCESSING = (REGION_THRESHOLDS, SMALL_COMPONENT_MM3, SMALL_TOTAL_MM3, SMALL_PROBABILITY)


def postprocess(probabilities: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Turn probabilities of WT, TC and ET, (3, X, Y, Z), into labels 0 to 3, (X, Y, Z) uint8.

    A voxel below WT's threshold is background; of the rest, one below TC's is edema, one below
    ET's is non-enhancing core, and all others are ET. Then ET that is small and has a low mean
    probability becomes non-enhancing core: first each component, then ET as a whole.
    """
    full = np.zeros(probabilities.shape[1:], np.uint8)
    tumor = probabilities[0] >= REGION_THRESHOLDS["WT"]
    if not tumor.any():
        return full
    box = tuple(slice(*edge) for edge in bounding_box(tumor))
    labels, (whole, core, enhancing) = full[box], probabilities[:, *box]
    labels[:] = np.where(enhancing < REGION_THRESHOLDS["ET"], NCR, ET)
    labels[core < REGION_THRESHOLDS["TC"]] = ED
    labels[whole < REGION_THRESHOLDS["WT"]] = 0
    voxel_mm3 = float(np.prod(spacing_mm))
    components, count = ndimage.label(labels == ET, structure=np.ones((3, 3, 3)))
    if count:
        sizes_mm3 = np.bincount(components.ravel())[1:] * voxel_mm3
        means = ndimage.mean(enhancing, components, np.arange(1, count + 1))
        doubtful = (sizes_mm3 < SMALL_COMPONENT_MM3) & (means < SMALL_PROBABILITY)
        labels[np.isin(components, np.flatnonzero(doubtful) + 1)] = NCR
    rest = labels == ET
    small = 0 < rest.sum() * voxel_mm3 < SMALL_TOTAL_MM3
    if small and enhancing[rest].mean() < SMALL_PROBABILITY:
        labels[rest] = NCR
    return full
