"""Widgets for looking into volumes. ipywidgets is imported when one is made, not before.

A viewer draws one matplotlib figure into a PNG and replaces the picture when a control moves, so that
it needs no extension: it works in JupyterLab, VS Code, Kaggle and Colab, and a headless run stores
its first picture.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .cases import Patient
from .constants import MODALITIES, MODALITY_TITLES, REGIONS
from .plots import PLANES, draw_slice, finish, learning_curves, upright, widest
from .preprocessing import lps_spacing

if TYPE_CHECKING:
    import ipywidgets


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def picture(patient: Patient, prediction: np.ndarray | None = None, modality: str = "flair", plane: str = "axial",
            index: int | None = None, opacity: float = 0.5, shown: Sequence[str] = ("WT",),
            synthetic: bool = False) -> Figure:
    """What the viewer draws: one slice with the reference and, beside it, the prediction; regions can be chosen."""
    image = upright(patient.images[MODALITIES.index(modality)], patient.affine)
    wanted = [label for name in shown for label in REGIONS[name]]
    overlays = {title: _only(upright(labels, patient.affine), wanted) for title, labels in (
        ("reference", patient.reference), ("prediction", prediction)) if labels is not None}
    overlays = overlays or {"image": None}
    index = image.shape[PLANES[plane][0]] // 2 if index is None else index
    spacing = lps_spacing(patient.spacing, patient.affine)
    figure, axes = plt.subplots(1, len(overlays), figsize=(4.2 * len(overlays), 4.2), squeeze=False)
    for ax, (title, labels) in zip(axes[0], overlays.items(), strict=True):
        draw_slice(ax, image, plane, index, spacing, labels, opacity=opacity)
        ax.set_title(f"{MODALITY_TITLES[modality]}, {title}")
    return finish(figure, synthetic, legend=True, prediction=prediction is not None)


def _only(labels: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    return np.where(np.isin(labels, wanted), labels, 0)


def slice_viewer(patient: Patient, prediction: np.ndarray | None = None, synthetic: bool = False) -> ipywidgets.Widget:
    """Move through a patient: plane, slice, modality, opacity and regions; (X, Y, Z) as read from disk."""
    import ipywidgets as widgets
    reference = patient.reference if patient.reference is not None else np.zeros(patient.images.shape[1:], np.uint8)
    labels = upright(reference, patient.affine)
    plane = widgets.ToggleButtons(options=list(PLANES), description="plane")
    index = widgets.IntSlider(widest(labels), 0, labels.shape[2] - 1, description="slice")
    modality = widgets.Dropdown(options=[(MODALITY_TITLES[m], m) for m in MODALITIES], description="modality")
    opacity = widgets.FloatSlider(0.5, min=0, max=1, step=0.1, description="opacity")
    shown = widgets.SelectMultiple(options=list(REGIONS), value=("WT",), rows=3, description="regions")
    image = widgets.Image(format="png")

    def draw(_: object = None) -> None:
        image.value = png(picture(patient, prediction, modality.value, plane.value, index.value, opacity.value,
                                  shown.value, synthetic))

    def turn(_: object) -> None:
        axis = PLANES[plane.value][0]
        index.max = labels.shape[axis] - 1
        index.value = widest(labels, plane.value)
        draw()

    plane.observe(turn, "value")
    for control in (index, modality, opacity, shown):
        control.observe(draw, "value")
    draw()
    return widgets.VBox([plane, widgets.HBox([index, modality]), widgets.HBox([opacity, shown]), image])


class Dashboard:
    """The learning curves while a network trains: redrawn in place in a live notebook, silent in a headless run."""

    def __init__(self) -> None:
        self.handle = None

    def __call__(self, history: Sequence[dict]) -> None:
        """Show the history so far; `training.train` calls this after every epoch."""
        if "BRATS_HEADLESS" in os.environ:            # nobody is watching: the progress bar says enough
            return
        from IPython.display import display
        figure = learning_curves(history)
        figure.suptitle(throughput(history), fontsize=9)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)


def throughput(history: Sequence[dict]) -> str:
    """A line on speed and, on a GPU, its memory and load."""
    import torch
    last = history[-1]
    line = f"epoch {last['epoch']}, step {last['step']}, {last['step'] / max(last['seconds'], 1e-9):.1f} steps a second"
    if torch.cuda.is_available():
        line += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory at most"
        try:
            line += f", GPU {torch.cuda.utilization()} % busy"
        except (ModuleNotFoundError, RuntimeError):   # nvidia-ml-py is not installed, or the driver hides the figure
            pass
    return line
