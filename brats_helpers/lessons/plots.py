"""The series' pictures, each a function that returns a matplotlib figure.

Slices follow the radiological convention (the patient's right on the left of the picture), with the
aspect of the voxels and letters for the directions. Volumes are (X, Y, Z) in LPS: see `upright`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

from ..basics.constants import (
    LABEL_COLORS,
    LABEL_SHORT,
    MODALITIES,
    MODALITY_TITLES,
    NOT_FOR_DIAGNOSIS,
    REGION_COLORS,
    REGION_TITLES,
    REGIONS,
)
from ..data.cases import Patient
from ..data.preprocessing import Prepared, lps_spacing, to_lps
from .compare_cohorts import COMPARTMENTS, distances, scores_of

# Letters at the left, right, top and bottom of each plane's picture.
PLANES = {"axial": (2, "RLAP"), "coronal": (1, "RLSI"), "sagittal": (0, "APSI")}
LABEL_MAP = ListedColormap(["black", *LABEL_COLORS.values()])
INK, BLUE = "#333333", "#0072B2"
LINES = (BLUE, "#D55E00", "#009E73", "#CC79A7", INK)  # of curves, told apart by the color-blind, too


def use_style() -> None:
    """The look of all figures; called once in each notebook."""
    plt.rcParams.update({
        "figure.dpi": 90, "savefig.dpi": 90, "font.size": 9, "axes.titlesize": 10, "axes.edgecolor": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.labelcolor": INK, "xtick.color": INK,
        "ytick.color": INK, "text.color": INK, "legend.frameon": False, "figure.constrained_layout.use": True,
        "image.interpolation": "nearest"})


def upright(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(X, Y, Z) in any axis-aligned orientation to (X, Y, Z) in LPS, as the pictures want it."""
    return to_lps(volume, affine).T


def cut(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """The slice of a volume in a plane, rows from top to bottom of the picture: (rows, columns)."""
    axis = PLANES[plane][0]
    rows = np.take(volume, index, axis).T
    return rows if plane == "axial" else rows[::-1]   # the feet are below


def widest(labels: np.ndarray, plane: str = "axial") -> int:
    """The slice that shows the most tumor; the middle one where there is none."""
    axis = PLANES[plane][0]
    areas = (labels > 0).sum(axis=tuple(a for a in range(3) if a != axis))
    return int(areas.argmax()) if areas.any() else labels.shape[axis] // 2


def window(image: np.ndarray) -> tuple[float, float]:
    """Gray levels from the 0.5th to the 99.5th percentile of what is not background."""
    inside = image[image != 0]
    low, high = np.percentile(inside, [0.5, 99.5]) if inside.size else (0.0, 1.0)
    return (low, high) if low < high else (0.0, high)     # a mask has one value


def draw_slice(ax: Axes, image: np.ndarray, plane: str, index: int, spacing: Sequence[float] = (1, 1, 1),
               labels: np.ndarray | None = None, limits: tuple[float, float] | None = None, opacity: float = 0.55,
               letters: bool = True, frame: tuple[int, ...] = ()) -> None:
    """One slice of a volume with its labels laid over it; `frame` is what `frame_of` gives, where it is known already."""
    axis, marks = PLANES[plane]
    across, down = (s for a, s in enumerate(spacing) if a != axis)
    low, high = limits or window(image)
    shown = cut(image, plane, index)
    ax.imshow(np.where(shown == 0, low, shown), cmap="gray", vmin=low, vmax=high, aspect=down / across)
    if labels is not None:
        ax.imshow(np.ma.masked_equal(cut(labels, plane, index), 0), cmap=LABEL_MAP, vmin=0, vmax=3, alpha=opacity,
                  aspect=down / across)
    if letters:
        for mark, x, y, where in zip(marks, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.97, 0.03),
                                     (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom")),
                                     strict=True):
            ax.text(x, y, mark, transform=ax.transAxes, color="white", fontsize=8, ha=where[0], va=where[1])
    if frame := frame or frame_of(image, plane):
        ax.set(xlim=frame[:2], ylim=frame[2:])
    ax.set_facecolor("black")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def frame_of(image: np.ndarray, plane: str) -> tuple[int, ...]:
    """Left, right, bottom and top of the whole brain's outline in a plane, so that every slice has one frame."""
    shadow = image.any(PLANES[plane][0]).T
    rows, columns = (np.flatnonzero((shadow if plane == "axial" else shadow[::-1]).any(a)) for a in (1, 0))
    return (columns[0] - 4, columns[-1] + 4, rows[-1] + 4, rows[0] - 4) if len(rows) else ()


def finish(figure: Figure, synthetic: bool, legend: bool = False, prediction: bool = False) -> Figure:
    """The legend of the labels, and below what is shown: that it is synthetic, that a prediction is no diagnosis.

    The figure is closed to further drawing.
    """
    if legend:
        figure.legend(handles=[Patch(color=c, label=LABEL_SHORT[n]) for n, c in LABEL_COLORS.items()],
                      loc="outside lower left", ncols=3)
    if words := [NOT_FOR_DIAGNOSIS] * prediction + ["synthetic"] * synthetic:
        figure.supxlabel("; ".join(words), x=0.995, ha="right", fontsize=8, style="italic", color="#777777")
    plt.close(figure)                                 # a notebook shows what is returned, once
    return figure


# ---------------------------------------------------------------- simple ones

def series_map(here: int) -> Figure:
    """The five notebooks in their order, with what each hands on, and the one that is open."""
    steps = (("01", "setup", "patients"), ("02", "extraction", "checked\ncases"),
             ("03", "preprocessing", "one file\na patient"), ("04", "architecture", "a network"),
             ("05", "training and\nevaluation", ""))
    figure, ax = plt.subplots(figsize=(9.6, 1.1))
    for place, (number, name, gives) in enumerate(steps):
        current = place + 1 == here
        ax.add_patch(FancyBboxPatch((place * 2, 0), 1.3, 1, boxstyle="round,pad=0.05", color=BLUE if current else "#DDDDDD"))
        ax.text(place * 2 + 0.65, 0.5, f"{number} {name}", ha="center", va="center", color="white" if current else INK)
        if gives:
            ax.annotate("", (place * 2 + 1.93, 0.5), (place * 2 + 1.37, 0.5), arrowprops={"arrowstyle": "->", "color": INK})
            ax.text(place * 2 + 1.65, 0.58, gives, ha="center", va="bottom", fontsize=7)
    ax.set(xlim=(-0.1, 9.45), ylim=(-0.1, 1.3))
    ax.set_axis_off()
    return finish(figure, False)


def bars(values: Mapping[str, float], label: str, unit: str = "", colors: Sequence[str] = (), title: str = "",
         notes: Sequence[str] = ()) -> Figure:
    """Named numbers as horizontal bars, each with its value, or its note, beside it."""
    figure, ax = plt.subplots(figsize=(6.4, 0.6 + 0.32 * len(values)))
    drawn = ax.barh(list(values), list(values.values()), color=list(colors) or BLUE)
    ax.bar_label(drawn, notes or [f"{value:.3g} {unit}" for value in values.values()], padding=3, fontsize=8)
    ax.set(xlabel=label, title=title, xlim=(0, 1.25 * max(values.values())))
    ax.invert_yaxis()
    return finish(figure, False)


def curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], xlabel: str, ylabel: str = "",
           log: bool = False) -> Figure:
    """Lines in one panel or in several: title of the panel -> name of the line -> its x and its y."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels) + 1.2, 2.5), squeeze=False)
    for ax, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for number, (name, (x, y)) in enumerate(lines.items()):
            ax.plot(x, y, label=name, color=LINES[number % len(LINES)], linestyle=("-", "--", ":")[number // len(LINES) % 3],
                    marker="o" if len(x) == 1 else "")
        ax.set(title=title, xlabel=xlabel, yscale="log" if log else "linear")
        if not log and ax.get_ylim()[0] > 0:          # from zero, so that a small change looks small
            ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
        if len(lines) > 1:
            ax.legend(fontsize=8)
    axes[0, 0].set_ylabel(ylabel)
    return finish(figure, False)


def pictures(images: Mapping[str, np.ndarray], synthetic: bool = False, limits: tuple[float, float] | None = None,
             prediction: bool = False) -> Figure:
    """Named two-dimensional arrays side by side, in gray, rows from top to bottom."""
    figure, axes = plt.subplots(1, len(images), figsize=(2.3 * len(images), 2.6), squeeze=False)
    for ax, (name, image) in zip(axes[0], images.items(), strict=True):
        ax.imshow(image, cmap="gray", vmin=limits and limits[0], vmax=limits and limits[1])
        ax.set(title=name, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return finish(figure, synthetic, prediction=prediction)


# ---------------------------------------------------------------- patients

def show_modalities(patient: Patient, plane: str = "axial", index: int | None = None, synthetic: bool = False) -> Figure:
    """The four contrasts of one slice, and below them the same with the reference over it."""
    images = [upright(image, patient.affine) for image in patient.images]
    labels = None if patient.reference is None else upright(patient.reference, patient.affine)
    spacing = lps_spacing(patient.spacing, patient.affine)
    index = index if index is not None else widest(labels if labels is not None else np.zeros(images[0].shape), plane)
    rows = 1 if labels is None else 2
    figure, axes = plt.subplots(rows, 4, figsize=(9.6, 2.6 * rows), squeeze=False)
    for column, (modality, image) in enumerate(zip(MODALITIES, images, strict=True)):
        for row in range(rows):
            draw_slice(axes[row, column], image, plane, index, spacing, labels if row else None)
        axes[0, column].set_title(MODALITY_TITLES[modality])
    figure.suptitle(f"{patient.name}, {plane} slice {index}", fontsize=10, parse_math=False)     # names may hold a $
    return finish(figure, synthetic, legend=labels is not None)


def compare_slices(volumes: Mapping[str, np.ndarray], plane: str = "axial", index: int | None = None,
                   labels: np.ndarray | None = None, spacing: Sequence[float] = (1, 1, 1), synthetic: bool = False,
                   title: str = "", shared_window: bool = False, columns: int = 4, prediction: bool = False,
                   legend: bool = True, width: float = 2.4) -> Figure:
    """Named volumes side by side in one slice, for before and after; `labels` is one volume for all, or none;
    prediction: whether one of the volumes is a network's; width: of a picture, in inches."""
    first = next(iter(volumes.values()))
    if index is None:
        index = widest(labels, plane) if labels is not None else first.shape[PLANES[plane][0]] // 2
    limits = window(first) if shared_window else None
    columns = min(columns, len(volumes))
    rows = -(-len(volumes) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, 1.08 * width * rows), squeeze=False)
    for ax, (name, volume) in zip(axes.flat, volumes.items(), strict=False):
        draw_slice(ax, volume, plane, index, spacing, labels, limits)
        ax.set_title(name)
    for ax in axes.flat[len(volumes):]:
        ax.set_axis_off()
    figure.suptitle(title, fontsize=10, parse_math=False)
    return finish(figure, synthetic, legend=legend and labels is not None, prediction=prediction)


def three_planes(image: np.ndarray, overlays: Mapping[str, np.ndarray], spacing: Sequence[float], title: str = "",
                 synthetic: bool = False) -> Figure:
    """Axial, coronal and sagittal slices through the tumor: the image alone, then with each named overlay."""
    first = next(iter(overlays.values()))
    figure, axes = plt.subplots(3, 1 + len(overlays), figsize=(2.5 * (1 + len(overlays)), 6.6), squeeze=False)
    for row, plane in zip(axes, PLANES, strict=True):
        index = widest(first, plane)
        for ax, (name, labels) in zip(row, {"": None, **overlays}.items(), strict=True):
            draw_slice(ax, image, plane, index, spacing, labels)
            if plane == "axial":
                ax.set_title(name)
        row[0].set_title(f"{plane} {index}", fontsize=9)
    figure.suptitle(title, fontsize=10, parse_math=False)
    return finish(figure, synthetic, legend=True, prediction="prediction" in overlays)


def tumor_3d(labels: np.ndarray, brain: np.ndarray, spacing: Sequence[float], title: str = "",
             synthetic: bool = False) -> Figure:
    """The regions as surfaces in a transparent brain, seen from the front left and from above; labels and brain in LPS."""
    from skimage.measure import marching_cubes
    figure = plt.figure(figsize=(9, 4.2))
    step = max(1, round(3 / min(spacing)))
    surfaces = [(brain, "#999999", 0.07)] + [
        (np.isin(labels, REGIONS[name]), REGION_COLORS[name], alpha)
        for name, alpha in (("WT", 0.18), ("TC", 0.35), ("ET", 0.55))]
    for place, (elevation, azimuth, view) in enumerate([(12, 60, "from the front and the left"), (80, 90, "from above")], 1):
        ax = figure.add_subplot(1, 2, place, projection="3d")
        for mask, color, alpha in surfaces:
            if mask.sum() > 8:
                stride = step if mask is brain else 1 if mask.sum() < 20_000 else 2
                points, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, spacing=tuple(spacing),
                                                     step_size=stride)
                ax.plot_trisurf(points[:, 0], points[:, 1], faces, points[:, 2], color=(*to_rgb(color), alpha),
                                linewidth=0, shade=True)
        ax.view_init(elevation, -azimuth)
        ax.set_box_aspect(np.array(brain.shape) * spacing, zoom=1.5)
        ax.set_axis_off()
        ax.set_title(view, fontsize=9)
    figure.legend(handles=[Patch(color=REGION_COLORS[n], label=REGION_TITLES[n]) for n in REGIONS],
                  loc="outside lower center", ncols=3)
    figure.suptitle(title, fontsize=10, parse_math=False)
    return finish(figure, synthetic)


# ---------------------------------------------------------------- cohorts

def histograms(images: np.ndarray, labels: np.ndarray | None, unit: str, synthetic: bool = False) -> Figure:
    """The intensities of each modality in the brain, and those of each tumor label over them: images (4, X, Y, Z)."""
    figure, axes = plt.subplots(1, 4, figsize=(9.6, 2.4))
    brain = (images != 0).any(0)
    for ax, modality, image in zip(axes, MODALITIES, images, strict=True):
        bins = np.linspace(*np.percentile(image[brain], [0.2, 99.8]), 60)
        groups = {"brain": (brain if labels is None else brain & (labels == 0), "#999999")}
        if labels is not None:
            groups |= {LABEL_SHORT[n]: (labels == n, color) for n, color in LABEL_COLORS.items()}
        for name, (mask, color) in groups.items():
            if mask.any():
                ax.hist(image[mask], bins, density=True, histtype="stepfilled" if name == "brain" else "step",
                        color=color, alpha=0.5 if name == "brain" else 1, label=name)
        ax.set(title=MODALITY_TITLES[modality], xlabel=unit, yticks=[])
    axes[0].set_ylabel("share of voxels")
    axes[-1].legend(fontsize=8)
    return finish(figure, synthetic)


def two_cohorts(here: Sequence[Prepared], there: Sequence[Prepared], names: Sequence[str], synthetic: bool = False) -> Figure:
    """z-scores by compartment and contrast of two cohorts, `names` in the legend; above each panel their distance."""
    apart = distances(here, there)
    figure, axes = plt.subplots(len(COMPARTMENTS), len(MODALITIES), figsize=(9.6, 6), sharex=True)
    bins = np.linspace(-3, 6, 46)
    for row, (label, compartment) in zip(axes, COMPARTMENTS.items(), strict=True):
        values = [scores_of(cohort, label) for cohort in (there, here)]
        for n, (ax, title) in enumerate(zip(row, MODALITY_TITLES.values(), strict=True)):
            for scores, look in zip(values, ({"color": "#BBBBBB", "label": names[1]}, {
                    "histtype": "step", "color": BLUE, "lw": 1.5, "label": names[0]}), strict=True):
                if scores.size:                       # a few patients may have none of a compartment
                    ax.hist(scores[n], bins, density=True, **look)
            ax.set(title=f"{title}, {compartment}: {apart[compartment][title]:.2f}", yticks=[])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    axes[-1, 0].set_xlabel("z-score")
    return finish(figure, synthetic)


def volume_distribution(rows: Sequence[Mapping], synthetic: bool = False) -> Figure:
    """Volumes of the regions over a cohort, from the rows of `cases.check_cohort`, on a logarithmic axis."""
    figure, ax = plt.subplots(figsize=(6.4, 2.6))
    rng = np.random.default_rng(0)                    # spreads the dots so that they do not hide each other
    for height, (name, members) in enumerate(REGIONS.items()):
        volumes = np.array([sum(row["volumes_ml"][LABEL_SHORT[n]] for n in members) for row in rows if row["volumes_ml"]])
        some = volumes[volumes > 0]
        ax.scatter(some, height + rng.uniform(-0.18, 0.18, len(some)), s=14, alpha=0.6, color=REGION_COLORS[name])
        ax.plot([np.median(volumes)] * 2, [height - 0.32, height + 0.32], color=INK)
        ax.text(1.01, height, f"median {np.median(volumes):.0f} ml\nnone in {np.sum(volumes == 0)} of {len(volumes)}",
                transform=ax.get_yaxis_transform(), va="center", fontsize=8)
    ax.set(xscale="log", xlabel="volume (ml)", yticks=range(3), yticklabels=[REGION_TITLES[n] for n in REGIONS])
    ax.invert_yaxis()
    return finish(figure, synthetic)


# ---------------------------------------------------------------- training and results

def learning_curves(history: Sequence[Mapping]) -> Figure:
    """Loss, validation Dice by region, and learning rate, from the records of `training.train`."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 2.6))
    epochs = [record["epoch"] for record in history]
    left.plot(epochs, [record["loss"] for record in history], color=INK)
    left.set(title="training loss", xlabel="epoch", ylim=(0, None))
    scored = [record for record in history if record["dice"]]
    for name in REGIONS:
        middle.plot([r["epoch"] for r in scored], [r["dice"][name] for r in scored], "o-", ms=3,
                    color=REGION_COLORS[name], label=name)
    middle.set(title="validation Dice", xlabel="epoch", ylim=(0, 1))
    middle.legend(loc="lower right")
    right.plot(epochs, [record["learning_rate"] for record in history], color=INK)
    right.set(title="learning rate at the epoch's end", xlabel="epoch", ylim=(0, None))
    return finish(figure, False)


def dice_boxplot(rows: Sequence[Mapping], key: str = "dice", label: str = "Dice", synthetic: bool = False) -> Figure:
    """One score of every patient by region, from rows of `metrics.score_case`: box, dots, mean."""
    figure, ax = plt.subplots(figsize=(5, 3))
    rng = np.random.default_rng(0)
    for place, name in enumerate(REGIONS):
        values = np.array([row[name][key] for row in rows])
        ax.boxplot(values, positions=[place], widths=0.5, showfliers=False, medianprops={"color": INK})
        ax.scatter(place + rng.uniform(-0.15, 0.15, len(values)), values, s=16, alpha=0.65, color=REGION_COLORS[name])
    means = {name: np.mean([row[name][key] for row in rows]) for name in REGIONS}
    ax.set(xticks=range(3), xticklabels=[f"{n}\nmean {mean:.{1 if key == 'hd95_mm' else 3}f}" for n, mean in means.items()],
           ylabel=label, xlim=(-0.5, 2.5))
    if key != "hd95_mm":
        ax.set_ylim(-0.03, 1.03)
    return finish(figure, synthetic)


def diagram_unet(rows: Sequence[Mapping]) -> Figure:
    """The network as drawn in papers, from `unet.level_table`: a box a level, skips across, heads at the right."""
    encoder = [row for row in rows if row["level"].startswith("encoder")]
    figure, ax = plt.subplots(figsize=(9.6, 0.62 * len(encoder) + 0.6))
    depth = len(encoder) - 1
    for row in rows:
        if row["level"] == "heads":
            continue
        side, level = row["level"].split()
        x, y = (-4 if side == "encoder" else 4) * (1 - int(level) / (depth + 1)), -int(level)
        if int(level) == depth:
            x = 0
        width = 1.1 + 1.2 * row["channels"] / encoder[-1]["channels"]
        ax.add_patch(FancyBboxPatch((x - width / 2, y - 0.28), width, 0.56, boxstyle="round,pad=0.02",
                                    color="#56B4E9" if side == "encoder" else "#F0C674", alpha=0.75))
        ax.text(x, y, f"{row['channels']} x {row['edge']}$^3$", ha="center", va="center", fontsize=8)
        if side == "decoder":
            ax.annotate("", (x - width / 2 - 0.05, y), (-x + width / 2 + 0.05, y),
                        arrowprops={"arrowstyle": "->", "color": "#999999", "linestyle": "--"})
            if int(level) < 3:
                ax.annotate(f"3 x {row['edge']}$^3$", (x + width / 2 + 0.05, y), (x + 2.2, y), va="center", fontsize=8,
                            arrowprops={"arrowstyle": "<-", "color": INK})
    ax.text(-4, 0.55, "5 channels in", ha="center", fontsize=8)
    ax.set(xlim=(-5.4, 7), ylim=(-depth - 0.6, 0.9))
    ax.set_axis_off()
    ax.set_title("boxes: channels x edge of the volume; dashed: skip connections; right: heads", fontsize=9)
    return finish(figure, False)
