"""An outline drawn by hand on one slice: the picture to read corners from, and its mask."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.path import Path as Polygon

from ..basics.constants import MODALITIES, MODALITY_TITLES
from ..data.cases import Patient
from ..data.preprocessing import slice_with_most_tumor
from .plots import add_letters, finish, upright

SHOWN = ("flair", "t1ce")


def draw_outline_task(patient: Patient) -> Figure:
    """Draw FLAIR and T1CE of the slice with most tumor, with a grid to read corners from."""
    at = slice_with_most_tumor(upright(patient.reference, patient.affine))
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(9.6, 5.2))
    for ax, name in zip(axes, SHOWN, strict=True):
        image = upright(patient.images[MODALITIES.index(name)], patient.affine)[..., at].T
        ax.imshow(image, cmap="gray", vmin=0, vmax=np.percentile(image[image > 0], 99.5))
        ax.set(title=MODALITY_TITLES[name], xlabel="x", ylabel="y")
        ax.set_xticks(range(0, image.shape[1], 10))
        ax.set_yticks(range(0, image.shape[0], 10))
        ax.grid(color="white", alpha=0.25, lw=0.5)
        add_letters(ax, "axial")
    return finish(figure, synthetic=True)


def outline_mask(corners: Sequence[tuple[float, float]], shape: Sequence[int]) -> np.ndarray:
    """Fill the polygon with these corners, (x, y) each: a mask (X, Y) of this shape."""
    centers = np.stack(np.indices(tuple(shape)), axis=-1).reshape(-1, 2)
    return Polygon(np.asarray(corners, float), closed=False).contains_points(centers).reshape(shape)
