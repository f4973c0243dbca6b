"""Augmentation of a whole batch on the device that trains: one resampling, then intensities.

The recipe is NVIDIA's for BraTS21 (Futrega et al. 2021, arXiv:2110.03352, section 3.3) with rotation and
gamma as in nnU-Net (Isensee et al. 2021), and a mild elastic deformation. Rotation, zoom and deformation are
fused into one `grid_sample`, so that a patch is interpolated once. Every draw comes from a generator
that the caller seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PROBABILITY = 0.15                                    # of each transform but the flips
FLIP_PROBABILITY = 0.5                                # an axis
ZOOM = (1.0, 1.4)
ROTATION_DEGREES = 30.0                               # largest angle about each axis
ELASTIC_VOXELS = 4.0                                  # largest shift, at the nodes of a coarse grid
ELASTIC_NODES = 5
NOISE_SIGMA = 0.33                                    # in standard deviations of the brain, as are all intensities
BLUR_SIGMA = (0.5, 1.5)                               # voxels
BRIGHTNESS = (0.7, 1.3)
CONTRAST = (0.65, 1.5)
GAMMA = (0.7, 1.5)


def normalise_batch(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Raw intensities to the network's five channels.

    images (B, 4, D, H, W) of any type with 0 outside the brain; mean, std (B, 4) over the patient's
    brain. Returns (B, 5, D, H, W) float32: z-scores in the brain, 0 outside, and the brain itself.
    """
    brain = (images != 0).any(dim=1, keepdim=True)    # before the z-score, which makes much of the brain negative
    shape = (*mean.shape, 1, 1, 1)
    scored = (images.float() - mean.view(shape)) / std.view(shape)
    return torch.cat((scored * brain, brain.float()), dim=1)


def augment(images: Tensor, labels: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Images (B, 5, D, H, W) from `normalise_batch` and labels (B, 1, D, H, W), each patch changed in its own way.

    A CPU generator for each patch, so that what happens to a patch does not depend on those beside it.
    """
    pairs = [augment_one(*patch) for patch in zip(images, labels, generators, strict=True)]
    return torch.stack([image for image, _ in pairs]), torch.stack([label for _, label in pairs])


def augment_one(image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One patch, (5, D, H, W) and (1, D, H, W): perhaps resampled, perhaps flipped, perhaps with other intensities."""
    zoom = uniform(generator, *ZOOM) if chance(generator) else 1.0
    angles = [uniform(generator, -ROTATION_DEGREES, ROTATION_DEGREES) for _ in range(3)] if chance(generator) else None
    elastic = ELASTIC_VOXELS if chance(generator) else 0.0
    if zoom != 1 or angles or elastic:
        image, label = resample(image, label, sampling_grid(image.shape[1:], zoom, angles, elastic, generator))
    axes = [axis for axis in (1, 2, 3) if chance(generator, FLIP_PROBABILITY)]
    image, label = image.flip(axes), label.flip(axes)
    return torch.cat((change_intensities(image[:4], generator) * image[4:], image[4:])), label


def change_intensities(x: Tensor, generator: torch.Generator) -> Tensor:
    """Noise, blur, brightness, contrast and gamma of (4, D, H, W), each with its probability, in the recipe's order."""
    if chance(generator):
        x = add_noise(x, uniform(generator, 0, NOISE_SIGMA), generator)
    if chance(generator):
        x = blur(x, uniform(generator, *BLUR_SIGMA))
    if chance(generator):
        x = x * uniform(generator, *BRIGHTNESS)
    if chance(generator):
        x = change_contrast(x, uniform(generator, *CONTRAST))
    if chance(generator):
        x = change_gamma(x, uniform(generator, *GAMMA))
    return x


def sampling_grid(shape: torch.Size, zoom: float, angles: list[float] | None, elastic: float,
                  generator: torch.Generator) -> Tensor:
    """Where each voxel of the result is taken from: (1, D, H, W, 3), in `grid_sample`'s coordinates (x y z, -1 to 1).

    zoom above 1 enlarges; angles in degrees about the three axes; elastic in voxels, the largest shift.
    """
    half = torch.tensor([s / 2 for s in reversed(shape)])               # rotate in voxels, or a box would shear
    matrix = torch.diag(1 / half) @ rotation(angles or [0, 0, 0]) @ torch.diag(half) / zoom
    grid = F.affine_grid(F.pad(matrix, (0, 1))[None], [1, 1, *shape], align_corners=False)
    if elastic:
        nodes = (torch.rand(1, 3, *[ELASTIC_NODES] * 3, generator=generator) * 2 - 1) * elastic
        shift = F.interpolate(nodes, shape, mode="trilinear", align_corners=True)
        grid = grid + shift.permute(0, 2, 3, 4, 1) / half
    return grid


def rotation(degrees: list[float]) -> Tensor:
    """The rotation matrix, (3, 3), about the x, then the y, then the z axis."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(degrees):
        a, b = [i for i in range(3) if i != axis]
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        step = torch.eye(3)
        step[a, a], step[a, b], step[b, a], step[b, b] = cos, -sin, sin, cos
        matrix = step @ matrix
    return matrix


def resample(image: Tensor, label: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Image (C, D, H, W) linearly and label (1, D, H, W) by the nearest voxel; what comes from outside is 0."""
    grid = grid.to(image.device)
    moved = F.grid_sample(image[None], grid, mode="bilinear", align_corners=False)[0]
    relabelled = F.grid_sample(label[None].float(), grid, mode="nearest", align_corners=False)[0]
    brain = (moved[-1:] > 0.5).to(moved.dtype)        # interpolation blurs the mask's edge: make it 0 or 1 again
    return torch.cat((moved[:-1] * brain, brain)), relabelled.to(label.dtype)


def add_noise(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise; drawn on the CPU, so that every device sees the same."""
    return x + (torch.randn(x.shape, generator=generator) * sigma).to(x.device)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (C, D, H, W), sigma in voxels, one axis after the other, cut off at 3 sigma."""
    radius = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    for axis in (1, 2, 3):
        length = x.shape[axis]
        around = torch.arange(-radius, length + radius, device=x.device).clamp(0, length - 1)
        padded = x.index_select(axis, around)         # the edge repeated outwards
        x = sum(w / sum(weights) * padded.narrow(axis, i, length) for i, w in enumerate(weights))
    return x


def change_contrast(x: Tensor, factor: float) -> Tensor:
    """Stretch each channel of (C, D, H, W) about 0, the brain's mean, and keep its old range."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return torch.clamp(x * factor, low, high)


def change_gamma(x: Tensor, gamma: float) -> Tensor:
    """Bend each channel's intensities between its smallest and its largest: t -> t ** gamma."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    span = (high - low).clamp_min(1e-6)
    return ((x - low) / span) ** gamma * span + low


def chance(generator: torch.Generator, probability: float = PROBABILITY) -> bool:
    """True with that probability."""
    return torch.rand((), generator=generator).item() < probability


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """A number between low and high."""
    return low + (high - low) * torch.rand((), generator=generator).item()
