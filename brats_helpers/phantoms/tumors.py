"""The tumors of the varied kind: planned, then grown in a brain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage
from scipy.special import ndtri

from ..basics.constants import ED, ET, NCR
from .anatomy import Tissue, Tumor, column
from .noise import smooth_noise

TUMOR_TYPES = {"ring": 0.54, "solid": 0.13, "non-enhancing": 0.15, "patchy": 0.18}


def plan(rng: np.random.Generator, rank: float) -> list[Tumor]:
    """Draw a main tumor, whose size follows `rank` from 0 to 1, and its satellites."""
    kind = str(rng.choice(list(TUMOR_TYPES), p=list(TUMOR_TYPES.values())))
    radius = float(np.clip(16.5 * np.exp(0.45 * ndtri(np.clip(rank, 0.01, 0.99))), 5, 36))
    if kind == "solid":
        radius = min(0.8 * radius, 20)
    side = rng.choice([-1, 1])
    center = np.array([side * rng.uniform(8, 52), rng.uniform(-66, 54), rng.uniform(-30, 50)])
    first = Tumor(kind, center, radius, rng.uniform(0.07, 0.35) * radius + 1.2,
                  rng.choice([20, 36], p=[0.8, 0.2]) * rng.beta(1.2, 1.3)
                  * (0.5 if kind == "non-enhancing" else 1),
                  rng.uniform(0.65, 1.5, 3), rng.uniform(0.08, 0.33) * radius)
    tumors = [first]
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.68, 0.18, 0.09, 0.05]))):
        near = rng.random() < 0.6
        away = rng.normal(size=3)
        away *= (radius + rng.uniform(6, 22)) / np.linalg.norm(away)
        place = center + away if near else np.array(
            [rng.uniform(-50, 50), rng.uniform(-62, 50), rng.uniform(-25, 45)])
        small = rng.uniform(2.5, 7 if near else 14)
        tumors.append(replace(
            first, kind=str(rng.choice(["ring", "solid"])) if kind != "non-enhancing" else kind,
            center=place, radius=small, rim=max(1.5, 0.4 * small),
            edema=rng.uniform(2, 12), axes=rng.uniform(0.75, 1.35, 3), push=0.15 * small))
    return tumors


def grow(rng: np.random.Generator, grid: np.ndarray, tumor: Tumor,
         tissue: Tissue, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Grow a tumor: labels (X, Y, Z), and how much of label NCR is solid tumor, 0 to 1."""
    gray, white, brain, _ = tissue
    shape, labels = brain.shape, np.zeros(brain.shape, np.uint8)
    box = _around(grid, tumor, shape)
    if not brain[box].any():
        return labels, np.zeros(shape, np.float32)
    gray, white, brain, inner = gray[box], white[box], brain[box], labels[box]
    stretched = (grid[(slice(None), *box)] - column(tumor.center)) / column(tumor.axes)
    depth = np.sqrt((stretched**2).sum(0))
    for length, limits in ((1.0, (0.08, 0.35)), (0.4, (0.04, 0.2))):
        voxels = max(2, length * tumor.radius / spacing_mm)
        depth += rng.uniform(*limits) * tumor.radius * smooth_noise(rng, brain.shape, voxels)
    core = (depth < tumor.radius) & brain
    along = ndimage.gaussian_filter(white, rng.uniform(1.5, 3) / spacing_mm)
    strength = rng.uniform(0, 0.5)
    fingers = 1 + strength * smooth_noise(rng, brain.shape, rng.uniform(7, 15) / spacing_mm)
    reach = tumor.radius + tumor.edema * (rng.uniform(0, 0.35) + 1.2 * along) * fingers
    fluid = ndimage.gaussian_filter(np.clip(brain - gray - white, 0, 1), 2 / spacing_mm) > 0.55
    reach = reach + smooth_noise(rng, brain.shape, 8 / spacing_mm)
    inner[((depth < reach) & brain & ~fluid) | core] = ED
    inner[core] = NCR
    inner[core & enhancing(rng, depth, tumor, spacing_mm)] = ET
    solid = np.zeros(shape, np.float32)
    share = {"ring": rng.uniform(-1.5, 0.8), "solid": 0.5, "patchy": rng.uniform(-0.3, 1.5),
             "non-enhancing": rng.uniform(0.5, 2.5)}[tumor.kind]
    solid[box] = np.clip(0.5 + share + 0.8 * smooth_noise(
        rng, brain.shape, max(2, 0.7 * tumor.radius / spacing_mm)), 0, 1)
    return labels, solid


def enhancing(rng: np.random.Generator, depth: np.ndarray, tumor: Tumor,
              spacing_mm: float) -> np.ndarray:
    """Mark where the core takes up contrast agent; depth is in mm from its center."""
    noise = smooth_noise(rng, depth.shape, rng.uniform(4, 12) / spacing_mm)
    if tumor.kind == "non-enhancing":
        return np.zeros(depth.shape, bool)
    if tumor.kind == "solid":
        return noise > rng.uniform(-2.5, -1)
    if tumor.kind == "patchy":  # nodules, more often near the edge
        return noise + depth / tumor.radius > rng.uniform(1.0, 2.2)
    rim = tumor.rim * (1 + rng.uniform(0.1, 1.0) * noise)
    short = max(1.5, rng.uniform(0.2, 0.5) * tumor.radius / spacing_mm)
    inner = depth + rng.uniform(0, 0.2) * tumor.radius * smooth_noise(rng, depth.shape, short)
    marked = inner > tumor.radius - rim
    if rng.random() < 0.4:  # septa through the core
        marked |= np.abs(smooth_noise(rng, depth.shape, 1.5 * short)) < rng.uniform(0.05, 0.25)
    return marked


def _around(grid: np.ndarray, tumor: Tumor, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Find the box that a tumor and its edema cannot leave."""
    reach = (tumor.radius * 1.3 + tumor.edema * 2) * float(tumor.axes.max()) + 6
    near = [np.abs(np.moveaxis(grid[axis], axis, 0)[:, 0, 0] - tumor.center[axis]) <= reach
            for axis in range(3)]
    return tuple(slice(int(n.argmax()), int(len(n) - n[::-1].argmax())) if n.any() else slice(0, 0)
                 for n in near)
