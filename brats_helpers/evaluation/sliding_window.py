"""Probabilities from a trained network, averaged over overlapping windows and mirrored copies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..basics.device import Device, describe_device
from ..data.preprocessing import Prepared, network_input, restore
from .build import full_resolution_logits

FLIPS = [axes for n in range(4) for axes in combinations((2, 3, 4), n)]  # all 8, none first
# Half of the flips, in which each axis is mirrored half of the time.
EVEN_FLIPS = [axes for axes in FLIPS if len(axes) % 2 == 0]
GPU_BATCH = 2  # mirrored copies in one pass on a GPU (benchmarks/README.md)
SIGMA = 1 / 8  # of the Gaussian weight, in window edges


def window_starts(length: int, patch: int, overlap: float) -> list[int]:
    """Place windows evenly along an axis, overlapping by at least that share: first voxels."""
    if length <= patch:
        return [0]
    count = int(np.ceil((length - patch) / max(1, patch * (1 - overlap)))) + 1
    return [round(i * (length - patch) / (count - 1)) for i in range(count)]


def gaussian_weight(patch: int) -> Tensor:
    """Weigh the voxels of a window, (P, P, P): 1 at the center, never below 0.001, as in MONAI."""
    axis = torch.exp(-0.5 * ((torch.arange(patch) - (patch - 1) / 2) / (patch * SIGMA)) ** 2)
    return torch.einsum("i,j,k->ijk", axis, axis, axis).clamp_min(1e-3)


@torch.inference_mode()
def sliding_window_inference(
        model: nn.Module, image: Tensor, patch: int, overlap: float,
        flips: Sequence[tuple[int, ...]] = ((),), device: Device | None = None) -> Tensor:
    """Compute the probabilities of the three regions, averaged over windows and flips.

    image: (5, D, H, W), z-scored; a volume smaller than a window is padded with background.
    Returns (3, D, H, W) float32, on the image's device.
    """
    device = device or describe_device()
    shape, home = image.shape[1:], image.device
    padding = [p for size in reversed(shape) for p in (0, max(0, patch - size))]
    image = F.pad(image, padding).to(device.torch_device)
    weight = gaussian_weight(patch).to(image.device)
    total = torch.zeros(3, *image.shape[1:], device=image.device)
    norm = torch.zeros(image.shape[1:], device=image.device)
    for corner in product(*(window_starts(size, patch, overlap) for size in image.shape[1:])):
        window = (slice(None), *(slice(start, start + patch) for start in corner))
        total[window] += weight * flip_average(model, image[window][None], flips, device)[0]
        norm[window[1:]] += weight
    return (total / norm)[:, :shape[0], :shape[1], :shape[2]].to(home)


def flip_average(model: nn.Module, x: Tensor, flips: Sequence[tuple[int, ...]],
                 device: Device) -> Tensor:
    """Average the probabilities over mirrored copies of x (1, 5, D, H, W), each mirrored back.

    Returns (1, 3, D, H, W). This is test-time augmentation.
    """
    probabilities, size = [], GPU_BATCH if device.kind == "cuda" else 1
    for batch in (flips[i:i + size] for i in range(0, len(flips), size)):
        copies = torch.cat([x.flip(axes) if axes else x for axes in batch])
        with device.autocast():
            logits = full_resolution_logits(model(copies))
        mirrored = torch.sigmoid(logits.float()).split(1)
        probabilities += [p.flip(axes) for p, axes in zip(mirrored, batch, strict=True)]
    return torch.stack(probabilities).mean(0)


def predict_prepared(models: Sequence[nn.Module], prepared: Prepared, patch: int, overlap: float,
                     tta: bool, device: Device | None = None) -> np.ndarray:
    """Compute the probabilities on the scan's own grid, averaged over the models (the folds).

    tta: use all 8 flips instead of 4, in twice the time (benchmarks/README.md compares them).
    Returns (3, X, Y, Z) float32.
    """
    device = device or describe_device()
    image = network_input(prepared, device)
    flips = FLIPS if tta else EVEN_FLIPS
    total = sum(sliding_window_inference(model.eval(), image, patch, overlap, flips, device)
                for model in models)
    inside = total / len(models) * image[4]  # there is no tumor outside the brain
    return np.asarray(restore(inside.cpu().numpy(), prepared.meta))
