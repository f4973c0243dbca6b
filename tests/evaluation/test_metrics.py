"""Scores beside MONAI's and slow references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import blobs
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage

from brats_helpers.basics.constants import HD95_EMPTY_MM
from brats_helpers.evaluation.metrics import (
    REACH,
    bootstrap_ci,
    calibration,
    dice,
    distances_mm,
    hd95,
    near,
    regions,
    score_case,
    summarize,
    threshold_baseline,
)


@pytest.mark.parametrize("seed", range(25))
def test_all_scores_equal_monais_and_the_definitions(seed: int) -> None:
    predicted, reference = blobs(seed), blobs(seed + 1000)
    spacing = np.random.default_rng(seed).uniform(0.5, 3, 3 if seed % 2 else 1) * np.ones(3)      # every other one isotropic
    rows = score_case(predicted, reference, spacing)
    for (_, row), p, r in zip(rows.items(), regions(predicted), regions(reference), strict=True):
        if p.any() and r.any():
            theirs = compute_hausdorff_distance(torch.from_numpy(p)[None, None], torch.from_numpy(r)[None, None],
                                                include_background=True, percentile=95, spacing=spacing.tolist())
            assert row["hd95_mm"] == pytest.approx(theirs.item(), rel=5e-6)          # MONAI interpolates in float32
            assert row["dice"] == pytest.approx(2 * (p & r).sum() / (p.sum() + r.sum()))
            assert row["iou"] == pytest.approx((p & r).sum() / (p | r).sum())
            assert row["sensitivity"] == pytest.approx((p & r).sum() / r.sum())
            assert row["specificity"] == pytest.approx((~p & ~r).sum() / (~r).sum())
            assert row["reference_ml"] == pytest.approx(r.sum() * spacing.prod() / 1000)


@pytest.mark.parametrize("shape", [(30, 41, 37), (40, 6, 3), (1, 1, 50)])
def test_near_is_the_exact_distance_as_far_as_it_reaches(shape: tuple[int, int, int]) -> None:
    mask = np.random.default_rng(len(shape)).random(shape) > 0.998
    mask.flat[0] = True
    exact = np.rint(ndimage.distance_transform_edt(~mask) ** 2)
    squared, reach = near(mask), REACH**2
    assert np.array_equal(squared[exact <= reach], exact[exact <= reach]) and (squared[exact > reach] > reach).all()
    assert (exact <= reach).any() and (exact > reach).any()


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.7, 0.7), (1, 1, 2)])
@pytest.mark.parametrize("margin", [0, 40])
def test_distances_are_those_of_a_search_among_all_pairs(spacing: tuple[float, ...], margin: int) -> None:
    a, b = np.zeros((2, 44, 12, 11), bool)
    a[2:9, 2:9, 2:9] = a[38:42, 3:6, 3:6] = b[4:10, 2:8, 3:9] = True     # an island that is further away than `near` looks
    a, b = (np.pad(mask, margin) for mask in (a, b))                     # with much room around them, a k-d tree is used
    every = np.linalg.norm((np.argwhere(a)[:, None] - np.argwhere(b)) * spacing, axis=2)
    assert np.allclose(distances_mm(a, b, spacing), every.min(1), rtol=1e-12)


def test_empty_regions_follow_brats() -> None:
    nothing, something = np.zeros((5, 6, 7), bool), np.zeros((5, 6, 7), bool)
    something[0, 0, 0] = True
    assert (dice(nothing, nothing), hd95(nothing, nothing, (1, 1, 1))) == (1, 0)
    for pair in ((nothing, something), (something, nothing)):
        assert dice(*pair) == 0 and hd95(*pair, (1, 1, 1)) == HD95_EMPTY_MM
    assert hd95(something, something, (1, 1, 1)) == 0
    assert HD95_EMPTY_MM == pytest.approx(np.sqrt(240**2 + 240**2 + 155**2), abs=0.1)


def test_regions_are_brats() -> None:
    assert regions(np.array([0, 1, 2, 3])).astype(int).tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]


def test_intervals_hold_the_mean_and_are_reproducible() -> None:
    values = np.random.default_rng(0).uniform(0.5, 1, 30)
    mean, low, high = bootstrap_ci(values)
    assert low < mean < high and (mean, low, high) == bootstrap_ci(values)
    assert abs((high - low) - 2 * 1.96 * values.std() / np.sqrt(30)) < 0.02          # near the normal one
    row = score_case(blobs(0), blobs(1000), (1, 1, 1))
    assert summarize([row, row])["dice"]["WT"] == row["WT"]["dice"]


def test_baseline_finds_a_bright_ball_and_ignores_a_second_one() -> None:
    image = np.zeros((20, 20, 20))
    image[3:9, 3:9, 3:9], image[14:17, 14:17, 14:17] = 5, 5
    reference = np.zeros((20, 20, 20), np.uint8)
    reference[3:9, 3:9, 3:9] = 2
    assert threshold_baseline([image], [reference], [1, 9]).tolist() == [[1.0, 0.0]]


def test_calibration_of_a_network_that_knows_and_of_one_that_boasts() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, 200_000)
    said, was = calibration(p, rng.uniform(0, 1, p.size) < p)
    assert len(said) == 10 and np.allclose(said, was, atol=0.01)
    said, was = calibration(np.array([0.95, 0.99, 1.0, 0.02]), np.array([True, False, True, False]))
    assert np.allclose(said, [0.02, 0.98]) and np.allclose(was, [0, 2 / 3])
