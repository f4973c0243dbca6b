"""Why a mask is wrong: its errors in color, and their cause in words computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from ..basics.constants import ERROR_COLORS, MODALITIES, MODALITY_TITLES, REGION_TITLES, REGIONS
from ..data.cases import Patient
from ..data.preprocessing import bounding_box, slice_with_most_tumor
from ..evaluation.metrics import dice, regions
from .plots import add_letters, agreement, finish, tint, upright, window

SEEN_ON = {"WT": "flair", "TC": "t1ce", "ET": "t1ce"}  # the modality that shows a region best
SMALL_ML = 2.0
DEEP_MM = 3.0  # an error farther from the border is more than a matter of one voxel
FAINT = 0.5  # deviations between two means
MARGIN = 6  # voxels around what is shown


def diagnose(patient: Patient, mask: np.ndarray) -> list[str]:
    """Say for each region what a mask (X, Y, Z) missed or marked falsely, and the likely cause."""
    pairs = zip(REGIONS, regions(mask), regions(patient.reference), strict=True)
    return [f"{name}: {' '.join(_findings(patient, name, *pair))}" for name, *pair in pairs]


def _findings(patient: Patient, name: str, found: np.ndarray, truth: np.ndarray) -> Iterator[str]:
    ml = float(np.prod(patient.spacing)) / 1000
    missed, false = truth & ~found, found & ~truth
    volumes = [f"{v:.1f}" if v >= 0.05 or not v else f"{v:.2g}"  # a few voxels are not 0.0 ml
               for v in (ml * mask.sum() for mask in (truth, missed, false))]
    yield (f"Dice {dice(found, truth):.2f}, {volumes[0]} ml in the reference, {volumes[1]} ml "
           f"missed, {volumes[2]} ml false.")
    if not truth.any():
        yield "The patient has none: every voxel marked is an error." if found.any() else ""
        return
    if truth.sum() * ml < SMALL_ML:
        border = truth & ~ndimage.binary_erosion(truth)
        yield f"It is small: {border.sum() / truth.sum():.0%} of the region lies on its border."
    errors = missed | false
    if errors.any():
        distance = np.where(truth, ndimage.distance_transform_edt(truth, patient.spacing),
                            ndimage.distance_transform_edt(~truth, patient.spacing))
        deep = (distance[errors] > DEEP_MM).mean()
        yield f"{deep:.0%} of the error lies more than {DEEP_MM:g} mm from the true border."
    if missed.any() and (truth & found).any():
        yield from _faintness(patient, name, missed, truth & found)


def _faintness(patient: Patient, name: str, missed: np.ndarray, hit: np.ndarray) -> Iterator[str]:
    image = patient.images[MODALITIES.index(SEEN_ON[name])].astype(np.float32)
    spread = image[patient.images.any(0)].std()
    gap = (image[hit].mean() - image[missed].mean()) / spread
    if abs(gap) > FAINT:
        darker = "darker" if gap > 0 else "brighter"
        yield (f"The missed part is {abs(gap):.1f} deviations {darker} on "
               f"{MODALITY_TITLES[SEEN_ON[name]]} than the part that was found.")


def compare_masks(patient: Patient, mask: np.ndarray, synthetic: bool = False) -> Figure:
    """Show each region zoomed on its slice with most error: the image, and errors over it."""
    figure, axes = plt.subplots(2, len(REGIONS), figsize=(9.6, 6.4))
    pairs = zip(REGIONS, regions(mask), regions(patient.reference), strict=True)
    for column, (name, *pair) in zip(axes.T, pairs, strict=True):
        modality = SEEN_ON[name]
        image = upright(patient.images[MODALITIES.index(modality)], patient.affine)
        found, truth = (upright(each, patient.affine) for each in pair)
        shown = found != truth if (found != truth).any() else truth
        at = slice_with_most_tumor(shown)
        _zoomed(column, image[..., at], found[..., at], truth[..., at])
        column[0].set_title(f"{REGION_TITLES[name]} on {MODALITY_TITLES[modality]}", fontsize=10)
    figure.suptitle(f"{patient.name}, each region on its slice with most error", fontsize=10,
                    parse_math=False)
    return finish(figure, synthetic, ERROR_COLORS, prediction=True)


def _zoomed(axes: Sequence[plt.Axes], image: np.ndarray, found: np.ndarray,
            truth: np.ndarray) -> None:
    """Draw the part of a slice around a region twice: alone, and with the errors over it."""
    part = _window(found | truth, image.shape)
    errors = agreement(found, truth)[part].T
    low, high = window(image)[0], np.percentile(image[part], 99.8)
    for ax in axes:
        ax.imshow(image[part].T, cmap="gray", vmin=low, vmax=high)
        add_letters(ax, "axial")
        ax.set_axis_off()
    gray = np.clip((image[part].T - low) / max(high - low, 1e-9), 0, 1)
    axes[1].imshow(tint(gray, errors, ERROR_COLORS, np.where(errors == 3, 0.5, 1)))


def _window(marked: np.ndarray, shape: Sequence[int]) -> tuple[slice, ...]:
    """Return a square window around what is marked, or all of the slice."""
    if not marked.any():
        return tuple(slice(0, n) for n in shape)
    (_, (x0, x1), (y0, y1)) = bounding_box(marked[None])
    half = max(x1 - x0, y1 - y0) // 2 + MARGIN
    middle = ((x0 + x1) // 2, (y0 + y1) // 2)
    return tuple(slice(max(0, m - half), min(n, m + half))
                 for m, n in zip(middle, shape, strict=True))
