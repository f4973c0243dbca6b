"""Draw the pictures of the series; each function returns a closed matplotlib figure with alt text.

Slices follow the radiological convention (the patient's right is on the left of the picture), with
the voxels' aspect and letters for the directions. Volumes are (X, Y, Z) in LPS: see `upright`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter

from ..basics.constants import (
    ERROR_COLORS,
    LABEL_COLORS,
    LABEL_NAMES,
    LABEL_SHORT,
    MODALITIES,
    MODALITY_TITLES,
    NOT_FOR_DIAGNOSIS,
    REGION_COLORS,
    REGION_TITLES,
    REGIONS,
)
from ..data.cases import Patient
from ..data.preprocessing import (
    Prepared,
    lps_spacing,
    padded_box,
    slice_with_most_tumor,
    to_lps,
)
from .compare_cohorts import distances, z_scores_of
from .surfaces import camera, render

ERROR_TITLE = "errors, whole tumor"  # the title of their column
# Letters at the left, right, top and bottom of each plane's picture, and how they are aligned.
PLANES = {"axial": (2, "RLAP"), "coronal": (1, "RLSI"), "sagittal": (0, "APSI")}
LETTERS = ((0.03, 0.5, "left", "center"), (0.97, 0.5, "right", "center"),
           (0.5, 0.97, "center", "top"), (0.5, 0.03, "center", "bottom"))
LABEL_LEGEND = {LABEL_SHORT[n]: color for n, color in LABEL_COLORS.items()}
INK, BLUE, GRAY = "#333333", "#0072B2", "#999999"
LINES = (BLUE, "#D55E00", "#009E73", "#CC79A7", INK)  # told apart by the color-blind, too


@dataclass(frozen=True)
class SliceStyle:
    """The look of a slice: gray levels, and the opacity and palette of what lies over it."""

    limits: tuple[float, float] | None = None  # intensities of black and white; None: `window`
    opacity: float = 1.0
    legend: Mapping[str, str] | None = None  # name -> color of values 1, 2, 3; None: the labels


def use_style() -> None:
    """Set the look of all figures."""
    plt.rcParams.update({
        "figure.dpi": 150, "savefig.dpi": 150, "font.size": 9, "axes.titlesize": 10,
        "axes.edgecolor": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
        "legend.frameon": False, "figure.constrained_layout.use": True,
        "image.interpolation": "nearest"})


def upright(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Turn (X, Y, Z) in any axis-aligned orientation to (X, Y, Z) in LPS."""
    return to_lps(volume, affine).T


def cut(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Return a slice as rows from top to bottom of the picture: (rows, columns)."""
    rows = np.take(volume, index, PLANES[plane][0]).T
    return rows if plane == "axial" else rows[::-1]  # the feet are below


def window(image: np.ndarray) -> tuple[float, float]:
    """Return the darkest and the brightest value to draw, without outliers or background.

    A scan without negative values starts at half its dark end, which keeps white matter on T2 gray.
    """
    inside = image[image != 0]
    low, high = np.percentile(inside, [0.5, 99.5]) if inside.size else (0.0, 1.0)
    low = low / 2 if low > 0 else low
    return (low, high) if low < high else (0.0, high)  # a mask has one value


def draw_slice(ax: Axes, image: np.ndarray, plane: str, index: int,
               spacing: Sequence[float] = (1, 1, 1), labels: np.ndarray | None = None,
               letters: bool = True, style: SliceStyle = SliceStyle()) -> None:
    """Draw one slice of a volume with its labels over it."""
    axis = PLANES[plane][0]
    across, down = (s for a, s in enumerate(spacing) if a != axis)
    low, high = style.limits or window(image)
    shown = cut(image, plane, index)
    ax.imshow(np.where(shown == 0, low, shown), cmap="gray", vmin=low, vmax=high,
              aspect=down / across)
    if labels is not None:
        gray = np.clip((shown - low) / max(high - low, 1e-9), 0, 1)
        ax.imshow(tint(gray, cut(labels, plane, index), style.legend or LABEL_LEGEND,
                       style.opacity), aspect=down / across)
    if letters:
        add_letters(ax, plane)
    # The outline of the whole brain, so that every slice has one frame.
    outline = image.any(axis).T[::1 if plane == "axial" else -1]
    rows, columns = (np.flatnonzero(outline.any(a)) for a in (1, 0))
    if len(rows):
        ax.set(xlim=(columns[0] - 4, columns[-1] + 4), ylim=(rows[-1] + 4, rows[0] - 4))
    ax.set_facecolor("black")
    _hide_frame(ax)


def tint(gray: np.ndarray, marks: np.ndarray, legend: Mapping[str, str],
         opacity: float | np.ndarray = 1.0) -> np.ndarray:
    """Return an overlay for a slice: RGBA, (rows, columns, 4), transparent where marks are 0.

    The mark (1, 2, ...) decides the hue and the gray (0 to 1) the brightness, so that a label has
    the color of the legend on every modality and the tissue stays visible.
    """
    colors = np.array([(0, 0, 0), *map(to_rgb, legend.values())])[np.asarray(marks, int)]
    shaded = colors * (0.6 + 0.4 * gray[..., None])
    return np.dstack([shaded, opacity * (np.asarray(marks) > 0)])


def add_letters(ax: Axes, plane: str) -> None:
    """Write on each side of a picture which side of the patient it shows."""
    for mark, (x, y, ha, va) in zip(PLANES[plane][1], LETTERS, strict=True):
        ax.text(x, y, mark, transform=ax.transAxes, color="white", fontsize=8, ha=ha, va=va,
                path_effects=[withStroke(linewidth=1.5, foreground="black")])


def _hide_frame(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def caption(prediction: bool, synthetic: bool) -> str:
    """Return the words below a picture: every prediction is marked as not for diagnosis."""
    return "; ".join([NOT_FOR_DIAGNOSIS] * prediction + ["synthetic"] * synthetic)


def finish(figure: Figure, synthetic: bool, legend: bool | Mapping[str, str] = False,
           prediction: bool = False, alt: str = "") -> Figure:
    """Add the legend, the words below and alt text to a figure, and close it in pyplot.

    `legend` is True for the labels, or name -> color. `prediction` tells whether it shows what a
    network predicted. `alt` describes it for readers who cannot see it, by default from the titles.
    """
    if legend:
        colors = LABEL_LEGEND if legend is True else legend
        figure.legend(handles=[Patch(color=c, label=name) for name, c in colors.items()],
                      loc="outside lower left", ncols=len(colors))
    if words := caption(prediction, synthetic):
        figure.supxlabel(words, x=0.995, ha="right", fontsize=8, style="italic", color="#777777")
    plt.close(figure)  # a notebook shows what is returned, once
    return add_alt_text(figure, alt or _alt_from_titles(figure))


def add_alt_text(figure: Figure, alt: str) -> Figure:
    """Give a figure alt text, which a notebook stores with its picture and a page shows."""
    # IPython asks for this method and draws the PNG itself.
    figure._repr_mimebundle_ = lambda **_: ({}, {"image/png": {"alt": alt}})
    return figure


def _alt_from_titles(figure: Figure) -> str:
    """Describe a figure by its title, its panels and what they show."""
    parts = [text.get_text() for text in figure.texts]
    for ax in figure.axes:
        names = (ax.get_legend_handles_labels()[1] if ax.lines or ax.collections else
                 [tick.get_text() for tick in ax.get_yticklabels()] if ax.containers else [])
        against = " against ".join(filter(None, (ax.get_ylabel(), ax.get_xlabel())))
        names = [name for name in names if name]
        parts += [": ".join(filter(None, (ax.get_title() or against, ", ".join(names))))]
    return "; ".join(dict.fromkeys(part.replace("\n", " ") for part in parts if part)) or "figure"


# ---- simple ones

def series_map(here: int) -> Figure:
    """Draw the five notebooks in order, what each leaves for the next, and the open one."""
    steps = (("01", "setup", "patients"), ("02", "extraction", "checked\ncases"),
             ("03", "preprocessing", "one file\nper patient"), ("04", "architecture", "ideas"),
             ("05", "training and\nevaluation", ""))
    figure, ax = plt.subplots(figsize=(9.6, 1.1))
    for place, (number, name, gives) in enumerate(steps):
        current, x = place + 1 == here, place * 2
        ax.add_patch(FancyBboxPatch((x, 0), 1.3, 1, boxstyle="round,pad=0.05",
                                    color=BLUE if current else "#DDDDDD"))
        ax.text(x + 0.65, 0.5, f"{number} {name}", ha="center", va="center",
                color="white" if current else INK)
        if gives:
            _arrow(ax, (x + 1.37, 0.5), (x + 1.93, 0.5))
            ax.text(x + 1.65, 0.58, gives, ha="center", va="bottom", fontsize=7)
    ax.set(xlim=(-0.1, 9.45), ylim=(-0.1, 1.3))
    ax.set_axis_off()
    names = ", ".join(" ".join(step[:2]).replace("\n", " ") for step in steps)
    return finish(figure, False, alt=f"The five notebooks: {names}. This is number {here}.")


def _arrow(ax: Axes, start: Sequence[float], end: Sequence[float], color: str = INK,
           line: str = "-") -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": color, "linestyle": line})


def bars(values: Mapping[str, float], label: str, unit: str = "", colors: Sequence[str] = (),
         notes: Sequence[str] = ()) -> Figure:
    """Draw named numbers as horizontal bars, each followed by its value or its note."""
    figure, ax = plt.subplots(figsize=(6.4, 0.6 + 0.32 * len(values)))
    drawn = ax.barh(list(values), list(values.values()), color=list(colors) or BLUE)
    notes = notes or [f"{number} {unit}" for number in same_digits(list(values.values()))]
    ax.bar_label(drawn, notes, padding=3, fontsize=8)
    ax.set(xlabel=label, xlim=(0, 1.25 * max(values.values())))
    ax.invert_yaxis()
    told = ", ".join(f"{name} {note.strip()}" for name, note in zip(values, notes, strict=True))
    return finish(figure, False, alt=f"{label}: {told}")


def same_digits(values: Sequence[float]) -> list[str]:
    """Write numbers with the same count of decimals, so that the largest has three digits."""
    digits = max(0, 2 - int(np.floor(np.log10(max(np.abs(values).max(), 1e-9)))))
    least = 10.0**-digits
    return [f"< {least:.{digits}f}" if 0 < value < least / 2 else f"{value:,.{digits}f}"
            for value in values]


def curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], xlabel: str,
           ylabel: str = "", log: bool = False) -> Figure:
    """Draw lines in one or more panels: title of the panel -> name of the line -> its x and y."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels) + 1.2, 2.5),
                                squeeze=False)
    for ax, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for number, (name, (x, y)) in enumerate(lines.items()):
            dashes = ("-", "--", ":")[number // len(LINES) % 3]
            ax.plot(x, y, label=name, color=LINES[number % len(LINES)], linestyle=dashes,
                    marker="o" if len(x) == 1 else "")
        ax.set(title=title, xlabel=xlabel, yscale="log" if log else "linear")
        if log:
            _plain_log_ticks(ax, "y")
        elif ax.get_ylim()[0] > 0:  # from zero, so that a small change looks small
            ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
        if len(lines) > 1:
            beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(panels) == 1 else {}
            ax.legend(fontsize=8, **beside)
    axes[0, 0].set_ylabel(ylabel)
    return finish(figure, False)


def _plain_log_ticks(ax: Axes, which: str) -> None:
    """Label a logarithmic axis with 0.5, 1, 20 instead of powers of ten."""
    axis, (low, high) = getattr(ax, f"{which}axis"), sorted(getattr(ax, f"get_{which}lim")())
    few = high / low < 30
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def pictures(images: Mapping[str, np.ndarray], synthetic: bool = False,
             limits: tuple[float, float] | None = None, prediction: bool = False,
             plane: str = "") -> Figure:
    """Draw named arrays, (rows, columns), side by side.

    Arrays of uint8 are labels and get their colors (3 and 4 are both ET); all others are gray.
    `plane` gives slices its letters; a picture named after a plane gets that plane's.
    """
    figure, axes = plt.subplots(1, len(images), figsize=(min(9.6, 3.2 * len(images)), 3.2),
                                squeeze=False)
    low, high = limits or (None, None)
    for ax, (name, image) in zip(axes[0], images.items(), strict=True):
        if image.dtype == np.uint8:
            ax.imshow(tint(np.ones(image.shape), np.minimum(image, 3), LABEL_LEGEND))
            ax.set_facecolor("black")
        else:
            ax.imshow(image, cmap="gray", vmin=low, vmax=high)
        if kind := name if name in PLANES else plane:
            add_letters(ax, kind)
        ax.set_title(name)
        _hide_frame(ax)
    labeled = any(image.dtype == np.uint8 for image in images.values())
    return finish(figure, synthetic, labeled, prediction)


# ---- patients

def show_modalities(patient: Patient, plane: str = "axial", synthetic: bool = False) -> Figure:
    """Draw the four modalities of one slice, and below them the same with the reference."""
    images = [upright(image, patient.affine) for image in patient.images]
    known = patient.reference is not None
    labels = upright(patient.reference, patient.affine) if known else np.zeros(images[0].shape)
    spacing = lps_spacing(patient.spacing, patient.affine)
    index = slice_with_most_tumor(labels, PLANES[plane][0])
    figure, axes = plt.subplots(1 + known, 4, figsize=(9.6, 2.6 * (1 + known)), squeeze=False)
    for column, (modality, image) in enumerate(zip(MODALITIES, images, strict=True)):
        for row in range(1 + known):
            draw_slice(axes[row, column], image, plane, index, spacing, labels if row else None)
        axes[0, column].set_title(MODALITY_TITLES[modality])
    _suptitle(figure, f"{patient.name}, {plane} slice {index}")
    return finish(figure, synthetic, legend=known)


def _suptitle(figure: Figure, title: str) -> None:
    figure.suptitle(title, fontsize=10, parse_math=False)  # a patient's name may hold a $


def compare_slices(volumes: Mapping[str, np.ndarray], index: int | None = None,
                   labels: Mapping[str, np.ndarray] | None = None,
                   spacing: Sequence[float] = (1, 1, 1), synthetic: bool = False, title: str = "",
                   shared_window: bool = False, columns: int = 4, letters: bool = True) -> Figure:
    """Draw an axial slice of each named volume, with the labels of the same name over it.

    The default `index` is the slice with the most tumor, or the middle one without labels.
    `letters` adds R, L, A and P at the edges.
    """
    everything = np.concatenate([volume.ravel() for volume in volumes.values()])
    style = SliceStyle(limits=window(everything) if shared_window else None)
    columns = min(columns, len(volumes))
    rows, width = ceil(len(volumes) / columns), min(3.2, 9.6 / columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False,
                                figsize=(width * columns, 1.08 * width * rows))
    for ax, (name, volume) in zip(axes.flat, volumes.items(), strict=False):
        own = labels and labels[name]
        middle = volume.shape[2] // 2 if own is None else slice_with_most_tumor(own)
        draw_slice(ax, volume, "axial", middle if index is None else index, spacing, own, letters,
                   style)
        ax.set_title(name)
    for ax in axes.flat[len(volumes):]:
        ax.set_axis_off()
    _suptitle(figure, title)
    return finish(figure, synthetic, labels is not None)


def three_planes(image: np.ndarray, overlays: Mapping[str, np.ndarray], spacing: Sequence[float],
                 title: str = "", synthetic: bool = False) -> Figure:
    """Draw three planes through the tumor: the image alone, then with each named overlay.

    Overlays named "reference" and "prediction" are followed by the errors in the whole tumor.
    """
    first, shown = next(iter(overlays.values())), {"": None, **overlays}
    compared = {"reference", "prediction"} <= set(overlays)
    if compared:
        shown[ERROR_TITLE] = agreement(overlays["prediction"] > 0, overlays["reference"] > 0)
    figure, axes = plt.subplots(3, len(shown), figsize=(2.4 * len(shown), 6.6), squeeze=False)
    for row, plane in zip(axes, PLANES, strict=True):
        index = slice_with_most_tumor(first, PLANES[plane][0])
        for ax, (name, labels) in zip(row, shown.items(), strict=True):
            style = SliceStyle(legend=ERROR_COLORS if name == ERROR_TITLE else None)
            draw_slice(ax, image, plane, index, spacing, labels, style=style)
            if plane == "axial":
                ax.set_title(name)
        row[0].set_title(f"{plane} {index}", fontsize=9)
    _suptitle(figure, title)
    legend = LABEL_LEGEND | (ERROR_COLORS if compared else {})
    return finish(figure, synthetic, legend, prediction="prediction" in overlays)


def agreement(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compare two masks: 1 where voxels are missed, 2 where false, 3 where correct, else 0."""
    kinds = [~predicted & truth, predicted & ~truth, predicted & truth]
    return np.select(kinds, [1, 2, 3], 0).astype(np.uint8)


def tumor_3d(labels: np.ndarray, brain: np.ndarray, spacing: Sequence[float], title: str = "",
             synthetic: bool = False) -> Figure:
    """Draw the tumor in its translucent brain, whole and cut open; labels and brain in LPS.

    The view is from the side of the head on which the tumor lies.
    """
    box = padded_box(brain, 2)
    labels, brain = labels[box], brain[box]
    size = np.multiply(labels.shape, spacing)
    reach = float(np.linalg.norm(size)) / 2
    tumor = np.argwhere(labels) if labels.any() else np.argwhere(brain)
    x, y, _ = tumor.mean(0) / labels.shape - 0.5
    front, left = y < 0.1, x > 0
    place = f"from the {'front' if front else 'back'} and the {'left' if left else 'right'}"
    azimuth = (40 if front else 140) * (1 if left else -1)
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.6))
    middle = slice_with_most_tumor(labels)
    for ax, elevation, cut_at, name in zip(
            axes, (12, 50), (None, middle), (place, "from higher up, cut open"), strict=True):
        view = camera(azimuth, elevation)
        image = render(labels, brain, spacing, view, cut_at)
        ax.imshow(image, extent=(-reach, reach, -reach, reach), interpolation="bilinear")
        edge = size.max() / 2 + 8
        _draw_compass(ax, view, edge)
        ax.set(title=name, xlim=(-edge - 22, edge), ylim=(-edge, edge))
        ax.set_axis_off()
    _suptitle(figure, title)
    colors = {LABEL_NAMES[n]: color for n, color in LABEL_COLORS.items()}
    return finish(figure, synthetic, colors, alt=f"{title}: the tumor in its brain in three "
                  f"dimensions, {place}, and cut open")


def _draw_compass(ax: Axes, view: np.ndarray, corner: float) -> None:
    """Draw the patient's axes near a lower left corner, their far ends in gray."""
    for axis, pair in enumerate(("RL", "AP", "IS")):
        for letter, sign in zip(pair, (-1, 1), strict=True):
            across, up, near = view[:, axis] * sign
            x, y, color = 2 - corner, 24 - corner, INK if near > 0 else GRAY
            ax.plot([x, x + 13 * across], [y, y + 13 * up], color=color, lw=1)
            ax.text(x + 20 * across, y + 20 * up, letter, ha="center", va="center", color=color)


# ---- cohorts

def histograms(images: np.ndarray, labels: np.ndarray | None, unit: str,
               synthetic: bool = False) -> Figure:
    """Draw the intensities of each modality in the brain and in each label: images (4, X, Y, Z).

    Each histogram has the area 1, although the brain has far more voxels than a label.
    """
    figure, axes = plt.subplots(1, 4, figsize=(9.6, 2.6))
    brain = (images != 0).any(0)
    healthy = brain if labels is None else brain & (labels == 0)
    for ax, modality, image in zip(axes, MODALITIES, images, strict=True):
        parts = [healthy] + ([labels == n for n in LABEL_COLORS] if labels is not None else [])
        ends = [np.percentile(image[part], [0.2, 99.8]) for part in parts if part.any()]
        bins = np.linspace(np.min(ends), np.max(ends), 60)
        ax.hist(image[healthy], bins, density=True, color=GRAY, alpha=0.5, label="healthy brain")
        for n, color in LABEL_COLORS.items() if labels is not None else ():
            if (labels == n).any():
                ax.hist(image[labels == n], bins, density=True, histtype="step", color=color,
                        lw=1.5, label=LABEL_SHORT[n])
        ax.set(title=MODALITY_TITLES[modality], xlabel=unit, yticks=[])
    axes[0].set_ylabel("share of its voxels")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
    return finish(figure, synthetic)


def two_cohorts(here: Sequence[Prepared], there: Sequence[Prepared], names: Sequence[str],
                synthetic: bool = False) -> Figure:
    """Draw the z-scores of two cohorts where they differ most, and how far they are apart.

    `names` are the cohorts'. Each panel shows one modality in one compartment.
    """
    table = distances(here, there)
    apart = {(compartment, n): far for compartment, row in table.items()
             for n, far in enumerate(row.values()) if np.isfinite(far)}
    labels = {name: label for label, name in enumerate(table)}
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.6))
    for ax, (compartment, n) in zip(axes, sorted(apart, key=apart.get)[::-1], strict=False):
        other, own = (z_scores_of(cohort, labels[compartment])[n] for cohort in (there, here))
        ends = np.percentile(other, [0.2, 99.8]), np.percentile(own, [0.2, 99.8])
        bins = np.linspace(np.min(ends), np.max(ends), 46)
        ax.hist(other, bins, density=True, color="#BBBBBB", label=names[1])
        ax.hist(own, bins, density=True, histtype="step", color=BLUE, lw=1.5, label=names[0])
        title = list(MODALITY_TITLES.values())[n]
        ax.set(title=f"{title}, {compartment}: {apart[compartment, n]:.2f} apart", yticks=[],
               xlabel="z-score")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return finish(figure, synthetic)


def volume_distribution(rows: Sequence[Mapping], synthetic: bool = False) -> Figure:
    """Draw the volumes of the regions, from `cases.check_cohort`, on a logarithmic axis."""
    figure, ax = plt.subplots(figsize=(7.2, 2.8))
    known = [row["volumes_ml"] for row in rows if row["volumes_ml"]]
    for height, (name, members) in enumerate(REGIONS.items()):
        volumes = np.array([sum(each[LABEL_SHORT[n]] for n in members) for each in known])
        some, median = volumes[volumes > 0], np.median(volumes)
        ax.scatter(some, height + _spread(some), s=18, alpha=0.6, color=REGION_COLORS[name])
        ax.plot([median] * 2, [height - 0.32, height + 0.32], color=INK, lw=2)
        ax.text(1.01, height, f"median {median:.0f} ml\nabsent in {np.sum(volumes == 0)} of "
                f"{len(volumes)}", transform=ax.get_yaxis_transform(), va="center", fontsize=8)
    ax.set(xscale="log", xlabel="volume (ml), one dot per patient", yticks=range(3),
           yticklabels=[REGION_TITLES[n] for n in REGIONS])
    _plain_log_ticks(ax, "x")
    ax.invert_yaxis()
    return finish(figure, synthetic, alt=f"Tumor volumes of {len(known)} patients by region")


def _spread(values: np.ndarray) -> np.ndarray:
    """Return small shifts that keep dots from hiding each other."""
    return np.random.default_rng(0).uniform(-0.18, 0.18, len(values))


# ---- training and results

def learning_curves(history: Sequence[Mapping]) -> Figure:
    """Draw loss, validation Dice and learning rate, from the records of `training.loop.train`."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 2.6))
    epochs = [record["epoch"] for record in history]
    for ax, key, title in ((left, "loss", "training loss"),
                           (right, "learning_rate", "learning rate at the epoch's end")):
        ax.plot(epochs, [record[key] for record in history], color=INK)
        ax.set(title=title, xlabel="epoch", ylim=(0, None))
    scored = [record for record in history if record["dice"]]
    for name in REGIONS:
        middle.plot([r["epoch"] for r in scored], [r["dice"][name] for r in scored], "o-", ms=3,
                    color=REGION_COLORS[name], label=name)
    middle.set(title="validation Dice", xlabel="epoch", ylim=(0, 1))
    middle.legend(loc="lower right")
    return finish(figure, False)


def baseline_curves(thresholds: np.ndarray, scores: np.ndarray, synthetic: bool) -> Figure:
    """Draw Dice of WT against the threshold for each patient, (patients, thresholds), and its mean.

    Takes the scores of `metrics.threshold_baseline`.
    """
    figure, ax = plt.subplots(figsize=(6, 2.4))
    ax.plot(thresholds, scores.T, color="#BBBBBB", lw=0.8)
    ax.plot(thresholds, scores.mean(0), color=LINES[0], lw=2)
    ax.set(xlabel="threshold on z-scored FLAIR", ylabel="Dice of WT; blue: mean", ylim=(0, 1))
    return finish(figure, synthetic, alt="Dice of WT against the threshold: a line for each "
                                         "patient, and their mean")


def dice_boxplot(rows: Sequence[Mapping], synthetic: bool = False) -> Figure:
    """Draw every patient's Dice by region, from rows of `metrics.score_case`.

    A box holds the middle half of the patients, and a line in it is the median.
    """
    figure, ax = plt.subplots(figsize=(6.4, 2.8))
    scores = {name: np.array([row[name]["dice"] for row in rows]) for name in REGIONS}
    for place, (name, values) in enumerate(scores.items()):
        first, median, third = np.percentile(values, [25, 50, 75])
        ax.barh(place, third - first, 0.6, first, color="#EEEEEE", edgecolor=GRAY)
        ax.plot([median] * 2, [place - 0.3, place + 0.3], color=INK, lw=2)
        ax.scatter(values, place + _spread(values), s=22, alpha=0.7, color=REGION_COLORS[name])
    low = max(0.0, np.floor(10 * min(values.min() for values in scores.values()) - 0.2) / 10)
    begins = f" (the axis begins at {low:.1f})" if low else ""
    means = {name: values.mean() for name, values in scores.items()}
    ax.set(yticks=range(3), xlim=(low - 0.01 * (1 - low), 1 + 0.01 * (1 - low)),
           yticklabels=[f"{name}\nmean {mean:.3f}" for name, mean in means.items()],
           xlabel=f"Dice: a dot for each patient, a bar at the median, a box around the middle half"
                  f"{begins}")
    ax.invert_yaxis()
    told = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    return finish(figure, synthetic, alt=f"Dice of {len(rows)} patients by region; means: {told}")


def diagram_unet(rows: Sequence[Mapping]) -> Figure:
    """Draw the network of `levels.level_table` as a U, and next to it the memory of its levels.

    Memory is that of the convolutions' outputs, four bytes per number, for one patch: of two in the
    encoder and two in the decoder of each level.
    """
    encoder = [row for row in rows if row["level"].startswith("encoder")]
    height = 0.75 * len(encoder) + 0.9
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, height), width_ratios=(3, 1.1),
                                         sharey=True)
    for row in encoder:
        _draw_level(left, row, int(row["level"].split()[1]), len(encoder) - 1)
    left.text(-2.6, 0.6, "5 channels in", ha="center", va="bottom", fontsize=8)
    _arrow(left, (-2.6, 0.58), (-2.6, 0.27))
    left.set(xlim=(-3.6, 4.9), ylim=(0.6 - len(encoder), 0.9))
    left.set_axis_off()
    left.set_title("channels x voxels of each level")
    _draw_memory(right, encoder)
    sizes = ", ".join(f"{row['channels']} x {row['edge']}³" for row in encoder)
    return finish(figure, False, alt=f"U-Net of {len(encoder)} levels, channels x edge: {sizes}; "
                  "arrows down, skip connections across, arrows up; memory is mostly at the top")


def _draw_level(ax: Axes, row: Mapping, level: int, depth: int) -> None:
    """Draw a level: a box on each side, or one at the bottom, and its arrows."""
    y, x = -level, 2.6
    sides = {0.0: ("encoder", "#B7CBD9")} if level == depth else {
        -x: ("encoder", "#8CC8EC"), x: ("decoder", "#F0C674")}
    for place, (side, color) in sides.items():
        ax.add_patch(FancyBboxPatch((place - 0.85, y - 0.22), 1.7, 0.44, color=color,
                                    boxstyle="round,pad=0.03"))
        ax.text(place, y, f"{side} {level}\n{row['channels']} x {row['edge']}³", ha="center",
                va="center", fontsize=8.5)
    if level == depth:
        return
    inner = x if level + 1 < depth else 0.5  # the arrows to and from the bottom meet in the middle
    _arrow(ax, (-x, y - 0.27), (-inner, y - 0.73))
    _arrow(ax, (inner, y - 0.73), (x, y - 0.27))
    _arrow(ax, (-x + 0.95, y), (x - 0.95, y), GRAY, "--")
    ax.text(0, y + 0.06, f"skip connection, {row['channels']} channels", ha="center", va="bottom",
            fontsize=7.5, color="#666666")
    if level == 0 < depth - 1:
        ax.text(-x + 0.1, y - 0.5, "half the edge", va="center", fontsize=7.5)
        ax.text(x - 0.1, y - 0.5, "twice the edge", va="center", ha="right", fontsize=7.5)
    if level < 3:
        _arrow(ax, (x + 0.95, y), (x + 1.3, y))
        ax.text(x + 1.35, y, f"head\n3 x {row['edge']}³", va="center", fontsize=7.5)


def _draw_memory(ax: Axes, encoder: Sequence[Mapping]) -> None:
    stages = [2] * (len(encoder) - 1) + [1]
    mib = [row["channels"] * row["edge"] ** 3 * 2 * stage * 4 / 2**20
           for row, stage in zip(encoder, stages, strict=True)]
    drawn = ax.barh([-level for level in range(len(mib))], mib, 0.5, color=BLUE)
    shares = [f"{part / sum(mib):.0%}" if part > 0.005 * sum(mib) else "< 1%" for part in mib]
    notes = [f"{text} MiB, {share}" for text, share in zip(same_digits(mib), shares, strict=True)]
    ax.bar_label(drawn, notes, padding=3, fontsize=8)
    ax.set(title="memory of each level's outputs, one patch", xlim=(0, 1.9 * max(mib)), xticks=[])
    ax.spines[:].set_visible(False)
    ax.tick_params(left=False, labelleft=False)
