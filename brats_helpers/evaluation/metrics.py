"""How good is a segmentation: Dice, IoU, sensitivity, specificity and HD95, with intervals.

Regions and the rules for empty ones are BraTS's (Baid et al. 2021, arXiv:2107.02314, section 4);
HD95 is the 95th percentile of the distances between the two surfaces, the larger of the two
directions, as MONAI computes it. Masks are (X, Y, Z).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.stats import bootstrap

from ..basics.constants import HD95_EMPTY_MM, REGIONS

ALL_NEIGHBORS = np.ones((3, 3, 3))                   # 26: across faces, edges and corners
REACH = 8                                             # voxels that `near` looks to either side: most surfaces are closer
CROWDED = 60                                          # voxels of a box for one of a surface: above, a k-d tree is quicker
LESION_DILATION = 3                                   # voxels; of BraTS's glioma task, as are the 50 mm3
LESION_MM3 = 50
SCORES = ("dice", "iou", "sensitivity", "specificity", "hd95_mm")


def regions(labels: np.ndarray) -> np.ndarray:
    """Labels 0 to 3, (...), as the regions WT, TC and ET: (3, ...) bool."""
    return np.stack([np.logical_or.reduce([labels == member for member in members]) for members in REGIONS.values()])


def counts(predicted: np.ndarray, reference: np.ndarray) -> tuple[int, int, int, int]:
    """Voxels that are true positive, false positive, false negative and true negative."""
    both, p, r = (int(np.count_nonzero(m)) for m in (predicted & reference, predicted, reference))
    return both, p - both, r - both, predicted.size - p - r + both


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0             # nothing to find, and nothing missed


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two boolean masks; 1 where both are empty."""
    tp, fp, fn, _ = counts(predicted, reference)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask, (X, Y, Z) bool, that have a face on its outside; the volume's edge counts as outside."""
    inner = mask.copy()
    for axis in range(3):
        lines, kept = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        kept[1:] &= lines[:-1]
        kept[:-1] &= lines[1:]
        kept[[0, -1]] = False
    return mask & ~inner


def near(mask: np.ndarray) -> np.ndarray:
    """Squared distance, in voxels, to the nearest voxel of a mask (X, Y, Z): uint8, exact up to REACH ** 2, above it beyond.

    Along one axis after the other, as Felzenszwalb and Huttenlocher 2012 (doi:10.4086/toc.2012.v008a019), with the
    minimum over a window in the place of their parabolas: a few passes over bytes.
    """
    squared = np.where(mask, np.uint8(0), np.uint8(255 - REACH**2))       # the largest that a step can be added to
    for _ in range(3):                                # the last axis is brought to the front, three times: as it was
        lines = np.ascontiguousarray(np.moveaxis(squared, -1, 0))
        squared = lines.copy()
        for step in range(1, min(REACH, len(lines) - 1) + 1):
            further = lines + np.uint8(step**2)
            np.minimum(squared[step:], further[:-step], out=squared[step:])
            np.minimum(squared[:-step], further[step:], out=squared[:-step])
    return squared


def distances_mm(of: np.ndarray, to: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """From each voxel of one mask to the nearest one of another, (n,) in mm; masks (X, Y, Z) bool, neither empty."""
    places, spacing = np.argwhere(of), np.asarray(spacing_mm, float)
    squared = np.full(len(places), 255, np.uint8)
    if np.ptp(spacing) == 0 and of.size < CROWDED * len(places):
        squared = near(to)[of]
    found = np.sqrt(squared, dtype=float) * spacing[0]
    far = squared > REACH**2
    if far.any():                                     # the k-d tree knows no limit, and takes longer
        found[far] = cKDTree(np.argwhere(to) * spacing).query(places[far] * spacing)[0]
    return found


def hd95(predicted: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """95th percentile Hausdorff distance in mm; 0 where both masks are empty, 373.13 where one is."""
    if not predicted.any() and not reference.any():
        return 0.0
    if not predicted.any() or not reference.any():
        return HD95_EMPTY_MM
    box = union_box(predicted, reference)
    a, b = surface(predicted[box]), surface(reference[box])
    return float(max(np.percentile(distances_mm(*pair, spacing_mm), 95) for pair in ((a, b), (b, a))))


def union_box(predicted: np.ndarray, reference: np.ndarray, margin: int = 1) -> tuple[slice, ...]:
    """The smallest box around both masks, or labels, and `margin` voxels more; distances need nothing outside it."""
    either = (predicted | reference) != 0
    plane = either.any(2)
    box = []
    for line in (plane.any(1), plane.any(0), either.any((0, 1))):
        marked = np.flatnonzero(line)
        box.append(slice(max(0, marked[0] - margin), marked[-1] + 1 + margin) if len(marked) else slice(0, 0))
    return tuple(box)


def score_case(predicted: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, dict]:
    """All scores of one patient by region, from labels 0 to 3, both (X, Y, Z); volumes in ml."""
    box = union_box(predicted, reference)
    rows, outside, ml = {}, predicted.size - predicted[box].size, float(np.prod(spacing_mm)) / 1000
    for name, p, r in zip(REGIONS, regions(predicted[box]), regions(reference[box]), strict=True):
        tp, fp, fn, tn = counts(p, r)
        rows[name] = {"dice": _ratio(2 * tp, 2 * tp + fp + fn), "iou": _ratio(tp, tp + fp + fn),
                      "sensitivity": _ratio(tp, tp + fn), "specificity": _ratio(tn + outside, tn + outside + fp),
                      "hd95_mm": hd95(p, r, spacing_mm), "volume_ml": (tp + fp) * ml, "reference_ml": (tp + fn) * ml}
    return rows


def lesion_wise(predicted: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Dice and HD95 (mm) as BraTS has ranked since 2023: lesion by lesion, so that a small one counts as a large one.

    Masks (X, Y, Z) bool. Reference lesions are connected components, joined where dilation by three voxels joins them;
    a predicted component belongs to every dilated lesion that it touches. Lesions of 50 mm3 or less are not judged;
    each predicted component that touches none scores 0 and 373.13 mm (Saluja et al., BraTS-2023-Metrics, which has 374).
    Returns {"dice", "hd95_mm", "found", "missed", "false"}.
    """
    box = union_box(predicted, reference, LESION_DILATION + 1)
    predicted, reference = predicted[box], reference[box]
    parts, count = ndimage.label(predicted, ALL_NEIGHBORS)
    joined, lesions = ndimage.label(_dilate(reference), ALL_NEIGHBORS)
    pairs, touched, missed = [], set(), 0
    for number in range(1, lesions + 1):
        lesion = reference & (joined == number)
        own = set(np.unique(parts[_dilate(lesion)])) - {0}
        touched |= own
        if lesion.sum() * np.prod(spacing_mm) > LESION_MM3:
            found = np.isin(parts, list(own))
            pairs.append((dice(found, lesion), hd95(found, lesion, spacing_mm)))
            missed += not own
    false = count - len(touched)
    scores = np.array(pairs + [(0.0, HD95_EMPTY_MM)] * false or [(1.0, 0.0)])
    return {"dice": float(scores[:, 0].mean()), "hd95_mm": float(scores[:, 1].mean()),
            "found": len(pairs) - missed, "missed": missed, "false": false}


def _dilate(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_dilation(mask, ndimage.generate_binary_structure(3, 2), LESION_DILATION)


def calibration(probability: np.ndarray, truth: np.ndarray, bins: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Mean probability, and how often it was so, in each of `bins` equal ranges of probability that occur."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    number = np.bincount(place, minlength=bins)
    met = number > 0
    said, was = (np.bincount(place, weights, bins)[met] / number[met] for weights in (probability, truth))
    return said, was


def bootstrap_ci(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and its bootstrap confidence interval over two or more patients (percentiles of 2,000 resamples)."""
    values = np.asarray(values, float)
    if np.ptp(values) == 0:
        return float(values.mean()), float(values.min()), float(values.max())
    interval = bootstrap((values,), np.mean, n_resamples=2000, confidence_level=level, method="percentile",
                         rng=np.random.default_rng(seed)).confidence_interval
    return float(values.mean()), float(interval.low), float(interval.high)


def summarize(rows: Sequence[dict]) -> dict:
    """Means over patients, {"dice": {"WT": ..}, ..}, and the intervals of Dice, from rows of `score_case`.

    The interval of a single patient is None.
    """
    means = {score: {name: float(np.mean([row[name][score] for row in rows])) for name in REGIONS} for score in SCORES}
    intervals = {name: list(bootstrap_ci([row[name]["dice"] for row in rows])[1:]) if len(rows) > 1 else None
                 for name in REGIONS}
    return means | {"dice_ci95": intervals}


def interval_text(interval: Sequence[float] | None) -> str:
    """An interval of `summarize`, for people."""
    return "{:.3f} to {:.3f}".format(*interval) if interval else "one patient: none"


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask, (X, Y, Z) bool."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def threshold_baseline(images: Sequence[np.ndarray], references: Sequence[np.ndarray],
                       thresholds: Sequence[float]) -> np.ndarray:
    """WT Dice of "everything brighter than t, largest component": (patients, thresholds).

    images: z-scored FLAIR, references: labels 0 to 3. What no network is needed for.
    """
    return np.array([[dice(largest_component(image > t), reference > 0) for t in thresholds]
                     for image, reference in zip(images, references, strict=True)])
