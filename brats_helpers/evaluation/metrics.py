"""Scores of a segmentation: Dice, IoU, sensitivity, specificity and HD95, with intervals.

Regions and the rules for empty ones are BraTS's (Baid et al. 2021, arXiv:2107.02314, section 4).
HD95 is the 95th percentile of the distances between the two surfaces, the larger of the two
directions, as in MONAI. Masks are (X, Y, Z).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ..basics.constants import HD95_EMPTY_MM, REGIONS
from ..data.preprocessing import largest_component, padded_box

NEIGHBORS_26 = np.ones((3, 3, 3))  # across faces, edges and corners
LESION_DILATION = 3  # voxels; this and the next are those of BraTS's glioma task
LESION_MM3 = 50
SCORES = ("dice", "iou", "sensitivity", "specificity", "hd95_mm")


def regions(labels: np.ndarray) -> np.ndarray:
    """Turn labels 0 to 3, (...), into the regions WT, TC and ET: (3, ...) bool."""
    return np.stack([np.logical_or.reduce([labels == member for member in members])
                     for members in REGIONS.values()])


def counts(predicted: np.ndarray, reference: np.ndarray) -> tuple[int, int, int, int]:
    """Count the true positive, false positive, false negative and true negative voxels."""
    tp, p, r = (int(np.count_nonzero(m)) for m in (predicted & reference, predicted, reference))
    return tp, p - tp, r - tp, predicted.size - p - r + tp


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0  # nothing to find, and nothing missed


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Compute 2 |A and B| / (|A| + |B|) of two boolean masks; 1 if both are empty."""
    tp, fp, fn, _ = counts(predicted, reference)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def surface(mask: np.ndarray) -> np.ndarray:
    """Mark the mask's voxels that share a face with the outside or lie at the volume's edge."""
    inner = mask.copy()
    for axis in range(3):
        source, target = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        target[1:] &= source[:-1]
        target[:-1] &= source[1:]
        target[[0, -1]] = False
    return mask & ~inner


def distances_mm(start: np.ndarray, end: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Measure from each voxel of one boolean mask to the nearest of another: (n,), in mm.

    Neither may be empty. A k-d tree of one surface is quicker here than a distance transform.
    """
    tree = cKDTree(np.argwhere(end) * spacing_mm, balanced_tree=False)
    return tree.query(np.argwhere(start) * spacing_mm, workers=-1)[0]


def hd95(predicted: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Compute the 95th percentile Hausdorff distance: 0 mm if both are empty, 373.13 if one is."""
    if not predicted.any() and not reference.any():
        return 0.0
    if not predicted.any() or not reference.any():
        return HD95_EMPTY_MM
    box = union_box(predicted, reference)
    a, b = surface(predicted[box]), surface(reference[box])
    there, back = distances_mm(a, b, spacing_mm), distances_mm(b, a, spacing_mm)
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def union_box(predicted: np.ndarray, reference: np.ndarray, margin: int = 1) -> tuple[slice, ...]:
    """Find the smallest box around both masks, or labels, and widen it by `margin` voxels."""
    either = (predicted | reference) != 0
    if not either.any():
        return (slice(0, 0),) * 3
    return padded_box(either, margin)


def score_case(predicted: np.ndarray, reference: np.ndarray,
               spacing_mm: Sequence[float]) -> dict[str, dict[str, float]]:
    """Compute all scores of a patient by region, from labels 0 to 3, both (X, Y, Z)."""
    box = union_box(predicted, reference)
    outside = predicted.size - predicted[box].size
    ml = float(np.prod(spacing_mm)) / 1000
    pairs = zip(regions(predicted[box]), regions(reference[box]), strict=True)
    rows = {}
    for name, (p, r) in zip(REGIONS, pairs, strict=True):
        tp, fp, fn, tn = counts(p, r)
        tn += outside
        rows[name] = {
            "dice": _ratio(2 * tp, 2 * tp + fp + fn), "iou": _ratio(tp, tp + fp + fn),
            "sensitivity": _ratio(tp, tp + fn), "specificity": _ratio(tn, tn + fp),
            "hd95_mm": hd95(p, r, spacing_mm), "volume_ml": (tp + fp) * ml,
            "reference_ml": (tp + fn) * ml}
    return rows


def lesion_wise(predicted: np.ndarray, reference: np.ndarray,
                spacing_mm: Sequence[float]) -> dict[str, float]:
    """Compute Dice and HD95 (mm) lesion by lesion, as BraTS has ranked since 2023.

    Masks are (X, Y, Z) bool. Connected components of the reference are one lesion if dilation by
    three voxels joins them. A predicted component belongs to every dilated lesion that it touches.
    Lesions of 50 mm3 or less are not scored. Each predicted component that touches no lesion scores
    0 and 373.13 mm (Saluja et al., BraTS-2023-Metrics, whose code uses 374).
    Returns {"dice", "hd95_mm", "found", "missed", "false"}.
    """
    box = union_box(predicted, reference, LESION_DILATION + 1)
    predicted, reference = predicted[box], reference[box]
    components, count = ndimage.label(predicted, NEIGHBORS_26)
    areas, lesions = ndimage.label(_dilate(reference), NEIGHBORS_26)
    pairs, touched, missed = [], set(), 0
    for number in range(1, lesions + 1):
        lesion = reference & (areas == number)
        touching = set(np.unique(components[_dilate(lesion)])) - {0}
        touched |= touching
        if lesion.sum() * np.prod(spacing_mm) > LESION_MM3:
            found = np.isin(components, list(touching))
            pairs.append((dice(found, lesion), hd95(found, lesion, spacing_mm)))
            missed += not touching
    result = {"found": len(pairs) - missed, "missed": missed, "false": count - len(touched)}
    pairs += [(0.0, HD95_EMPTY_MM)] * result["false"]
    if not pairs:  # no lesion in either mask
        pairs = [(1.0, 0.0)]
    mean_dice, mean_hd95_mm = np.mean(pairs, axis=0).tolist()
    return {"dice": mean_dice, "hd95_mm": mean_hd95_mm, **result}


def _dilate(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_dilation(mask, ndimage.generate_binary_structure(3, 2), LESION_DILATION)


def bootstrap_ci(values: Sequence[float]) -> tuple[float, float, float]:
    """Compute the mean of two or more values and its 95% interval, from 2,000 resamples."""
    values = np.asarray(values, float)
    if np.ptp(values) == 0:
        return float(values.mean()), float(values.min()), float(values.max())
    from scipy.stats import bootstrap  # takes a second to import
    interval = bootstrap((values,), np.mean, n_resamples=2000, method="percentile",
                         rng=np.random.default_rng(0)).confidence_interval
    return float(values.mean()), float(interval.low), float(interval.high)


def average_scores(rows: Sequence[dict]) -> dict:
    """Average the rows of `score_case` over patients: {"dice": {"WT": ..}, .., "dice_ci95": ..}.

    The interval of Dice is None for a single patient.
    """
    means = {score: {name: float(np.mean([row[name][score] for row in rows])) for name in REGIONS}
             for score in SCORES}
    intervals = {name: list(bootstrap_ci([row[name]["dice"] for row in rows])[1:])
                 if len(rows) > 1 else None for name in REGIONS}
    return means | {"dice_ci95": intervals}


def interval_text(interval: Sequence[float] | None) -> str:
    """Format an interval of `average_scores`, as in "0.812 to 0.870"."""
    return "{:.3f} to {:.3f}".format(*interval) if interval else "one patient: none"


def threshold_baseline(images: Sequence[np.ndarray], references: Sequence[np.ndarray],
                       thresholds: Sequence[float]) -> np.ndarray:
    """Score a method without a network: the largest component brighter than a threshold.

    images are z-scored FLAIR, references labels 0 to 3. Returns WT Dice, (patients, thresholds).
    """
    return np.array([[dice(largest_component(image > t), reference > 0) for t in thresholds]
                     for image, reference in zip(images, references, strict=True)])
