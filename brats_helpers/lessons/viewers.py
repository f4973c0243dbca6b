"""Things to move while looking: a patient in three planes, a threshold, the augmentation, the worst patients.

The slice viewer lives in the browser alone, on plain canvases: a step takes a few milliseconds. (ipyniivue was
tried in its place. It is finer on a graphics card, but it draws with WebGL, which took half a second a step
without one, on two cores in headless Chromium, and it shows nothing without a kernel.) The others compute, so
they need a kernel: ipywidgets around one matplotlib picture that is replaced when a control moves. None needs
an extension: all work in JupyterLab, VS Code, Kaggle and Colab.
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
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..basics.constants import (
    ED,
    ET,
    LABEL_COLORS,
    LABEL_SHORT,
    MODALITIES,
    MODALITY_TITLES,
    NCR,
    NOT_FOR_DIAGNOSIS,
    REGIONS,
)
from ..basics.device import gpu_load
from ..data.cases import Patient
from ..data.preprocessing import Prepared, bounding_box, lps_spacing, normalize
from ..evaluation.metrics import counts, dice
from .plots import compare_slices, draw_slice, finish, learning_curves, three_planes, upright, widest, window

if TYPE_CHECKING:
    import ipywidgets
    from IPython.display import HTML, Code


FLOOR = 30                                            # JPEG's ripples around the brain stay below half of it


def show_source(*objects: Callable) -> Code:
    """The source of functions and classes as it stands in the module, in color."""
    from IPython.display import Code
    return Code("\n\n".join(inspect.getsource(each) for each in objects), language="python")


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 1})       # quick: it is looked at, not kept
    return buffer.getvalue()


def slice_viewer(patient: Patient, prediction: np.ndarray | None = None, synthetic: bool = False) -> HTML:
    """A patient in three linked planes and from outside: contrast, window and level, labels, crosshair, wheel and keys.

    prediction: labels, (X, Y, Z) as read from disk, to choose beside the reference. All of it is in the page that is
    returned and runs in the browser (viewer.js), so that it moves in an exported page, too, and asks no kernel for a
    picture. Where scripts are not run, as on GitHub, a picture of the same slices stands in its place.
    """
    from IPython.display import HTML
    images = [upright(image, patient.affine) for image in patient.images]
    labels = {title: upright(volume, patient.affine) for title, volume in (
        ("reference", patient.reference), ("prediction", prediction)) if volume is not None}
    brain = np.any([image != 0 for image in images], axis=0)
    box = tuple(slice(max(0, low - 2), high + 2) for low, high in bounding_box(brain))
    marks = next(iter(labels.values()), np.zeros(images[0].shape, np.uint8))
    spacing = lps_spacing(patient.spacing, patient.affine)
    start = [widest(marks, plane) - box[axis].start for axis, plane in enumerate(("sagittal", "coronal", "axial"))]
    words = [NOT_FOR_DIAGNOSIS] * (prediction is not None) + ["synthetic"] * synthetic
    data = {"shape": images[0][box].shape, "offset": [s.start for s in box], "spacing": list(spacing),
            "start": start, "floor": FLOOR, "words": "; ".join(words),
            "images": [_gray(MODALITY_TITLES[m], image[box]) for m, image in zip(MODALITIES, images, strict=True)],
            "masks": [{"title": title, "source": _mosaic(volume[box].astype(np.uint8), "PNG")}
                      for title, volume in labels.items()],
            "labels": [{"title": LABEL_SHORT[n], "color": color} for n, color in LABEL_COLORS.items()]}
    still = io.BytesIO()
    three_planes(images[0], labels or {"image": marks}, spacing, synthetic=synthetic).savefig(still, format="jpeg")
    name = f"brats-{zlib.crc32(json.dumps(data).encode()):08x}"          # equal patients, equal bytes in the notebook
    code = Path(__file__).with_name("viewer.js").read_text(encoding="utf-8")
    fallback = f"<img src='{_source(still.getvalue(), 'JPEG')}' style='max-width:100%' alt='{patient.name} in three planes'>"
    start = f"for (const root of document.querySelectorAll('#{name}')) showPatient(root, {json.dumps(data)});"
    return HTML(f"<div id='{name}'>{fallback}</div><script>{{{code}\n{start}}}</script>")


def _gray(title: str, image: np.ndarray) -> dict:
    """A contrast as a mosaic of gray values, FLOOR to 255 in the brain, and the intensities that these two stand for."""
    inside = image[image != 0]
    low, high = (float(v) for v in np.percentile(inside, [0.1, 99.9])) if inside.size else (0.0, 1.0)
    gray = np.clip(FLOOR + (255 - FLOOR) * (image - low) / max(high - low, 1e-9), FLOOR, 255)
    source = _mosaic(np.where(image == 0, 0, gray).astype(np.uint8), "JPEG")
    return {"title": title, "low": low, "high": high, "source": source}


def _mosaic(volume: np.ndarray, kind: str) -> str:
    """(X, Y, Z) uint8 as one picture of all axial slices, which a browser decodes at once."""
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


def threshold_explorer(patient: Patient, probability: np.ndarray, region: str = "WT",
                       synthetic: bool = False) -> ipywidgets.Widget:
    """Move the threshold on a region's probabilities, (X, Y, Z), and see mask, Dice, sensitivity and volume change."""
    import ipywidgets as widgets
    truth = np.isin(patient.reference, REGIONS[region])
    threshold = widgets.FloatSlider(0.45, min=0.05, max=0.95, step=0.05, description="threshold", continuous_update=False)
    index = widgets.IntSlider(widest(upright(truth, patient.affine)), 0, patient.images.shape[3] - 1, description="slice")
    image, line = widgets.Image(format="png"), widgets.Label()

    def draw(_: object = None) -> None:
        mask = probability >= threshold.value
        tp, fp, fn, _tn = counts(mask, truth)
        ml = float(np.prod(patient.spacing)) / 1000
        line.value = (f"Dice {dice(mask, truth):.3f}, sensitivity {tp / max(1, tp + fn):.3f}, "
                      f"volume {(tp + fp) * ml:.1f} ml (reference {(tp + fn) * ml:.1f} ml)")
        kinds = agreement(mask, truth)
        views = {f"green: both, orange: {region} too much, blue: missed": upright(patient.images[0], patient.affine)}
        image.value = png(compare_slices(views, index=index.value, labels=upright(kinds, patient.affine),
                                         spacing=lps_spacing(patient.spacing, patient.affine), synthetic=synthetic,
                                         prediction=True, legend=False, width=4.6))

    for control in (threshold, index):
        control.observe(draw, "value")
    draw()
    return widgets.VBox([threshold, index, line, image])


def agreement(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Where both masks agree, where one is too much, where one misses: as the labels ED (green), ET (orange), NCR (blue)."""
    return np.select([predicted & truth, predicted & ~truth, ~predicted & truth], [ED, ET, NCR], 0).astype(np.uint8)


def comparison_viewer(rows: Sequence[Mapping], read: Callable[[str], tuple[Patient, np.ndarray]],
                      synthetic: bool = False) -> ipywidgets.Widget:
    """Reference, prediction and error of every patient, the worst first; rows of `evaluation.evaluate`.

    read: a patient and his predicted labels, (X, Y, Z), by name; it is called when a patient is chosen.
    """
    import ipywidgets as widgets
    score = {row["name"]: float(np.mean([row[region]["dice"] for region in REGIONS])) for row in rows}
    order = sorted(score, key=score.get)
    who = widgets.Select(options=[(f"{score[name]:.3f}  {name}", name) for name in order], rows=6, description="mean Dice")
    index, image = widgets.IntSlider(description="slice"), widgets.Image(format="png")
    state: dict[str, object] = {}

    def choose(_: object = None) -> None:
        patient, labels = read(who.value)
        reference, predicted = (upright(volume, patient.affine) for volume in (patient.reference, labels))
        state.update(image=upright(patient.images[0], patient.affine), spacing=lps_spacing(patient.spacing, patient.affine),
                     views={"reference": reference, "prediction": predicted,
                            "WT: blue missed, orange too much": agreement(predicted > 0, reference > 0)})
        index.max, index.value = reference.shape[2] - 1, widest(reference)
        draw()

    def draw(_: object = None) -> None:
        figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.6))
        for ax, (title, labels) in zip(axes, state["views"].items(), strict=True):
            draw_slice(ax, state["image"], "axial", index.value, state["spacing"], labels)
            ax.set_title(title, fontsize=9)
        image.value = png(finish(figure, synthetic, legend=True, prediction=True))

    who.observe(choose, "value")
    index.observe(draw, "value")
    choose()
    return widgets.VBox([widgets.HBox([who, index]), image])


def augmentation_playground(prepared: Prepared, synthetic: bool = False) -> ipywidgets.Widget:
    """A slider for each transform of the augmentation, on the slice of a prepared patient that shows the most tumor."""
    import ipywidgets as widgets
    import torch

    from ..training import augmentation as augment
    z_scored = normalize(prepared.volume[:4], prepared.meta.mean, prepared.meta.std)
    at = slice(max(0, (z := widest(prepared.volume[4].T)) - 8), z + 8)   # a slab: what is not seen is not computed
    whole, marks = torch.from_numpy(z_scored[:, at]), torch.from_numpy(prepared.volume[4:, at])
    ranges = {"zoom": (1, 1.4, 1), "angle": (-45, 45, 0), "elastic": (0, 8, 0), "noise": (0, 0.5, 0), "blur": (0, 2, 0),
              "brightness": (0.7, 1.3, 1), "contrast": (0.65, 1.5, 1), "gamma": (0.7, 1.5, 1),
              "shift": (-0.5, 0.5, 0)}
    sliders = {name: widgets.FloatSlider(start, min=low, max=high, step=(high - low) / 20, description=name,
                                         continuous_update=False) for name, (low, high, start) in ranges.items()}
    image = widgets.Image(format="png")

    def draw(_: object = None) -> None:
        value = {name: slider.value for name, slider in sliders.items()}
        generator = torch.Generator().manual_seed(0)
        grid = augment.sampling_grid(whole.shape[1:], value["zoom"], [0, 0, value["angle"]], value["elastic"], generator)
        changed, moved = augment.resample(whole, marks, grid)
        brain, x = changed[4:], changed[:4]
        x = augment.add_noise(x, value["noise"], generator) if value["noise"] else x
        x = augment.blur(x, value["blur"]) if value["blur"] else x
        x = augment.change_gamma(augment.change_contrast(x * value["brightness"], value["contrast"]), value["gamma"])
        x = x + value["shift"]
        middle = whole.shape[1] // 2
        figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.6))
        for ax, name, volume, labels in zip(axes, ("original", "changed"), (whole[0], (x * brain)[0]), (marks, moved),
                                            strict=True):
            draw_slice(ax, volume.numpy().T, "axial", middle, labels=labels[0].numpy().T, limits=window(whole[0].numpy()),
                       opacity=0.25, letters=False)
            ax.set_title(name)
        image.value = png(finish(figure, synthetic, legend=True))

    for slider in sliders.values():
        slider.observe(draw, "value")
    draw()
    return widgets.HBox([widgets.VBox(list(sliders.values()), layout={"min_width": "310px"}), image])


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
    last, load = history[-1], gpu_load()
    line = f"epoch {last['epoch']}, step {last['step']}, {last['step'] / max(last['seconds'], 1e-9):.1f} steps a second"
    if "gpu/memory_gib" in load:
        line += f", {load['gpu/memory_gib']:.1f} GiB of GPU memory at most"
    if "gpu/percent_busy" in load:
        line += f", GPU {load['gpu/percent_busy']:.0f} % busy"
    return line
