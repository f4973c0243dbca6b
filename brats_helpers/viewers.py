"""Widgets for looking into volumes. ipywidgets is imported when one is made, not before.

A viewer draws one matplotlib figure into a PNG and replaces the picture when a control moves, so that
it needs no extension: it works in JupyterLab, VS Code, Kaggle and Colab, and a headless run stores
its first picture.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from .cases import Patient
from .constants import ED, ET, LABEL_COLOURS, MODALITIES, MODALITY_TITLES, NCR, REGIONS
from .metrics import counts, dice
from .plots import PLANES, compare_slices, draw_slice, finish, frame_of, learning_curves, upright, widest, window
from .preprocessing import Prepared, lps_spacing, normalise

if TYPE_CHECKING:
    import ipywidgets
    from IPython.display import HTML


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 1})       # quick: it is looked at, not kept
    return buffer.getvalue()


class Scene:
    """A patient made ready for drawing slices: turned upright once, so that a step of a slider takes milliseconds."""

    def __init__(self, patient: Patient, prediction: np.ndarray | None = None, synthetic: bool = False) -> None:
        self.images = {m: upright(image, patient.affine) for m, image in zip(MODALITIES, patient.images, strict=True)}
        self.limits = {m: window(image[::2, ::2, ::2]) for m, image in self.images.items()}
        self.frames = {plane: frame_of(self.images["flair"], plane) for plane in PLANES}
        self.labels = {title: upright(labels, patient.affine) for title, labels in (
            ("reference", patient.reference), ("prediction", prediction)) if labels is not None}
        self.spacing, self.synthetic = lps_spacing(patient.spacing, patient.affine), synthetic
        self.shape = self.images["flair"].shape

    def widest(self, plane: str) -> int:
        """The slice that shows the most tumor; the middle one where none is known."""
        known = next(iter(self.labels.values()), None)
        return self.shape[PLANES[plane][0]] // 2 if known is None else widest(known, plane)

    def draw(self, modality: str = "flair", plane: str = "axial", index: int | None = None, opacity: float = 0.5,
             shown: Sequence[str] = ("WT",)) -> Figure:
        """One slice, with the labels of these regions over it: the reference and, beside it, the prediction."""
        axis, wanted = PLANES[plane][0], [label for name in shown for label in REGIONS[name]]
        index = self.shape[axis] // 2 if index is None else index
        here = tuple(slice(index, index + 1) if a == axis else slice(None) for a in range(3))
        figure, axes = plt.subplots(1, max(1, len(self.labels)), figsize=(4.2 * max(1, len(self.labels)), 4.2), squeeze=False)
        for ax, (title, labels) in zip(axes[0], (self.labels or {"image": None}).items(), strict=True):
            marks = None if labels is None else np.where(np.isin(labels[here], wanted), labels[here], 0)
            draw_slice(ax, self.images[modality][here], plane, 0, self.spacing, marks, self.limits[modality], opacity,
                       frame=self.frames[plane])
            ax.set_title(f"{MODALITY_TITLES[modality]}, {title}")
        return finish(figure, self.synthetic, legend=True, prediction="prediction" in self.labels)


def picture(patient: Patient, prediction: np.ndarray | None = None, synthetic: bool = False, **view: object) -> Figure:
    """What the viewer draws, once: `view` is what `Scene.draw` takes."""
    return Scene(patient, prediction, synthetic).draw(**view)


def slice_viewer(patient: Patient, prediction: np.ndarray | None = None, synthetic: bool = False) -> ipywidgets.Widget:
    """Move through a patient: plane, slice, modality, opacity and regions; (X, Y, Z) as read from disk."""
    import ipywidgets as widgets
    scene = Scene(patient, prediction, synthetic)
    plane = widgets.ToggleButtons(options=list(PLANES), description="plane")
    index = widgets.IntSlider(scene.widest("axial"), 0, scene.shape[2] - 1, description="slice")
    modality = widgets.Dropdown(options=[(MODALITY_TITLES[m], m) for m in MODALITIES], description="modality")
    opacity = widgets.FloatSlider(0.5, min=0, max=1, step=0.1, description="opacity")
    shown = widgets.SelectMultiple(options=list(REGIONS), value=("WT",), rows=3, description="regions")
    image = widgets.Image(format="png")

    def draw(_: object = None) -> None:
        image.value = png(scene.draw(modality.value, plane.value, index.value, opacity.value, shown.value))

    def turn(_: object) -> None:
        index.max = scene.shape[PLANES[plane.value][0]] - 1
        index.value = scene.widest(plane.value)
        draw()

    plane.observe(turn, "value")
    for control in (index, modality, opacity, shown):
        control.observe(draw, "value")
    draw()
    return widgets.VBox([plane, widgets.HBox([index, modality]), widgets.HBox([opacity, shown]), image])


def film(patient: Patient, labels: np.ndarray | None = None, modality: str = "flair", every: int = 2) -> HTML:
    """All axial slices with a slider that needs no kernel: it moves in an exported page and in an untouched notebook.

    labels (0 to 3) are laid over as in the figures; every: 2 shows each second slice, to keep the notebook small.
    """
    from IPython.display import HTML
    image = upright(patient.images[MODALITIES.index(modality)], patient.affine)
    marks = np.zeros(image.shape, np.uint8) if labels is None else upright(labels, patient.affine)
    low, high = window(image)
    grey = np.clip((image - low) / (high - low), 0, 1)[..., None].repeat(3, -1)
    colours = np.array([(0, 0, 0), *map(to_rgb, LABEL_COLOURS.values())])[marks]
    shades = np.where((marks > 0)[..., None], 0.5 * grey + 0.5 * colours, grey)
    rows, columns = (np.flatnonzero((image != 0).any(axes)) for axes in ((0, 2), (1, 2)))
    shades = (255 * shades[columns[0]:columns[-1] + 1, rows[0]:rows[-1] + 1]).astype(np.uint8).swapaxes(0, 1)
    filled = np.flatnonzero((image != 0).any((0, 1)))[::every]
    first = int(np.abs(filled - widest(marks)).argmin())
    shown = "".join(f"<img src='data:image/jpeg;base64,{_jpeg(shades[:, :, z])}' alt='axial slice {z} of {modality}' "
                    f"width=280 style='display:{'block' if i == first else 'none'}'>" for i, z in enumerate(filled))
    move = ("var all=this.parentNode.getElementsByTagName('img');for(var i=0;i<all.length;i++)"
            "all[i].style.display=i==this.value?'block':'none'")
    return HTML(f"<div>{shown}<input type='range' aria-label='slice' min=0 max={len(filled) - 1} value={first} "
                f'style="width:280px" oninput="{move}"></div>')


def _jpeg(pixels: np.ndarray) -> str:
    """(rows, columns, 3) uint8 as the base64 of a JPEG, small ones enlarged so that voxels stay square."""
    from PIL import Image
    buffer, times = io.BytesIO(), max(1, round(140 / pixels.shape[1]))
    Image.fromarray(pixels.repeat(times, 0).repeat(times, 1)).save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


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

    from . import augment
    z_scored = normalise(prepared.volume[:4], prepared.meta.mean, prepared.meta.std)
    at = slice(max(0, (z := widest(prepared.volume[4].T)) - 8), z + 8)   # a slab: what is not seen is not computed
    whole, marks = torch.from_numpy(z_scored[:, at]), torch.from_numpy(prepared.volume[4:, at])
    ranges = {"zoom": (1, 1.4, 1), "angle": (-45, 45, 0), "elastic": (0, 8, 0), "noise": (0, 0.5, 0), "blur": (0, 2, 0),
              "brightness": (0.7, 1.3, 1), "contrast": (0.65, 1.5, 1), "gamma": (0.7, 1.5, 1)}
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
    return widgets.HBox([widgets.VBox(list(sliders.values())), image])


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
