"""The training loss: batch Dice + binary cross-entropy of each region, at three resolutions.

Soft Dice (Milletari et al. 2016, arXiv:1606.04797) has no squares in its denominator, as by default
in MONAI, and is computed over the whole batch at once. The cross-entropy follows Futrega et al.
2021 (arXiv:2110.03352, section 3.4), and the weights of deep supervision follow Isensee et al. 2021
(doi:10.1038/s41592-020-01008-z).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..basics.constants import REGIONS

SMOOTH = 1e-5  # keeps the Dice of an empty region defined, as in MONAI


def labels_to_regions(labels: Tensor) -> Tensor:
    """Convert labels 0 to 3, (B, 1, D, H, W), to the regions WT, TC and ET: (B, 3, ...) float32."""
    masks = [functools.reduce(torch.logical_or, [labels == label for label in region])
             for region in REGIONS.values()]
    return torch.cat(masks, dim=1).float()


def batch_dice_loss(logits: Tensor, target: Tensor,
                    reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """Compute 1 - Dice of each region, over all voxels of the batch together: (3,).

    logits and target are (B, 3, D, H, W); target may be soft, between 0 and 1. With one sum over
    the batch, the loss of a patch without a region does not jump between 0 and 1. `reduce` adds up
    the sums of all processes that share a batch.
    """
    probability = torch.sigmoid(logits)
    axes = (0, 2, 3, 4)
    overlap = (probability * target).sum(axes)
    total = probability.sum(axes) + target.sum(axes)
    overlap, total = reduce(torch.stack((overlap, total)))  # (3,) each
    return 1 - (2 * overlap + SMOOTH) / (total + SMOOTH)


def cross_entropy_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the mean binary cross-entropy of each region: (3,)."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return loss.mean((0, 2, 3, 4))


def region_loss(logits: Tensor, target: Tensor, **options: object) -> Tensor:
    """Sum (1 - batch Dice) + cross-entropy over the regions: a scalar.

    logits and target are (B, 3, D, H, W). `options` go to `batch_dice_loss`.
    """
    # float32: sums over a million voxels need more than the 8 bits of bf16.
    logits = logits.to(torch.float32, memory_format=torch.contiguous_format)
    losses = batch_dice_loss(logits, target, **options) + cross_entropy_loss(logits, target)
    return losses.sum()


def deep_supervision_loss(outputs: Tensor | Sequence[Tensor], target: Tensor,
                          **options: object) -> Tensor:
    """Average the region loss over all resolutions, with weights 1, 1/2, 1/4, ...

    outputs: logits (B, 3, D / 2**i, ...), finest first, or only the finest; target (B, 3, D, H, W).
    The target is averaged down to each grid, so that thin structures still count there in part.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    weights = [0.5**i for i in range(len(outputs))]
    coarser = [F.adaptive_avg_pool3d(target, logits.shape[2:]) for logits in outputs[1:]]
    losses = [weight * region_loss(*pair, **options) for weight, *pair
              in zip(weights, outputs, [target, *coarser], strict=True)]
    return sum(losses) / sum(weights)
