"""Augmentation of each patch on the training device: one resampling, flips, then intensities.

The recipe is NVIDIA's for BraTS21 (Futrega et al. 2021, arXiv:2110.03352, section 3.3). Rotation,
gamma and separate intensities for each modality are nnU-Net's (Isensee et al. 2021); the mild
elastic deformation is ours. One sampling grid rotates, zooms and deforms, so that a patch
is interpolated once. All randomness comes from generators that the caller seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PROBABILITY = 0.15  # of each transform but those below
FLIP_PROBABILITY = 0.5  # of each axis
SCANNER_PROBABILITY = 0.3  # of brightness, contrast, gamma and shift (benchmarks/real_cohort.md)
ZOOM = (1.0, 1.4)
ROTATION_DEGREES = 30.0  # largest angle about each axis
ELASTIC_VOXELS = 4.0  # largest shift, at the nodes of a coarse grid
ELASTIC_NODES = 5  # along each axis
SLABS = 8  # pieces of a patch that a CPU's threads share, at most
NOISE_SIGMA = 0.33  # in standard deviations of the brain, like all intensities
BLUR_SIGMA = (0.5, 1.5)  # voxels
BRIGHTNESS = (0.7, 1.3)
CONTRAST = (0.65, 1.5)
GAMMA = (0.7, 1.5)
SHIFT = (-0.5, 0.5)


def augment(images: Tensor, labels: Tensor,
            generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Augment images (B, 5, D, H, W) from `normalize_batch` with their labels (B, 1, D, H, W).

    Each patch has a CPU generator, so that it does not depend on the rest of the batch.
    """
    pairs = [augment_one(*patch) for patch in zip(images, labels, generators, strict=True)]
    return _batch([image for image, _ in pairs]), _batch([label for _, label in pairs])


def _batch(patches: Sequence[Tensor]) -> Tensor:
    return torch.stack(patches) if len(patches) > 1 else patches[0][None]


def augment_one(image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Resample, flip and change intensities at random: image (5, D, H, W), label (1, D, H, W)."""
    zoom = uniform(generator, *ZOOM) if chance(generator) else 1.0
    angles = None
    if chance(generator):
        angles = [uniform(generator, -ROTATION_DEGREES, ROTATION_DEGREES) for _ in range(3)]
    elastic = ELASTIC_VOXELS if chance(generator) else 0.0
    if zoom != 1 or angles or elastic:
        shape = image.shape[1:]
        grid = sampling_grid(shape, zoom, angles, elastic, generator, image.device)
        image, label = resample(image, label, grid)
    axes = [axis for axis in (1, 2, 3) if chance(generator, FLIP_PROBABILITY)]
    image, label = image.flip(axes), label.flip(axes)
    return mask_and_append_brain(change_intensities(image[:4], generator), image[4:]), label


def mask_and_append_brain(x: Tensor, brain: Tensor) -> Tensor:
    """Return x, (4, D, H, W) or in slabs, as 0 outside the brain, followed by the brain."""
    out = torch.empty(len(x) + 1, *brain.shape[1:], device=x.device)
    torch.mul(x, brain.view(1, *x.shape[1:]), out=out[:-1].view(x.shape))
    out[-1:] = brain
    return out


def change_intensities(x: Tensor, generator: torch.Generator) -> Tensor:
    """Apply noise, blur, brightness, contrast, gamma and shift to (4, D, H, W), each at random.

    From brightness on, each modality has its own value: a scanner changes one without the others.
    """
    if chance(generator):
        x = add_noise(x, uniform(generator, 0, NOISE_SIGMA), generator)
    if chance(generator):
        x = blur(x, uniform(generator, *BLUR_SIGMA))
    if chance(generator, SCANNER_PROBABILITY):
        x = x * uniform_per_channel(x, generator, *BRIGHTNESS)
    if chance(generator, SCANNER_PROBABILITY):
        x = change_contrast(x, uniform_per_channel(x, generator, *CONTRAST))
    if chance(generator, SCANNER_PROBABILITY):
        x = change_gamma(x, uniform_per_channel(x, generator, *GAMMA))
    if chance(generator, SCANNER_PROBABILITY):
        x = x + uniform_per_channel(x, generator, *SHIFT)
    return x


def drop_modalities(image: Tensor, probability: float, generator: torch.Generator) -> None:
    """Set one to three of the modalities in (5, D, H, W) to 0, in place, with this probability.

    Each of the 14 incomplete sets is as likely as any other. One network then segments whatever
    was scanned (Havaei et al. 2016, arXiv:1607.05194).
    """
    if chance(generator, probability):
        kept = int(torch.randint(1, 15, (1,), generator=generator))  # a bit for each modality
        for n in range(4):
            if not kept >> n & 1:
                image[n] = 0


def sampling_grid(shape: torch.Size, zoom: float, angles: list[float] | None, elastic: float,
                  generator: torch.Generator, device: torch.device | None = None) -> Tensor:
    """Compute where each voxel of the result is sampled: (1, D, H, W, 3), x y z from -1 to 1.

    Zoom above 1 enlarges, the three angles are degrees, and elastic is the largest shift in voxels.
    """
    # Rotate voxel coordinates: a rotation of those from -1 to 1 would shear a box.
    half = torch.tensor([s / 2 for s in reversed(shape)])
    matrix = torch.diag(1 / half) @ rotation(angles or [0, 0, 0]) @ torch.diag(half) / zoom
    z, y, x = ((2 * torch.arange(n, device=device) + 1) / n - 1 for n in shape)  # voxel centers
    grid = torch.empty(*shape, 3, device=device)
    for axis, (a, b, c) in enumerate(matrix.tolist()):
        grid[..., axis] = a * x + (b * y)[:, None] + (c * z)[:, None, None]
    if elastic:
        nodes = torch.rand(1, 3, *[ELASTIC_NODES] * 3, generator=generator) * 2 - 1
        nodes = (nodes * elastic / half.view(3, 1, 1, 1)).to(device)
        shifts = F.interpolate(nodes, shape, mode="trilinear", align_corners=True)[0]
        grid += shifts.permute(1, 2, 3, 0)
    return grid[None]


def rotation(degrees: list[float]) -> Tensor:
    """Build the rotation matrix, (3, 3), about the x, then the y, then the z axis."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(degrees):
        a, b = [i for i in range(3) if i != axis]
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        step = torch.eye(3)
        step[a, a], step[a, b], step[b, a], step[b, b] = cos, -sin, sin, cos
        matrix = step @ matrix
    return matrix


def resample(image: Tensor, label: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Sample the image (5, D, H, W) linearly, its mask and the label (1, D, H, W) by nearest voxel.

    Voxels from outside the patch are 0.
    """
    packed = label.float() + 4 * image[4:]  # label and brain in one volume: labels are below 4
    nearest = sample(packed, grid, "nearest").view(label.shape)
    brain = nearest >= 4
    image = mask_and_append_brain(sample(image[:4], grid, "bilinear"), brain)
    return image, (nearest - 4 * brain).to(label.dtype)


def sample(volume: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Run `grid_sample` on a volume (C, D, H, W) and a grid (1, D, H, W, 3).

    Returns (C, slabs, D / slabs, H, W). On a CPU the threads of `grid_sample` share a batch, not
    a volume, so the slabs of the result form a batch. With channels last, one read serves them all.
    """
    shape = grid.shape[1:4]
    slabs = 1
    if volume.device.type == "cpu":
        slabs = math.gcd(shape[0], SLABS)
        volume = volume.movedim(0, -1).contiguous().movedim(-1, 0)
    grids = grid.view(slabs, -1, *shape[1:], 3)
    sampled = F.grid_sample(volume.expand(slabs, *volume.shape), grids, mode=mode,
                            align_corners=False)
    return sampled.transpose(0, 1)


def add_noise(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise, drawn on the device of x; `generator` gives the seed."""
    seed = int(torch.randint(2**62, (), generator=generator))
    local = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=local, device=x.device).mul_(sigma).add_(x)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Blur (C, D, H, W), sigma in voxels, by a banded matrix along each axis."""
    depth, height, width = (gaussian_matrix(n, sigma).to(x) for n in x.shape[1:])
    return height @ (depth @ x.flatten(2)).view_as(x) @ width.T


def gaussian_matrix(length: int, sigma: float) -> Tensor:
    """Build the matrix (length, length) that blurs a line; cut off at 3 sigma, edges repeated."""
    radius = math.ceil(3 * sigma)
    steps = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    source = (torch.arange(length)[:, None] + steps).clamp(0, length - 1)
    rows = (weights / weights.sum()).expand(length, -1)
    return torch.zeros(length, length, dtype=torch.float64).scatter_add(1, source, rows)


def change_contrast(x: Tensor, factor: float | Tensor) -> Tensor:
    """Stretch each channel of (C, D, H, W) about 0, the brain's mean, and keep its old range."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x * factor).clamp_(low, high)


def change_gamma(x: Tensor, gamma: float | Tensor) -> Tensor:
    """Bend each channel's intensities between its smallest and its largest: t -> t ** gamma."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    span = (high - low).clamp_min(1e-6)
    return (x - low).div_(span).pow_(gamma).mul_(span).add_(low)


def chance(generator: torch.Generator, probability: float = PROBABILITY) -> bool:
    """Return True with this probability."""
    return torch.rand((), generator=generator).item() < probability


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Draw a number between low and high."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def uniform_per_channel(x: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """Draw a number between low and high for each channel of (C, D, H, W): (C, 1, 1, 1)."""
    values = [uniform(generator, low, high) for _ in x]
    return torch.tensor(values, device=x.device).view(-1, 1, 1, 1)
