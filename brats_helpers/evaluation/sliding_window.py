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
from ..network.unet import UNet
from .build import full_resolution_logits

FLIPS = [axes for n in range(4) for axes in combinations((2, 3, 4), n)]  # all 8, none first
OPPOSITE_FLIPS = [FLIPS[0], FLIPS[-1]]  # unmirrored, and mirrored along all three
BATCH = 2  # windows in one pass, where that is faster (`_batch_size`)
STRETCH = 1.25  # longest window, in patches (benchmarks/README.md)
SIGMA = 1 / 8  # of the Gaussian weight, in window edges


def window_starts(length: int, patch: int, overlap: float) -> list[int]:
    """Return the first voxel of evenly spaced windows that overlap by at least `overlap`."""
    if length <= patch:
        return [0]
    count = int(np.ceil((length - patch) / max(1, patch * (1 - overlap)))) + 1
    return [round(i * (length - patch) / (count - 1)) for i in range(count)]


def window_edge(length: int, patch: int, overlap: float, multiple: int, stretch: float) -> int:
    """Choose a window's edge along an axis: the patch, or a longer one that computes fewer voxels.

    An axis of 71 voxels takes two windows of 64, which compute most of it twice, or one of 72. The
    choices are a patch plus multiples of `multiple`, what the network's levels divide by, up to
    `stretch` patches; the shortest wins a tie.
    """
    edges = range(patch, int(stretch * patch) + 1, multiple)
    return min(edges, key=lambda edge: edge * len(window_starts(length, edge, overlap)))


def gaussian_weight(*edges: int) -> Tensor:
    """Compute the weights of a window: near 1 at the center, never below 0.001, as in MONAI.

    `edges` are three, or one for a cube. Returns (D, H, W) float32.
    """
    axes = [torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n * SIGMA)) ** 2)
            for n in edges * (3 // len(edges))]
    return torch.einsum("i,j,k->ijk", *axes).clamp_min(1e-3)


@torch.inference_mode()
def sliding_window_inference(
        model: nn.Module, image: Tensor, patch: int, overlap: float,
        flips: Sequence[tuple[int, ...]] = ((),), device: Device | None = None,
        stretch: float = 1.0) -> Tensor:
    """Compute the probabilities of the three regions, averaged over windows and flips.

    image is z-scored, (5, D, H, W); a volume smaller than a window is padded with background. Each
    flip lists axes of a batch, 2 to 4. For our U-Net on a CPU, a window may be up to `stretch`
    patches long. Returns (3, D, H, W) float32, on the image's device.
    """
    device = device or describe_device()
    shape, home = image.shape[1:], image.device
    edges = [patch] * 3  # a GPU compiles for one shape, and another network may take only this one
    if device.kind == "cpu" and isinstance(model, UNet):
        multiple = 2 ** (len(model.encoder) - 1)
        edges = [window_edge(size, patch, overlap, multiple, stretch) for size in shape]
    padding = [max(0, edge - size) for edge, size in zip(edges, shape, strict=True)]
    image = F.pad(image, [p for after in reversed(padding) for p in (0, after)])
    image = image.to(device.torch_device)
    weight = gaussian_weight(*edges).to(image.device)
    total = torch.zeros(3, *image.shape[1:], device=image.device)
    norm = torch.zeros(image.shape[1:], device=image.device)
    starts = map(window_starts, image.shape[1:], edges, (overlap,) * 3)
    jobs, size = list(product(product(*starts), flips)), _batch_size(device, patch)
    for batch in (jobs[i:i + size] for i in range(0, len(jobs), size)):
        windows = [(slice(None), *map(slice, corner, map(sum, zip(corner, edges, strict=True))))
                   for corner, _ in batch]
        probabilities = mirrored(model, [image[window] for window in windows],
                                 [axes for _, axes in batch], device)
        for window, probability in zip(windows, probabilities, strict=True):
            total[window] += weight * probability
            norm[window[1:]] += weight
    return (total / norm)[:, :shape[0], :shape[1], :shape[2]].to(home)


def _batch_size(device: Device, patch: int) -> int:
    """Choose how many windows pass through the network at once.

    On a CPU, torch runs most convolutions of a single small float32 patch in a slow kernel instead
    of oneDNN, so that two patches take less time than one. Large patches do not need that and take
    much memory.
    """
    if device.kind == "cpu":
        return BATCH if device.dtype == torch.float32 and patch <= 64 else 1
    return BATCH if device.kind == "cuda" else 1


def mirrored(model: nn.Module, windows: Sequence[Tensor], flips: Sequence[tuple[int, ...]],
             device: Device) -> Sequence[Tensor]:
    """Compute the probabilities of windows (5, D, H, W), each mirrored by its flip and back.

    All pass through the network at once. Returns (3, D, H, W) for each.
    """
    backs = [[axis - 1 for axis in axes] for axes in flips]  # without the batch's axis
    copies = torch.stack([x.flip(axes) for x, axes in zip(windows, backs, strict=True)])
    with device.autocast():
        logits = full_resolution_logits(model(copies))
    found = torch.sigmoid(logits.float())
    return [p.flip(axes) for p, axes in zip(found, backs, strict=True)]


def predict_image(models: Sequence[nn.Module], image: Tensor, patch: int, overlap: float,
                  tta: bool, device: Device) -> np.ndarray:
    """Compute an image's probabilities, (3, D, H, W), averaged over the models (the folds).

    The image is that of `network_input`, or a part of it. `tta` averages all 8 flips instead of 2
    and keeps windows at the patch's size, which takes at least four times as long
    (benchmarks/README.md compares them).
    """
    how = {"flips": FLIPS} if tta else {"flips": OPPOSITE_FLIPS, "stretch": STRETCH}
    total = sum(sliding_window_inference(model.eval(), image, patch, overlap, device=device, **how)
                for model in models)
    return (total / len(models) * image[4]).cpu().numpy()  # no tumor is outside the brain


def predict_prepared(models: Sequence[nn.Module], prepared: Prepared, patch: int, overlap: float,
                     tta: bool, device: Device | None = None) -> np.ndarray:
    """Compute what `predict_image` does on the scan's own grid: (3, X, Y, Z) float32."""
    device = device or describe_device()
    found = predict_image(models, network_input(prepared, device), patch, overlap, tta, device)
    return np.asarray(restore(found, prepared.meta))
