"""Figures and widgets: drawn, oriented, and moving."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import blobs
from IPython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.colors import to_rgb
from PIL import Image
from PIL.ImageColor import getrgb

from brats_helpers.basics.constants import ERROR_COLORS, LABEL_COLORS
from brats_helpers.data.cases import Patient
from brats_helpers.data.preprocessing import prepare, slice_with_most_tumor
from brats_helpers.evaluation.metrics import score_case
from brats_helpers.lessons import plots, surfaces
from brats_helpers.lessons.levels import level_table
from brats_helpers.lessons.session import show_figures
from brats_helpers.lessons.surfaces import camera, render
from brats_helpers.lessons.viewers import (
    Dashboard,
    augmentation_playground,
    comparison_viewer,
    slice_viewer,
    threshold_explorer,
)
from brats_helpers.phantoms.kinds import make_patient


@pytest.fixture(scope="module")
def patient() -> Patient:
    return make_patient(0, 0, 6.0)


def marked(corner: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """A volume of 4 x 5 x 6 with one voxel, brought upright."""
    volume = np.zeros((4, 5, 6))
    volume[corner] = 1
    return plots.upright(volume, affine)


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, 1, 1), (1, -1, -1)])
def test_right_is_left_front_is_up_and_head_is_up(signs: tuple[int, ...]) -> None:
    affine = np.diag([*map(float, signs), 1.0])
    ends = [0 if sign < 0 else n - 1 for sign, n in zip(signs, (4, 5, 6), strict=True)]
    upright = marked(tuple(ends), affine)  # the voxel at the patient's right, front and top
    axial = plots.cut(upright, "axial", int(np.argwhere(upright)[0][2]))
    coronal = plots.cut(upright, "coronal", int(np.argwhere(upright)[0][1]))
    sagittal = plots.cut(upright, "sagittal", int(np.argwhere(upright)[0][0]))
    for view in (axial, coronal, sagittal):  # right on the left; front up, or to the left; head up
        assert view[0, 0] == 1


def test_every_figure_draws_and_says_synthetic(patient: Patient) -> None:
    scores = [score_case(patient.reference, patient.reference, patient.spacing)] * 3
    rows = [{"volumes_ml": {"NCR": 1.0 + i, "ED": 20.0, "ET": float(i)}} for i in range(4)]
    labels = patient.reference
    figures = [
        plots.show_modalities(patient, synthetic=True),
        plots.show_modalities(patient, "sagittal", synthetic=True),
        plots.compare_slices({"a": patient.images[0], "b": patient.images[1]},
                             labels={"a": labels, "b": labels[::-1]}, synthetic=True),
        plots.baseline_curves(np.linspace(0, 1, 4), np.random.rand(3, 4), synthetic=True),
        plots.three_planes(patient.images[0], {"reference": labels}, patient.spacing,
                           synthetic=True),
        plots.tumor_3d(labels, patient.images[0] > 0, patient.spacing, synthetic=True),
        plots.histograms(patient.images, labels, "intensity", synthetic=True),
        plots.volume_distribution(rows, synthetic=True), plots.dice_boxplot(scores, synthetic=True)]
    for figure in figures:
        figure.canvas.draw()
        assert any(text.get_text().endswith("synthetic") for text in figure.texts)
    overlays = {"reference": labels, "prediction": labels}
    predicted = plots.three_planes(patient.images[0], overlays, patient.spacing)
    assert "not for diagnosis" in " ".join(text.get_text() for text in predicted.texts)
    first = {"epoch": 1, "step": 5, "loss": 1.0, "learning_rate": 1e-3, "dice": None,
             "seconds": 2.0}
    history = [first, first | {"epoch": 2, "step": 9, "dice": {"WT": 0.5, "TC": 0.4, "ET": 0.3}}]
    plots.learning_curves(history).canvas.draw()
    plots.diagram_unet(level_table((8, 16, 32, 64), 64)).canvas.draw()
    Dashboard()(history)
    assert not plt.get_fignums()  # nothing is left open, and nothing is drawn twice


def test_no_curve_is_left_out_however_many_there_are() -> None:
    lines = {str(n): ((0, 1), (n, n)) for n in range(12)} | {"one point": ((0,), (5,))}
    drawn = plots.curves({"all": lines}, "x").axes[0].lines
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in drawn}
    assert len(drawn) == len(looks) == 13 and drawn[-1].get_marker() == "o"


def test_a_name_with_a_dollar_sign_is_no_formula(patient: Patient) -> None:
    plots.show_modalities(replace(patient, name="$x_{$")).canvas.draw()


def held(page: str) -> dict:
    """The data that a slice viewer carries, its mosaics decoded into volumes (x, y, z)."""
    call = "showPatient(root, "
    data = json.JSONDecoder().raw_decode(page[page.rindex(call) + len(call):])[0]
    x, y, z = data["shape"]
    for kind in ("images", "masks"):
        for item in data[kind]:
            content = base64.b64decode(item["source"].split(",")[1])
            pixels = np.asarray(Image.open(io.BytesIO(content)))
            rows, columns = pixels.shape[0] // y, pixels.shape[1] // x
            slices = pixels.reshape(rows, y, columns, x).swapaxes(1, 2).reshape(-1, y, x)
            item["volume"] = slices[:z].T
    return data


def test_the_slice_viewer_carries_the_patient_whole(patient: Patient) -> None:
    predicted = patient.reference * np.uint8(patient.reference != 2)
    page = slice_viewer(patient, predicted, synthetic=True).data
    data = held(page)
    box = tuple(slice(o, o + n) for o, n in zip(data["offset"], data["shape"]))
    for mask, labels in zip(data["masks"], (patient.reference, predicted), strict=True):
        np.testing.assert_array_equal(mask["volume"], plots.upright(labels, patient.affine)[box])
        assert mask["volume"].sum() == labels.sum()  # nothing of the tumor is cut off
    for image, scan in zip(data["images"], patient.images, strict=True):
        scan = plots.upright(scan, patient.affine)
        brain, seen = scan[box] != 0, image["volume"].astype(float)
        most = slice_with_most_tumor(plots.upright(patient.reference, patient.affine))
        assert brain.sum() == (scan != 0).sum()
        assert data["start"][2] + data["offset"][2] == most
        floor, width = data["floor"], image["high"] - image["low"]
        intensity = image["low"] + (seen - floor) * width / (255 - floor)
        assert np.abs(intensity - scan[box])[brain].mean() < 0.05 * width
        assert (seen[brain] > floor / 2).mean() > 0.98 and (seen[~brain] < floor / 2).mean() > 0.98
    assert "not for diagnosis; synthetic" in page and "alt='" in page and len(page) < 1_000_000
    assert "http" not in page and page == slice_viewer(patient, predicted, synthetic=True).data
    assert not held(slice_viewer(replace(patient, reference=None)).data)["masks"]


def test_moving_the_threshold_changes_mask_and_scores(patient: Patient) -> None:
    probability = np.where(patient.reference > 0, 0.6, 0.3)
    explorer = threshold_explorer(patient, probability)
    threshold, index, line, image = explorer.children
    seen = set()
    for value, said in ((0.5, "Dice 1.000, sensitivity 1.000"),
                        (0.7, "Dice 0.000, sensitivity 0.000, volume 0.0 ml")):
        threshold.value = value
        assert said in line.value
        seen.add((line.value, image.value))
    index.value += 3
    assert image.value not in {picture for _, picture in seen} and len(seen) == 2


def test_the_comparison_begins_with_the_worst_and_shows_any_other(patient: Patient) -> None:
    good, bad = (score_case(labels, patient.reference, patient.spacing)
                 for labels in (patient.reference, np.zeros_like(patient.reference)))
    rows, asked = [{"name": "good", **good}, {"name": "bad", **bad}], []

    def read(name: str) -> tuple[Patient, np.ndarray]:
        asked.append(name)
        return patient, patient.reference * np.uint8(name == "good")

    viewer = comparison_viewer(rows, read)
    (who, index), image = viewer.children[0].children, viewer.children[1]
    assert asked == ["bad"] and [value for _, value in who.options] == ["bad", "good"]
    first = bytes(image.value)
    who.value = "good"
    assert asked == ["bad", "good"] and bytes(image.value) != first
    index.value += 2
    assert bytes(image.value) != first


def test_each_slider_of_the_playground_changes_the_picture(patient: Patient) -> None:
    controls, image = augmentation_playground(prepare(patient, 6.0)).children
    seen = {bytes(image.value)}
    for slider in controls.children:
        slider.value = slider.max
        assert bytes(image.value) not in seen, slider.description
        seen.add(bytes(image.value))
    assert len(controls.children) == 9


def test_errors_have_colors_that_no_label_has() -> None:
    predicted, truth = np.array([True, True, False, False]), np.array([True, False, True, False])
    kinds = plots.agreement(predicted, truth).tolist()
    names = [(None, *ERROR_COLORS)[kind] for kind in kinds]
    assert names == ["correct", "false", "missed", None]
    assert not set(ERROR_COLORS.values()) & set(LABEL_COLORS.values())


def test_errors_stand_beside_reference_and_prediction(patient: Patient) -> None:
    truth = plots.upright(patient.reference, patient.affine)
    scan = plots.upright(patient.images[0], patient.affine)
    figure = plots.three_planes(scan, {"reference": truth, "prediction": 0 * truth},
                                patient.spacing)
    titles = [ax.get_title() for ax in figure.axes[1:4]]
    assert titles == ["reference", "prediction", "errors, whole tumor"]
    drawn = figure.axes[3].images[1].get_array()
    missed = np.array(to_rgb(ERROR_COLORS["missed"]))
    for pixel in drawn[drawn[..., 3] > 0][:, :3]:  # all missed: one hue, whatever the gray
        assert 0.6 <= pixel[0] / missed[0] <= 1
        assert np.allclose(pixel / pixel[0], missed / missed[0])


def test_a_label_has_one_color_on_every_modality_and_in_the_stored_legend(patient: Patient) -> None:
    colors = np.array([to_rgb(color) for color in LABEL_COLORS.values()])
    figure = plots.show_modalities(patient, "sagittal", synthetic=True)
    for ax in figure.axes[4:]:
        overlay = ax.images[1].get_array()
        hues = overlay[overlay[..., 3] == 1][:, :3]
        nearest = ((hues / hues.max(1, keepdims=True))[:, None]
                   - colors / colors.max(1, keepdims=True))
        assert np.abs(nearest).max(2).min(1).max() < 1e-6 and hues.max(1).min() > 0.3
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    series = pytest.importorskip("brats_helpers.tools.series")  # Colab lacks papermill
    stored = series.smaller_png(base64.b64encode(buffer.getvalue()).decode())
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(stored))).convert("RGB"))
    for color in LABEL_COLORS.values():  # a swatch is hundreds of pixels in exactly its color
        assert (pixels == np.array(getrgb(color))).all(-1).sum() > 200, color


def test_slices_in_a_row_have_the_letters_of_their_plane() -> None:
    image = np.ones((4, 4))
    figure = plots.pictures({"mine": image, "coronal": image}, plane="axial")
    assert [[text.get_text() for text in ax.texts] for ax in figure.axes] == [
        [*"RLAP"], [*"RLSI"]]
    assert not plots.pictures({"no slice": image}).axes[0].texts


def test_a_stored_picture_carries_alt_text(patient: Patient) -> None:
    InteractiveShell.instance()
    show_figures()  # in the tests, no notebook has chosen the backend
    figure = plots.bars({"a": 1.0, "b": 0.001}, "GB", "GB")
    for alt in ("GB: a 1.00 GB, b < 0.01 GB", "one bar is tiny"):
        data, metadata = get_ipython().display_formatter.format(figure)
        assert data["image/png"] and metadata["image/png"]["alt"] == alt
        figure = plots.add_alt_text(figure, "one bar is tiny")
    axial = plots.show_modalities(patient, synthetic=True)._repr_mimebundle_()[1]["image/png"]
    assert "axial slice" in axial["alt"] and axial["alt"].endswith("FLAIR; T1; T1CE; T2")
    plots.use_style()


def test_numbers_in_a_picture_have_equal_digits_and_no_powers() -> None:
    assert plots.same_digits([1.5, 0.0105, 0.000873]) == ["1.50", "0.01", "< 0.01"]
    assert plots.same_digits([2048, 0.2, 0]) == ["2,048", "< 1", "0"]
    figure = plots.curves({"loss": {"": (range(3), (1.2, 0.6, 0.4))}}, "step", log=True)
    figure.canvas.draw()
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels(which="both")]
    assert "0.5" in ticks and not any("times" in tick for tick in ticks)


def test_dots_of_dice_fill_the_axis() -> None:
    rows = [{name: {"dice": 0.95 + i / 100} for name in ("WT", "TC", "ET")} for i in range(4)]
    assert 0.85 < plots.dice_boxplot(rows).axes[0].get_xlim()[0] < 0.95
    rows[0]["ET"] = {"dice": 0.0}
    assert plots.dice_boxplot(rows).axes[0].get_xlim()[0] < 0


@pytest.mark.parametrize("side", [-1, 1])
def test_a_tumor_is_rendered_on_its_side_and_in_its_color(side: int) -> None:
    x, y, z = np.mgrid[-20:21, -20:21, -20:21]
    brain = x**2 + y**2 + z**2 < 18**2
    labels = np.where((x - 10 * side) ** 2 + y**2 + z**2 < 5**2, 2, 0)
    labels[(x - 10 * side) ** 2 + y**2 + z**2 < 3**2] = 3
    whole = render(labels, brain, (1, 1, 1), camera(0, 0), pixels=61)
    green = (whole[..., 1] > whole[..., 0] + 0.2) & (whole[..., 1] > whole[..., 2] + 0.05)
    assert np.sign(np.argwhere(green)[:, 1].mean() - 30) == side  # the left is on the right
    opened = render(labels, brain, (1, 1, 1), camera(0, 89), cut_at=20, pixels=61)
    orange = (opened[..., 0] > opened[..., 2] + 0.4) & (opened[..., 0] > opened[..., 1])
    assert orange.sum() > 10 and not ((whole[..., 0] > whole[..., 1]) & green).any()


def test_rays_that_are_left_out_would_have_hit_nothing(monkeypatch) -> None:
    labels, view = np.pad(blobs(3), 2), camera(40, 30)
    some = render(labels, labels > 0, (1, 2, 1.5), view, pixels=81)
    monkeypatch.setattr(surfaces, "_reachable", lambda field, spacing, view, line: (
        np.ones((len(line), len(line)), bool), np.inf, -np.inf))
    assert np.array_equal(some, render(labels, labels > 0, (1, 2, 1.5), view, pixels=81))
    assert (some < 1).any()
