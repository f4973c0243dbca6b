"""The loss beside MONAI's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from brats_helpers.network.losses import (
    batch_dice_loss,
    cross_entropy_loss,
    deep_supervision_loss,
    labels_to_regions,
    region_loss,
)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 1, 8, 12, 10), generator=generator)
    return 3 * torch.randn(2, 3, 8, 12, 10, generator=generator), labels_to_regions(labels)


def test_regions_are_nested_and_made_of_the_right_labels() -> None:
    regions = labels_to_regions(
        torch.tensor([0, 1, 2, 3], dtype=torch.int16).reshape(1, 1, 1, 1, 4)
    )
    assert regions.reshape(3, 4).tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]


def test_dice_and_cross_entropy_equal_monais_and_torchs(pair) -> None:
    logits, target = pair
    for i in range(3):
        reference = DiceLoss(sigmoid=True, batch=True)(logits[:, i : i + 1], target[:, i : i + 1])
        torch.testing.assert_close(batch_dice_loss(logits, target)[i], reference)
        torch.testing.assert_close(cross_entropy_loss(logits, target)[i],
                                   F.binary_cross_entropy_with_logits(logits[:, i], target[:, i]))
    together = batch_dice_loss(logits, target).sum() + cross_entropy_loss(logits, target).sum()
    torch.testing.assert_close(region_loss(logits, target), together)


def test_a_sure_and_correct_network_has_no_loss(pair) -> None:
    _, target = pair
    assert region_loss((target * 2 - 1) * 30, target) < 1e-3


def test_deep_supervision_is_the_weighted_mean(pair) -> None:
    logits, target = pair
    half = F.avg_pool3d(logits, 2)
    expected = (
        region_loss(logits, target) + 0.5 * region_loss(half, F.avg_pool3d(target, 2))
    ) / 1.5
    torch.testing.assert_close(deep_supervision_loss([logits, half], target), expected)
