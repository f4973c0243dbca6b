"""The training loss: for each region batch Dice + binary cross-entropy, on three resolutions.

Dice as in Milletari et al. 2016 (arXiv:1606.04797) over the whole batch at once, cross-entropy as
in Futrega et al. 2021 (arXiv:2110.03352, section 3.4); deep supervision weights from Isensee et al.
2021 (doi:10.1038/s41592-020-01008-z).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..basics.constants import REGIONS

SMOOTH = 1e-5                                         # keeps Dice defined where a region is empty, as MONAI's


def labels_to_regions(labels: Tensor) -> Tensor:
    """Labels 0 to 3, (B, 1, D, H, W), as the regions WT, TC and ET: (B, 3, D, H, W), float32."""
    members = [functools.reduce(torch.logical_or, [labels == label for label in region]) for region in REGIONS.values()]
    return torch.cat(members, dim=1).float()


def batch_dice_loss(logits: Tensor, target: Tensor, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """1 - Dice of each region, over all patches and voxels of the batch together: (3,).

    logits and target (B, 3, D, H, W); target may be soft, between 0 and 1. One sum over the batch
    spares patches without a region from a loss that jumps between 0 and 1. `reduce` adds up the
    sums of several processes that share a batch.
    """
    probability, axes = torch.sigmoid(logits), (0, 2, 3, 4)
    overlap = (probability * target).sum(axes)
    total = probability.sum(axes) + target.sum(axes)
    overlap, total = reduce(torch.stack((overlap, total)))   # (3,) each
    return 1 - (2 * overlap + SMOOTH) / (total + SMOOTH)


def cross_entropy_loss(logits: Tensor, target: Tensor, class_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy of each region, the mean over its voxels: (3,); `class_weight` multiplies tumor voxels'."""
    weight = None if class_weight == 1 else torch.tensor(class_weight, device=logits.device)
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none").mean((0, 2, 3, 4))


def region_loss(logits: Tensor, target: Tensor, region_weights: Sequence[float] = (1.0, 1.0, 1.0),
                class_weight: float = 1.0, smoothing: float = 0.0, **options: object) -> Tensor:
    """The sum over regions of weight * (batch Dice + cross-entropy): a scalar.

    logits, target (B, 3, D, H, W). `smoothing` s moves the cross-entropy's targets from 0 and 1 to
    s/2 and 1 - s/2 (Szegedy et al. 2016, arXiv:1512.00567); Dice keeps the true ones.
    """
    # In fp32: sums over a million voxels need more than bf16's 8 bits; channels first, as the target's are.
    logits = logits.to(torch.float32, memory_format=torch.contiguous_format)
    soft = target * (1 - smoothing) + smoothing / 2 if smoothing else target
    each = batch_dice_loss(logits, target, **options) + cross_entropy_loss(logits, soft, class_weight)
    return (each * each.new_tensor(region_weights)).sum()


def deep_supervision_loss(outputs: Tensor | Sequence[Tensor], target: Tensor, **options: object) -> Tensor:
    """The region loss on every resolution, weighted 1, 1/2, 1/4, ... and normalized to a sum of 1.

    outputs: logits (B, 3, D / 2**i, ...), finest first, or the finest alone; target (B, 3, D, H, W). The target is averaged
    down to each output's grid, so that a rim thinner than a voxel there still counts in part.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    weights = [0.5**i for i in range(len(outputs))]
    targets = [target] + [F.adaptive_avg_pool3d(target, logits.shape[2:]) for logits in outputs[1:]]
    losses = [w * region_loss(*pair, **options) for w, *pair in zip(weights, outputs, targets, strict=True)]
    return sum(losses) / sum(weights)
