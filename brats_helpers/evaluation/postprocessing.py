"""From probabilities of three regions to one label for each voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ..basics.constants import ED, ET, NCR, REGION_THRESHOLDS, SMALL_COMPONENT_MM3, SMALL_PROBABILITY, SMALL_TOTAL_MM3
from ..data.preprocessing import bounding_box

POSTPROCESSING = (REGION_THRESHOLDS, SMALL_COMPONENT_MM3, SMALL_TOTAL_MM3, SMALL_PROBABILITY)


def postprocess(probabilities: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Labels 0 to 3, (X, Y, Z) uint8, from probabilities (3, X, Y, Z) of WT, TC and ET.

    A chain of thresholds: not WT, background; else not TC, edema; else not ET, necrosis; else ET.
    Then ET that is too small and too unsure becomes necrosis, by component and as a whole.
    """
    found = np.zeros(probabilities.shape[1:], np.uint8)
    tumor = probabilities[0] >= REGION_THRESHOLDS["WT"]
    if not tumor.any():
        return found
    box = tuple(slice(*edge) for edge in bounding_box(tumor))                # all that follows happens inside
    labels, (whole, core, enhancing) = found[box], probabilities[:, *box]
    labels[:] = np.where(enhancing < REGION_THRESHOLDS["ET"], NCR, ET)
    labels[core < REGION_THRESHOLDS["TC"]] = ED
    labels[whole < REGION_THRESHOLDS["WT"]] = 0
    voxel = float(np.prod(spacing_mm))                # mm3
    components, count = ndimage.label(labels == ET, structure=np.ones((3, 3, 3)))
    if count:
        sizes = np.bincount(components.ravel())[1:] * voxel
        means = ndimage.mean(enhancing, components, np.arange(1, count + 1))
        doubtful = np.flatnonzero((sizes < SMALL_COMPONENT_MM3) & (means < SMALL_PROBABILITY)) + 1
        labels[np.isin(components, doubtful)] = NCR
    rest = labels == ET
    if 0 < rest.sum() * voxel < SMALL_TOTAL_MM3 and enhancing[rest].mean() < SMALL_PROBABILITY:
        labels[rest] = NCR
    return found
