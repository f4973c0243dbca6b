"""The varied kind of phantom: as different from each other as tumors, patients and scanners are.

A network that learns from these meets what real patients have and the plain kind lacks or rarely
has: patchy, solid and non-enhancing tumors, edema in fingers, hemorrhage, satellites, aged brains,
careless skull-stripping, and thick slices. The domain randomization follows SynthSeg (Billot et al.
2023, doi:10.1016/j.media.2023.102789). The mean contrasts and their spread were set after a look at
twenty development patients (docs/zero_shot.md).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from ..basics.constants import BRATS_SHAPE, ET, NCR
from ..data.cases import Patient
from .anatomy import (
    TEMPLATE_CENTER_MM,
    Tissue,
    brats_affine,
    column,
    coordinates_mm,
    displaced,
    rotation_and_scale,
    size_rank,
    template,
)
from .appearance import scan, tissue_shares
from .noise import smooth_noise
from .tumors import Tumor, grow, plan

VERSION = 103  # raised whenever the same seed gives other voxels
BOX_MM = (160, 200, 155)  # around the brain; the rest of the scan is empty
VENTRICLES_MM, VENTRICLES_REACH_MM = (0, 0, 9), 32


def make_varied(seed: int, index: int, spacing_mm: float = 2.0) -> Patient:
    """Make patient number `index` of the varied cohort `seed`, on BraTS's grid at a voxel size."""
    rng = np.random.default_rng([seed, index, VERSION])
    tumors = plan(rng, size_rank(seed, index))
    grid = coordinates_mm(spacing_mm, BOX_MM)
    tissue = brain_of(rng, grid, tumors, spacing_mm)
    labels = np.zeros(tissue.brain.shape, np.uint8)
    solid = np.zeros(labels.shape, np.float32)  # how much of label NCR is tumor, not necrosis
    for tumor in tumors:
        grown, tumor_solid = grow(rng, grid, tumor, tissue, spacing_mm)
        new = (labels == 0) | np.isin(grown, (NCR, ET))
        labels, solid = np.where(new, grown, labels), np.where(new, tumor_solid, solid)
    shares = tissue_shares(rng, tissue, labels, solid, spacing_mm)
    images = scan(rng, grid, shares, tissue, labels, spacing_mm)
    return Patient(f"BraTS2021_{index:05d}", _on_brats_grid(images, spacing_mm),
                   _on_brats_grid(labels[None], spacing_mm)[0], brats_affine(spacing_mm))


def brain_of(rng: np.random.Generator, grid: np.ndarray, tumors: list[Tumor],
             spacing_mm: float) -> Tissue:
    """Deform the template for one patient, and strip the skull as carelessly as tools do."""
    shape = grid.shape[1:]
    source = np.tensordot(rotation_and_scale(rng), grid, 1)
    coarse, fine = rng.uniform(2, 5.5), rng.uniform(0, 1.6)
    for axis in range(3):
        source[axis] += (rng.uniform(-3, 3) + coarse * smooth_noise(rng, shape, 30 / spacing_mm)
                         + fine * smooth_noise(rng, shape, 11 / spacing_mm))
    away = grid - column(VENTRICLES_MM)
    source -= away * rng.uniform(-0.1, 0.6) * np.exp(-(away**2).sum(0) / VENTRICLES_REACH_MM**2)
    gray, white, brain = _sample_template(displaced(source, grid, tumors))
    # Skull-stripping is never exact: it cuts into the brain here and leaves tissue there.
    edge = ndimage.gaussian_filter(brain, rng.uniform(2, 4) / spacing_mm)
    edge += rng.uniform(0, 0.22) * smooth_noise(rng, shape, rng.uniform(10, 25) / spacing_mm)
    inside = edge > rng.uniform(0.35, 0.6)
    if rng.random() < 0.4:
        near = ndimage.gaussian_filter(brain, 7 / spacing_mm) > rng.uniform(0.12, 0.35)
        lumps = smooth_noise(rng, shape, rng.uniform(8, 25) / spacing_mm)
        inside |= near & (lumps > rng.uniform(0.3, 2))
    if rng.random() < 0.12:  # the field of view ends in the brain
        tilt = grid[2] + rng.uniform(-0.2, 0.2) * grid[1] + rng.uniform(-0.1, 0.1) * grid[0]
        inside &= (tilt < rng.uniform(45, 75)) if rng.random() < 0.5 else (
            tilt > rng.uniform(-70, -45))
    inside = ndimage.binary_fill_holes(inside)
    age = rng.uniform(-0.2, 0.5)
    shrunk = np.clip(age + 0.25 * smooth_noise(rng, shape, 14 / spacing_mm), 0, 1)
    depth = ndimage.gaussian_filter(inside.astype(np.float32), 5 / spacing_mm)
    shell = np.clip(3 - 3.3 * depth, 0, 1)
    sulci = shell * np.clip(smooth_noise(rng, shape, rng.uniform(4, 7) / spacing_mm)
                            - rng.uniform(0, 1.2), 0, 1)
    kept = (1 - 0.8 * shrunk * (gray < 0.75)) * (1 - sulci) * inside  # old brains have wide sulci
    return Tissue(gray * kept, white * (1 - sulci) * inside, inside, inside & (brain < 0.5))


def _sample_template(source: np.ndarray) -> np.ndarray:
    """Sample the template's maps at places in mm, (3, X, Y, Z)."""
    maps, affine = template()
    origin = np.array(TEMPLATE_CENTER_MM, np.float32) - affine[:3, 3].astype(np.float32)
    voxels = (source + origin[:, None, None, None])[::-1]  # grid_sample's order: last axis first
    size = np.array(maps.shape[:0:-1], np.float32)[:, None, None, None]
    grid = torch.from_numpy(((2 * voxels + 1) / size - 1).astype(np.float32)).movedim(0, -1)
    return F.grid_sample(_channels_last()[None], grid[None], align_corners=False)[0].numpy()


@lru_cache(maxsize=1)
def _channels_last() -> torch.Tensor:
    """Return the template's maps with one voxel's values side by side, so that one read has all."""
    return torch.from_numpy(template()[0]).movedim(0, -1).contiguous().movedim(-1, 0)


def _on_brats_grid(arrays: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Put arrays of the box, (C, X, Y, Z), in the middle of BraTS's grid."""
    whole = [round(mm / spacing_mm) for mm in BRATS_SHAPE]
    full = np.zeros((len(arrays), *whole), arrays.dtype)
    first = [(n - s) // 2 for n, s in zip(whole, arrays.shape[1:], strict=True)]
    box = (slice(f, f + s) for f, s in zip(first, arrays.shape[1:], strict=True))
    full[(slice(None), *box)] = arrays
    return full
