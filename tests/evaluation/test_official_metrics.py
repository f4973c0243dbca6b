"""Scores compared with BraTS's, on 240 pairs of masks: full, empty, single voxels, and real.

The challenge's own code (Saluja et al., github.com/rachitsaluja/BraTS-2023-Metrics) takes
components from cc3d and distances from DeepMind's surface-distance, as the slow version here does.
"""

from __future__ import annotations

from collections.abc import Callable

import cc3d
import numpy as np
import pytest
import surface_distance
from conftest import blobs
from scipy import ndimage

from brats_helpers.basics.constants import HD95_EMPTY_MM
from brats_helpers.data.cases import read_case
from brats_helpers.evaluation.metrics import dice, hd95, lesion_wise, regions, score_case

Mask = np.ndarray
# surface-distance uses SciPy's old names.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def deepminds_hd95(a: Mask, b: Mask, spacing: tuple[float, ...]) -> float:
    """The 95th percentile of surface-distance: each piece of surface weighs as much as its area."""
    if not a.any() or not b.any():  # its version 0.1 stops here, for NumPy 2 has no np.Inf
        return HD95_EMPTY_MM if a.any() or b.any() else 0.0
    return surface_distance.compute_robust_hausdorff(
        surface_distance.compute_surface_distances(a, b, spacing), 95
    )


def published(predicted: Mask, reference: Mask, spacing: tuple[float, ...],
              distance: Callable) -> dict[str, float]:
    """The challenge's lesion-wise scores over the whole volume, as its text describes them."""
    grow = {"structure": ndimage.generate_binary_structure(3, 2), "iterations": 3}
    parts = cc3d.connected_components(predicted, connectivity=26)
    areas = cc3d.connected_components(ndimage.binary_dilation(reference, **grow), connectivity=26)
    scores, hit, missed = [], set(), 0
    for area in range(1, areas.max() + 1):
        lesion = reference & (areas == area)
        near = {int(p) for p in np.unique(parts[ndimage.binary_dilation(lesion, **grow)]) if p}
        hit |= near
        if lesion.sum() * np.prod(spacing) <= 50:
            continue
        found = np.isin(parts, sorted(near))
        scores.append(
            (2 * (found & lesion).sum() / (found.sum() + lesion.sum()),
             distance(lesion, found, spacing))
        )
        missed += not near
    false = parts.max() - len(hit)
    scores += [(0.0, HD95_EMPTY_MM)] * false
    mean = np.mean(scores, 0) if scores else (1.0, 0.0)
    return {"dice": mean[0], "hd95_mm": mean[1], "found": len(scores) - false - missed,
            "missed": missed, "false": false}


def pairs() -> list[tuple[Mask, Mask, tuple[float, ...]]]:
    """Predicted and reference masks with islands, near misses, empty ones and single voxels."""
    found = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        spacing = (1.0, 1.0, 1.0) if seed % 2 else tuple(rng.uniform(0.5, 2, 3))
        a, b = regions(blobs(seed)), regions(blobs(seed if seed % 3 else seed + 1000))
        for p, r in zip(a, b, strict=True):
            p = ndimage.shift(p, rng.integers(-3, 4, 3), order=0) if seed % 3 else p
            if seed % 8 == 0:
                p = np.zeros_like(p)
            elif seed % 8 == 1:
                r = np.zeros_like(r)
            if seed % 5 == 0:
                p[tuple(rng.integers(0, p.shape))] = True
            if seed % 7 == 0:
                r[:], r[tuple(rng.integers(0, r.shape))] = False, True
            found.append((p, r, spacing))
    return found


@pytest.fixture(scope="module")
def all_pairs() -> list[tuple[Mask, Mask, tuple[float, ...]]]:
    made = pairs()
    assert (
        len(made) == 240
        and sum(not p.any() for p, _, _ in made) > 10
        and sum(r.sum() == 1 for _, r, _ in made) > 10
    )
    return made


def test_lesion_wise_scores_are_the_published_ones(all_pairs) -> None:
    kinds = {"found": 0, "missed": 0, "false": 0}
    for p, r, spacing in all_pairs:
        ours, theirs = lesion_wise(p, r, spacing), published(p, r, spacing, hd95)
        assert ours == pytest.approx(theirs, abs=1e-6)
        kinds = {kind: n + ours[kind] for kind, n in kinds.items()}
    assert min(kinds.values()) > 20


def test_dice_is_deepminds_and_distances_differ_by_less_than_a_voxel(all_pairs) -> None:
    """Their surface is between voxels, weighed by area; ours has voxels' centers, as in MONAI."""
    gaps = []
    for p, r, spacing in all_pairs:
        if p.any() or r.any():
            assert dice(p, r) == pytest.approx(surface_distance.compute_dice_coefficient(r, p),
                                               abs=1e-12)
            gaps.append(
                abs(hd95(p, r, spacing) - deepminds_hd95(r, p, spacing)) / np.linalg.norm(spacing)
            )
        assert published(p, r, spacing, deepminds_hd95)["dice"] == pytest.approx(
            lesion_wise(p, r, spacing)["dice"], abs=1e-6
        )
    assert np.median(gaps) < 0.2 and np.mean(np.array(gaps) < 1) > 0.95


def test_on_real_tumors_moved_and_shrunk(real_cases) -> None:
    for case in [c for c in real_cases if c.reference][:2]:
        labels = read_case(case).reference
        for change in (lambda m: np.roll(m, 2, 0), lambda m: m * ndimage.binary_erosion(m > 0)):
            for p, r in zip(regions(change(labels)), regions(labels), strict=True):
                assert lesion_wise(p, r, (1, 1, 1)) == pytest.approx(
                    published(p, r, (1, 1, 1), hd95), abs=1e-6
                )
                assert abs(hd95(p, r, (1, 1, 1)) - deepminds_hd95(r, p, (1, 1, 1))) < np.sqrt(3)


def test_scores_are_of_the_whole_volume_whatever_the_box(all_pairs) -> None:
    for p, r, spacing in all_pairs[::3]:
        row = score_case(p.astype(np.uint8) * 3, r.astype(np.uint8) * 3, spacing)["ET"]
        assert row["hd95_mm"] == pytest.approx(hd95(p, r, spacing)) and row["dice"] == dice(p, r)
