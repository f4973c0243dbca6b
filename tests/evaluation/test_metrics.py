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
    average_scores,
    bootstrap_ci,
    dice,
    distances_mm,
    hd95,
    regions,
    score_case,
    threshold_baseline,
)


@pytest.mark.parametrize("seed", range(25))
def test_all_scores_equal_monais_and_the_definitions(seed: int) -> None:
    predicted, reference = blobs(seed), blobs(seed + 1000)
    edges = 3 if seed % 2 else 1  # every other one is isotropic
    spacing = np.random.default_rng(seed).uniform(0.5, 3, edges) * np.ones(3)
    rows = score_case(predicted, reference, spacing)
    for (_, row), p, r in zip(rows.items(), regions(predicted), regions(reference), strict=True):
        if p.any() and r.any():
            masks = (torch.from_numpy(mask)[None, None] for mask in (p, r))
            theirs = compute_hausdorff_distance(*masks, include_background=True, percentile=95,
                                                spacing=spacing.tolist())
            # MONAI interpolates in float32.
            assert row["hd95_mm"] == pytest.approx(theirs.item(), rel=5e-6)
            assert row["dice"] == pytest.approx(2 * (p & r).sum() / (p.sum() + r.sum()))
            assert row["iou"] == pytest.approx((p & r).sum() / (p | r).sum())
            assert row["sensitivity"] == pytest.approx((p & r).sum() / r.sum())
            assert row["specificity"] == pytest.approx((~p & ~r).sum() / (~r).sum())
            assert row["reference_ml"] == pytest.approx(r.sum() * spacing.prod() / 1000)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.7, 0.7), (1, 1, 2)])
def test_distances_are_those_of_a_search_among_all_pairs(spacing: tuple[float, ...]) -> None:
    a, b = np.zeros((2, 44, 12, 11), bool)
    a[2:9, 2:9, 2:9] = a[38:42, 3:6, 3:6] = b[4:10, 2:8, 3:9] = True  # the second part is far away
    every = np.linalg.norm((np.argwhere(a)[:, None] - np.argwhere(b)) * spacing, axis=2)
    assert np.allclose(distances_mm(a, b, spacing), every.min(1), rtol=1e-12)


def test_distances_of_voxels_of_a_millimeter_are_exact() -> None:
    """So that scores of BraTS do not depend on how a distance is found."""
    a, b = blobs(0) > 0, blobs(1000) > 0
    exact = ndimage.distance_transform_edt(~b)[a]
    assert np.array_equal(distances_mm(a, b, (1.0, 1.0, 1.0)), exact)


def test_empty_regions_follow_brats() -> None:
    nothing, something = np.zeros((5, 6, 7), bool), np.zeros((5, 6, 7), bool)
    something[0, 0, 0] = True
    assert (dice(nothing, nothing), hd95(nothing, nothing, (1, 1, 1))) == (1, 0)
    for pair in ((nothing, something), (something, nothing)):
        assert dice(*pair) == 0 and hd95(*pair, (1, 1, 1)) == HD95_EMPTY_MM
    assert hd95(something, something, (1, 1, 1)) == 0
    assert HD95_EMPTY_MM == pytest.approx(np.sqrt(240**2 + 240**2 + 155**2), abs=0.1)


def test_regions_are_brats() -> None:
    assert regions(np.array([0, 1, 2, 3])).astype(int).tolist() == [[0, 1, 1, 1], [0, 1, 0, 1],
                                                                    [0, 0, 0, 1]]


def test_intervals_hold_the_mean_and_are_reproducible() -> None:
    values = np.random.default_rng(0).uniform(0.5, 1, 30)
    mean, low, high = bootstrap_ci(values)
    assert low < mean < high and (mean, low, high) == bootstrap_ci(values)
    assert abs((high - low) - 2 * 1.96 * values.std() / np.sqrt(30)) < 0.02  # near the normal one
    row = score_case(blobs(0), blobs(1000), (1, 1, 1))
    assert average_scores([row, row])["dice"]["WT"] == row["WT"]["dice"]


def test_baseline_finds_a_bright_ball_and_ignores_a_second_one() -> None:
    image = np.zeros((20, 20, 20))
    image[3:9, 3:9, 3:9], image[14:17, 14:17, 14:17] = 5, 5
    reference = np.zeros((20, 20, 20), np.uint8)
    reference[3:9, 3:9, 3:9] = 2
    assert threshold_baseline([image], [reference], [1, 9]).tolist() == [[1.0, 0.0]]
