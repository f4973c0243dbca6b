"""Widgets: a patient in three planes, a threshold, the augmentation, the worst patients.

The slice viewer runs in the browser alone, on plain canvases. (ipyniivue needs a kernel, and its
WebGL took half a second per step without a graphics card.) The others compute, so they need a
kernel: ipywidgets (7.7 or 8) around a picture that is replaced when a control moves. JupyterLab, VS
Code, Kaggle and Colab need no extension.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..basics.constants import (
    ERROR_COLORS,
    LABEL_COLORS,
    LABEL_SHORT,
    MODALITIES,
    MODALITY_TITLES,
    REGIONS,
)
from ..basics.device import gpu_load
from ..data.cases import Patient
from ..data.preprocessing import (
    Prepared,
    lps_spacing,
    normalize,
    padded_box,
    slice_with_most_tumor,
)
from ..evaluation.metrics import counts, dice
from .plots import (
    LABEL_LEGEND,
    SliceStyle,
    agreement,
    caption,
    draw_slice,
    finish,
    learning_curves,
    three_planes,
    upright,
    window,
)

if TYPE_CHECKING:
    import ipywidgets
    import torch
    from IPython.display import HTML, Code

FLOOR = 30  # gray of the darkest brain; ripples of JPEG around the brain stay below half of it
ERROR_STYLE = SliceStyle(legend=ERROR_COLORS)


def show_source(*objects: Callable) -> Code:
    """Show the source of functions and classes, in color."""
    from IPython.display import Code
    return Code("\n\n".join(inspect.getsource(each) for each in objects), language="python")


def png(figure: Figure) -> bytes:
    """Draw a figure quickly as a PNG, at the size in which widgets show it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, pil_kwargs={"compress_level": 1})
    return buffer.getvalue()


def slice_viewer(patient: Patient, prediction: np.ndarray | None = None,
                 synthetic: bool = False) -> HTML:
    """Show a patient in three linked planes and from outside.

    The page holds the data and runs viewer.js, so it works without a kernel. Where scripts do not
    run, as on GitHub, it shows a picture of the same slices.

    `prediction`, labels (X, Y, Z) in the scan's order, can be chosen instead of the reference.
    """
    from IPython.display import HTML
    images = [upright(image, patient.affine) for image in patient.images]
    known = {"reference": patient.reference, "prediction": prediction}
    labels = {title: upright(volume, patient.affine) for title, volume in known.items()
              if volume is not None}
    marks = next(iter(labels.values()), np.zeros(images[0].shape, np.uint8))
    spacing = lps_spacing(patient.spacing, patient.affine)
    data = _viewer_data(images, labels, marks) | {
        "spacing": list(spacing), "words": caption(prediction is not None, synthetic)}
    still = io.BytesIO()
    figure = three_planes(images[0], labels or {"image": marks}, spacing, synthetic=synthetic)
    figure.savefig(still, format="jpeg", dpi=90)
    # Equal patients give equal bytes in the notebook.
    name = f"brats-{zlib.crc32(json.dumps(data).encode()):08x}"
    code = Path(__file__).with_name("viewer.js").read_text(encoding="utf-8")
    source = _source(still.getvalue(), "JPEG")
    fallback = (f"<img src='{source}' style='max-width:100%' "
                f"alt='{escape(patient.name)} in three planes'>")
    start = f"for (const root of document.querySelectorAll('#{name}')) showPatient(root, "
    return HTML(f"<div id='{name}'>{fallback}</div>"
                f"<script>{{{code}\n{start}{json.dumps(data)});}}</script>")


def _viewer_data(images: Sequence[np.ndarray], labels: Mapping[str, np.ndarray],
                 marks: np.ndarray) -> dict:
    """Collect what viewer.js draws, cropped to the brain: volumes (X, Y, Z) in LPS."""
    brain = np.any([image != 0 for image in images], axis=0)
    box = padded_box(brain, 2)
    return {"shape": images[0][box].shape, "offset": [side.start for side in box], "floor": FLOOR,
            "start": [slice_with_most_tumor(marks[box], axis) for axis in range(3)],
            "images": [_gray(MODALITY_TITLES[modality], image[box])
                       for modality, image in zip(MODALITIES, images, strict=True)],
            "masks": [{"title": title, "source": _mosaic(volume[box].astype(np.uint8), "PNG")}
                      for title, volume in labels.items()],
            "labels": [{"title": LABEL_SHORT[n], "color": color}
                       for n, color in LABEL_COLORS.items()]}


def _gray(title: str, image: np.ndarray) -> dict:
    """Pack a modality as gray values, FLOOR to 255 in the brain, and the intensities of these."""
    inside = image[image != 0]
    low, high = map(float, np.percentile(inside, [0.1, 99.9])) if inside.size else (0.0, 1.0)
    gray = np.clip(FLOOR + (255 - FLOOR) * (image - low) / max(high - low, 1e-9), FLOOR, 255)
    source = _mosaic(np.where(image == 0, 0, gray).astype(np.uint8), "JPEG")
    return {"title": title, "low": low, "high": high, "source": source}


def _mosaic(volume: np.ndarray, kind: str) -> str:
    """Pack (X, Y, Z) uint8 as one picture of all axial slices, which a browser decodes at once."""
    from PIL import Image
    x, y, z = volume.shape
    columns = math.ceil(math.sqrt(z * y / x))
    tiles = np.zeros((math.ceil(z / columns) * columns, y, x), np.uint8)
    tiles[:z] = volume.T
    picture = tiles.reshape(-1, columns, y, x).swapaxes(1, 2).reshape(-1, columns * x)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=80, optimize=True)
    return _source(buffer.getvalue(), kind)


def _source(content: bytes, kind: str) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


def _redraw(draw: Callable[[], None], *controls: ipywidgets.Widget) -> None:
    """Draw now, and again whenever a control moves."""
    for control in controls:
        control.observe(lambda _: draw(), "value")
    draw()


def threshold_explorer(patient: Patient, probability: np.ndarray,
                       synthetic: bool = False) -> ipywidgets.Widget:
    """Show mask, Dice and volume for a movable threshold on WT's probabilities, (X, Y, Z)."""
    import ipywidgets as widgets
    truth = patient.reference > 0
    scan, marks = (upright(volume, patient.affine) for volume in (patient.images[0], truth))
    spacing = lps_spacing(patient.spacing, patient.affine)
    ml = float(np.prod(patient.spacing)) / 1000
    threshold = widgets.FloatSlider(value=0.45, min=0.05, max=0.95, step=0.05,
                                    description="threshold", continuous_update=False)
    index = widgets.IntSlider(value=slice_with_most_tumor(marks), min=0, max=scan.shape[2] - 1,
                              description="slice")
    image = widgets.Image(format="png", layout={"max_width": "min(100%, 560px)",
                                                "align_self": "flex-start"})
    line = widgets.Label()

    def draw() -> None:
        mask = probability >= threshold.value
        tp, fp, fn, _ = counts(mask, truth)
        line.value = (f"Dice {dice(mask, truth):.3f}, sensitivity {tp / max(1, tp + fn):.3f}, "
                      f"volume {(tp + fp) * ml:.1f} ml (reference {(tp + fn) * ml:.1f} ml)")
        figure, ax = plt.subplots(figsize=(6.6, 5))
        errors = upright(agreement(mask, truth), patient.affine)
        draw_slice(ax, scan, "axial", index.value, spacing, errors, style=ERROR_STYLE)
        ax.set_title("WT")
        image.value = png(finish(figure, synthetic, ERROR_COLORS, prediction=True))

    _redraw(draw, threshold, index)
    return widgets.VBox([threshold, index, line, image])


def comparison_viewer(rows: Sequence[Mapping], read: Callable[[str], tuple[Patient, np.ndarray]],
                      synthetic: bool = False) -> ipywidgets.Widget:
    """Show reference, prediction and error of every patient in `evaluation.evaluate`, worst first.

    `read` returns the patient of a chosen name and the predicted labels, (X, Y, Z).
    """
    import ipywidgets as widgets
    score = {row["name"]: float(np.mean([row[region]["dice"] for region in REGIONS]))
             for row in rows}
    options = [(f"{score[name]:.3f}  {name}", name) for name in sorted(score, key=score.get)]
    who = widgets.Select(options=options, rows=6, description="mean Dice")
    index = widgets.IntSlider(description="slice")
    image = widgets.Image(format="png", layout={"max_width": "100%"})
    shown: dict[str, np.ndarray] = {}

    def choose() -> None:
        patient, labels = read(who.value)
        truth, predicted = (upright(v, patient.affine) for v in (patient.reference, labels))
        shown.update(image=upright(patient.images[0], patient.affine), truth=truth,
                     spacing=lps_spacing(patient.spacing, patient.affine), predicted=predicted,
                     errors=agreement(predicted > 0, truth > 0))
        index.max, index.value = truth.shape[2] - 1, slice_with_most_tumor(truth)
        draw()

    def draw() -> None:
        figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.8))
        titles = {"truth": "reference", "predicted": "prediction", "errors": "whole tumor: errors"}
        for ax, (key, title) in zip(axes, titles.items(), strict=True):
            style = ERROR_STYLE if key == "errors" else SliceStyle()
            draw_slice(ax, shown["image"], "axial", index.value, shown["spacing"], shown[key],
                       style=style)
            ax.set_title(title)
        image.value = png(finish(figure, synthetic, LABEL_LEGEND | ERROR_COLORS, prediction=True))

    _redraw(choose, who)
    index.observe(lambda _: draw(), "value")
    return widgets.VBox([widgets.HBox([who, index], layout={"flex_flow": "row wrap"}), image])


def augmentation_playground(prepared: Prepared, synthetic: bool = False) -> ipywidgets.Widget:
    """Show the transforms, a slider for each, on the slice with the most tumor."""
    import ipywidgets as widgets
    import torch
    z_scored = normalize(prepared.images, prepared.meta.mean, prepared.meta.std)
    z = slice_with_most_tumor(prepared.reference.T)
    slab = slice(max(0, z - 8), z + 8)  # compute only what is shown
    whole = torch.from_numpy(z_scored[:, slab])
    marks = torch.from_numpy(prepared.volume[4:, slab])
    middle, style = whole.shape[1] // 2, SliceStyle(window(whole[0].numpy()), opacity=0.25)
    ranges = {"zoom": (1, 1.4, 1), "angle": (-45, 45, 0), "elastic": (0, 8, 0),
              "noise": (0, 0.5, 0), "blur": (0, 2, 0), "brightness": (0.7, 1.3, 1),
              "contrast": (0.65, 1.5, 1), "gamma": (0.7, 1.5, 1), "shift": (-0.5, 0.5, 0)}
    sliders = {name: widgets.FloatSlider(value=start, min=low, max=high, step=(high - low) / 20,
                                         description=name, continuous_update=False)
               for name, (low, high, start) in ranges.items()}
    # Beside the sliders or, where there is no room, below them.
    image = widgets.Image(format="png", layout={"max_width": "calc(100% - 330px)",
                                                "min_width": "320px", "align_self": "flex-start"})

    def draw() -> None:
        changed, moved = _augment(whole, marks, {name: s.value for name, s in sliders.items()})
        figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.6))
        views = {"original": (whole, marks), "changed": (changed, moved)}
        for ax, (name, (volume, labels)) in zip(axes, views.items(), strict=True):
            draw_slice(ax, volume[0].numpy().T, "axial", middle, labels=labels[0].numpy().T,
                       letters=False, style=style)
            ax.set_title(name)
        image.value = png(finish(figure, synthetic, legend=True))

    _redraw(draw, *sliders.values())
    controls = widgets.VBox([*sliders.values()], layout={"min_width": "310px"})
    return widgets.HBox([controls, image], layout={"flex_flow": "row wrap"})


def _augment(volume: torch.Tensor, marks: torch.Tensor,
             value: Mapping[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply each transform with its value to a z-scored volume (5, D, H, W) and labels."""
    import torch

    from ..training import augmentation as augment
    generator = torch.Generator().manual_seed(0)
    grid = augment.sampling_grid(volume.shape[1:], value["zoom"], [0, 0, value["angle"]],
                                 value["elastic"], generator)
    changed, moved = augment.resample(volume, marks, grid)
    x, brain = changed[:4], changed[4:]
    x = augment.add_noise(x, value["noise"], generator) if value["noise"] else x
    x = augment.blur(x, value["blur"]) if value["blur"] else x
    x = augment.change_contrast(x * value["brightness"], value["contrast"])
    return (augment.change_gamma(x, value["gamma"]) + value["shift"]) * brain, moved


class Dashboard:
    """The learning curves in a live notebook, redrawn while a network trains."""

    def __init__(self) -> None:
        self.handle = None

    def __call__(self, history: Sequence[dict]) -> None:
        """Show the history so far; `training.loop.train` calls this after every epoch."""
        if "BRATS_HEADLESS" in os.environ:  # nobody is watching
            return
        from IPython.display import display
        figure = learning_curves(history)
        figure.suptitle(throughput(history), fontsize=9)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)


def throughput(history: Sequence[dict]) -> str:
    """Return a line on speed and, on a GPU, its memory and load."""
    last, load = history[-1], gpu_load()
    speed = last["step"] / max(last["seconds"], 1e-9)
    parts = [f"epoch {last['epoch']}", f"step {last['step']}", f"{speed:.1f} steps a second"]
    if "gpu/memory_gib" in load:
        parts.append(f"{load['gpu/memory_gib']:.1f} GiB of GPU memory at most")
    if "gpu/percent_busy" in load:
        parts.append(f"GPU {load['gpu/percent_busy']:.0f}% busy")
    return ", ".join(parts)
