"""Probabilities from a trained network: overlapping windows and mirrored views, averaged."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..basics.device import Device, describe_device
from ..data.preprocessing import Prepared, normalize_batch, restore
from .build import full_resolution_logits

FLIPS = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)]      # all 8, none first
EVEN_FLIPS = [axes for axes in FLIPS if len(axes) % 2 == 0]      # half of them, in which each axis is mirrored half the time
VIEWS_AT_ONCE = 2                                     # that a GPU is given as one batch (benchmarks/README.md)
SIGMA = 1 / 8                                         # of the Gaussian weight, in window edges


def window_starts(length: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis: evenly spread, overlapping by at least that share."""
    if length <= patch:
        return [0]
    count = int(np.ceil((length - patch) / max(1, patch * (1 - overlap)))) + 1
    return [round(i * (length - patch) / (count - 1)) for i in range(count)]


def gaussian_weight(patch: int) -> Tensor:
    """The weight of each voxel of a window, (P, P, P): 1 at the center, and never below 0.001, as MONAI's."""
    axis = torch.exp(-0.5 * ((torch.arange(patch) - (patch - 1) / 2) / (patch * SIGMA)) ** 2)
    return torch.einsum("i,j,k->ijk", axis, axis, axis).clamp_min(1e-3)


@torch.inference_mode()
def sliding_window_inference(model: nn.Module, image: Tensor, patch: int, overlap: float, flips: Sequence[tuple] = ((),),
                   device: Device | None = None) -> Tensor:
    """Probabilities of the three regions, (3, D, H, W) float32, averaged over windows and flips.

    image (5, D, H, W), z-scored; smaller volumes are padded with background to one window. The result lies where image does.
    """
    device = device or describe_device()
    shape, home = image.shape[1:], image.device
    image = F.pad(image, [p for s in reversed(shape) for p in (0, max(0, patch - s))]).to(device.torch_device)
    weight = gaussian_weight(patch).to(image.device)
    total = torch.zeros(3, *image.shape[1:], device=image.device)
    norm = torch.zeros(image.shape[1:], device=image.device)
    for corner in itertools.product(*(window_starts(s, patch, overlap) for s in image.shape[1:])):
        place = (slice(None), *(slice(c, c + patch) for c in corner))
        total[place] += weight * flip_average(model, image[place][None], flips, device)[0]
        norm[place[1:]] += weight
    return (total / norm)[:, :shape[0], :shape[1], :shape[2]].to(home)


def flip_average(model: nn.Module, x: Tensor, flips: Sequence[tuple], device: Device) -> Tensor:
    """Probabilities (1, 3, D, H, W), the mean over mirrored views of x (1, 5, D, H, W), each mirrored back."""
    views, at_once = [], VIEWS_AT_ONCE if device.kind == "cuda" else 1
    for some in (flips[i:i + at_once] for i in range(0, len(flips), at_once)):
        with device.autocast():
            logits = full_resolution_logits(model(torch.cat([x.flip(axes) if axes else x for axes in some])))
        views += [view.flip(axes) for view, axes in zip(torch.sigmoid(logits.float()).split(1), some, strict=True)]
    return torch.stack(views).mean(0)


def predict_prepared(models: Sequence[nn.Module], prepared: Prepared, patch: int, overlap: float, tta: bool,
                     device: Device | None = None) -> np.ndarray:
    """Probabilities (3, X, Y, Z) float32 on the scan's own grid, averaged over the models (the folds).

    tta: all 8 mirrored views instead of 4, which take half of the time (benchmarks/README.md has what that costs).
    """
    device = device or describe_device()
    images, mean, std = (torch.from_numpy(np.ascontiguousarray(a))[None].to(device.torch_device) for a in (
        prepared.volume[:4], np.float32(prepared.meta.mean), np.float32(prepared.meta.std)))
    image = normalize_batch(images, mean, std)[0]
    flips = FLIPS if tta else EVEN_FLIPS
    total = sum(sliding_window_inference(model.eval(), image, patch, overlap, flips, device) for model in models)
    inside = total / len(models) * image[4]           # what is not brain is not tumor
    return np.asarray(restore(inside.cpu().numpy(), prepared.meta))
