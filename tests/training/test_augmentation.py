"""Augmentation: reproducible, moves image and label together, equal to slow references."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import small_volumes
from scipy import ndimage

from brats_helpers.data.preprocessing import brain_mask, normalize, normalize_batch, statistics
from brats_helpers.training import augmentation as augment


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    volumes = [small_volumes(seed, (24, 24, 24)) for seed in (0, 1)]
    images = torch.stack(
        [torch.from_numpy(normalize(i, *statistics(i, brain_mask(i)))) for i, _ in volumes]
    )
    labels = torch.stack(
        [torch.from_numpy(np.where(n == 4, 3, n).astype(np.int16))[None] for _, n in volumes]
    )
    return images, labels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_normalize_batch_equals_the_numpy_reference() -> None:
    images = np.stack([small_volumes(seed)[0] for seed in (0, 1)])
    numbers = [statistics(i, brain_mask(i)) for i in images]
    mean, std = (torch.tensor(np.stack(n), dtype=torch.float32) for n in zip(*numbers, strict=True))
    ours = normalize_batch(torch.from_numpy(images), mean, std)
    expected = np.stack([normalize(i, *n) for i, n in zip(images, numbers, strict=True)])
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_the_same_seed_gives_the_same_and_another_another(batch) -> None:
    first, second, other = (augment.augment(*batch, [seeded(s), seeded(9)]) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) and not torch.equal(
        first[0][0], other[0][0]
    )
    assert torch.equal(first[0][1], other[0][1])  # a patch does not depend on the one beside it


def test_shapes_labels_and_background_survive(batch) -> None:
    generator = seeded(1)
    for _ in range(40):
        images, labels = augment.augment(*batch, [generator] * 2)
        assert (
            images.shape == batch[0].shape
            and labels.shape == batch[1].shape
            and labels.dtype == batch[1].dtype
        )
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3} and torch.isfinite(images).all()
        assert (
            set(images[:, 4].unique().tolist()) <= {0.0, 1.0}
            and (images[:, :4] * (1 - images[:, 4:]) == 0).all()
        )


def test_no_rotation_and_no_zoom_is_the_identity(batch) -> None:
    grid = augment.sampling_grid(batch[0].shape[2:], 1.0, None, 0.0, seeded())
    image, label = augment.resample(batch[0][0], batch[1][0], grid)
    torch.testing.assert_close(image, batch[0][0], atol=1e-4, rtol=0)
    assert torch.equal(label, batch[1][0])


def test_a_quarter_turn_is_rot90_in_an_anisotropic_box() -> None:
    image, label = torch.rand(5, 10, 12, 12), torch.randint(0, 4, (1, 10, 12, 12))
    image[4] = 1
    grid = augment.sampling_grid(image.shape[1:], 1.0, [0, 0, 90], 0.0, seeded())
    turned, moved = augment.resample(image, label, grid)
    wanted = [torch.rot90(image, k, (2, 3)) for k in (1, -1)]
    assert min((turned[:4] - w[:4]).abs().max() for w in wanted) < 1e-4
    assert any(torch.equal(moved, torch.rot90(label, k, (2, 3))) for k in (1, -1))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_blur_equals_scipys(sigma: float) -> None:
    x = torch.rand(2, 9, 11, 10, dtype=torch.float64)
    radius = int(np.ceil(3 * sigma))
    expected = ndimage.gaussian_filter(x.numpy(), (0, *[sigma] * 3), mode="nearest",
                                       radius=(0, *[radius] * 3))
    np.testing.assert_allclose(augment.blur(x, sigma), expected, atol=1e-9)


def test_intensity_changes_keep_their_range(batch) -> None:
    x = batch[0][0, :4]
    for changed in (augment.change_contrast(x, 1.5), augment.change_gamma(x, 0.7)):
        assert (changed.amin((1, 2, 3)) >= x.amin((1, 2, 3)) - 1e-4).all()
        assert (changed.amax((1, 2, 3)) <= x.amax((1, 2, 3)) + 1e-4).all()
    torch.testing.assert_close(augment.change_gamma(x, 1.0), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", [augment.change_contrast, augment.change_gamma])
def test_a_number_for_each_contrast_is_each_contrast_by_itself(batch, change) -> None:
    x, numbers = batch[0][0, :4], [0.7, 0.9, 1.1, 1.5]
    alone = torch.cat([change(one[None], number) for one, number in zip(x, numbers, strict=True)])
    torch.testing.assert_close(change(x, torch.tensor(numbers).view(-1, 1, 1, 1)), alone)


def test_contrasts_vary_apart_from_each_other_and_not_always() -> None:
    x = torch.randn(1, 6, 6, 6, generator=seeded()).expand(4, -1, -1, -1)
    changed = [augment.change_intensities(x, seeded(seed)) for seed in range(200)]
    untouched = sum(torch.equal(one, x) for one in changed)
    together = sum(torch.equal(one[0], one[1]) for one in changed)  # untouched, or blurred only
    assert 0.8 * 200 * 0.85**2 * 0.7**4 < untouched < 1.6 * 200 * 0.85**2 * 0.7**4
    assert untouched <= together < 1.6 * 200 * 0.85 * 0.7**4


def test_dropping_modalities_reaches_every_incomplete_set_equally_and_keeps_the_brain() -> None:
    found = Counter()
    for number in range(3000):
        image = torch.ones(5, 2, 2, 2)
        augment.drop_modalities(image, 0.5, torch.Generator().manual_seed(number))
        kept = tuple(n for n in range(4) if image[n].all())
        assert image[4].all() and kept and all(not image[n].any() for n in set(range(4)) - {*kept})
        found[kept] += 1
    assert len(found) == 15 and 0.45 < found.pop((0, 1, 2, 3)) / 3000 < 0.55
    assert max(found.values()) < 2 * min(found.values())
