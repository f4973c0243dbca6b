"""The varied kind of phantom: as different from each other as tumors, patients and scanners are.

A network that learns from these meets what real patients have and the plain kind lacks: solid,
patchy and non-enhancing tumors, edema in fingers, hemorrhage, satellites, aged brains, careless
skull-stripping, thick slices, and the shading of the coil. Domain randomization is the idea of
SynthSeg (Billot et al. 2023, doi:10.1016/j.media.2023.102789). The mean contrasts and their spread
were set after a look at twenty development patients (docs/zero_shot.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from ..basics.constants import BRATS_SHAPE, ED, ET, NCR
from ..data.cases import Patient
from .anatomy import (
    TEMPLATE_CENTER_MM,
    brats_affine,
    column,
    displaced,
    rotation_and_scale,
    size_rank,
    template,
)
from .noise import smooth_noise

VERSION = 103  # raised whenever the same seed gives other voxels
BOX_MM = (160, 200, 155)  # around the brain; the rest of the scan is empty
TISSUES = ("CSF", "GM", "WM", "necrosis", "non-enhancing", "edema", "ET")
CSF, GM, WM, NECROSIS, SOLID, EDEMA, ENHANCING = range(7)
# Mean intensity of each tissue; white matter on T1 is 1. Rows: FLAIR, T1, T1CE, T2.
CONTRAST = np.array([[0.30, 0.74, 0.62, 0.86, 0.98, 0.90, 0.92],
                     [0.32, 0.83, 1.00, 0.73, 0.84, 0.88, 0.90],
                     [0.34, 0.83, 1.00, 0.70, 0.82, 0.86, 1.27],
                     [1.35, 0.68, 0.52, 1.12, 0.94, 0.82, 0.84]], np.float32)
# How far a patient's own means deviate, log-normal.
SPREAD = np.array([[0.20, 0.08, 0.08, 0.26, 0.14, 0.12, 0.13],
                   [0.20, 0.09, 0.05, 0.14, 0.10, 0.07, 0.09],
                   [0.20, 0.09, 0.05, 0.13, 0.10, 0.07, 0.16],
                   [0.20, 0.08, 0.10, 0.20, 0.16, 0.14, 0.16]], np.float32)
# How a tissue's water, which varies within it, changes each modality; and the largest strength.
WATER = np.array([1.0, -0.45, -0.35, 0.9], np.float32)
MOTTLING = 0.20
KINDS = {"ring": 0.54, "solid": 0.13, "non-enhancing": 0.15, "patchy": 0.18}
VENTRICLES_MM, VENTRICLES_REACH_MM = (0, 0, 9), 32


@dataclass(frozen=True)
class Tumor:
    """The plan of one tumor; lengths in mm, places from the middle of the brain."""

    kind: str  # of KINDS
    center: np.ndarray
    radius: float  # of the core
    rim: float  # thickness of the enhancing rim
    edema: float  # how far edema reaches along white matter
    axes: np.ndarray  # stretch of the core along each axis
    push: float  # displacement of the tissue at its edge


class Tissue(NamedTuple):
    """A healthy brain; each map is (X, Y, Z)."""

    gray: np.ndarray  # fractions, float32
    white: np.ndarray
    brain: np.ndarray  # bool: what skull-stripping has left
    outside: np.ndarray  # bool: what it should have removed


def make_varied(seed: int, index: int, spacing_mm: float = 2.0) -> Patient:
    """Make patient number `index` of the varied cohort `seed`, on BraTS's grid at a voxel size."""
    rng = np.random.default_rng([seed, index, VERSION])
    tumors = plan(rng, size_rank(seed, index))
    grid = box_coordinates(spacing_mm)
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


def plan(rng: np.random.Generator, rank: float) -> list[Tumor]:
    """Draw a main tumor of the size that `rank` gives it, from 0 to 1, and its satellites."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    size = np.sqrt(2) * torch.erfinv(torch.tensor(2 * np.clip(rank, 0.01, 0.99) - 1)).item()
    radius = float(np.clip(16.5 * np.exp(0.45 * size), 5, 36))
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


def box_coordinates(spacing_mm: float) -> np.ndarray:
    """Give each voxel's place in mm from the middle of the brain: (3, X, Y, Z), right, front, up."""
    shape = [round(mm / spacing_mm) for mm in BOX_MM]
    x, y, z = (((np.arange(n, dtype=np.float32) - (n - 1) / 2) * spacing_mm) for n in shape)
    return np.stack(np.meshgrid(-x, -y, z, indexing="ij"))


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
    shrunk = np.clip(rng.uniform(-0.2, 0.5) + 0.25 * smooth_noise(rng, shape, 14 / spacing_mm), 0, 1)
    shell = np.clip(3 - 3.3 * ndimage.gaussian_filter(inside.astype(np.float32), 5 / spacing_mm), 0, 1)
    sulci = shell * np.clip(smooth_noise(rng, shape, rng.uniform(4, 7) / spacing_mm)
                            - rng.uniform(0, 1.2), 0, 1)
    kept = (1 - 0.8 * shrunk * (gray < 0.75)) * (1 - sulci) * inside  # sulci of the old are wide
    return Tissue(gray * kept, white * (1 - sulci) * inside, inside, inside & (brain < 0.5))


def _sample_template(source: np.ndarray) -> np.ndarray:
    """Sample the template's maps at places in mm, (3, X, Y, Z)."""
    maps, affine = template()
    origin = np.array(TEMPLATE_CENTER_MM, np.float32) - affine[:3, 3].astype(np.float32)
    voxels = (source + origin[:, None, None, None])[::-1]  # grid_sample's order: last axis first
    size = np.array(maps.shape[:0:-1], np.float32)[:, None, None, None]
    grid = torch.from_numpy(((2 * voxels + 1) / size - 1).astype(np.float32)).movedim(0, -1)
    return F.grid_sample(torch.from_numpy(maps)[None], grid[None], align_corners=False)[0].numpy()


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
    fingers = 1 + rng.uniform(0, 0.5) * smooth_noise(rng, brain.shape, rng.uniform(7, 15) / spacing_mm)
    reach = tumor.radius + tumor.edema * (rng.uniform(0, 0.35) + 1.2 * along) * fingers
    fluid = ndimage.gaussian_filter(np.clip(brain - gray - white, 0, 1), 2 / spacing_mm) > 0.55
    inner[((depth < reach + smooth_noise(rng, brain.shape, 8 / spacing_mm)) & brain & ~fluid) | core] = ED
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
    """Mark where the core takes up contrast agent; depth: mm from its center, at most the radius."""
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


def tissue_shares(rng: np.random.Generator, tissue: Tissue, labels: np.ndarray,
                  solid: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Compute the fraction of each of TISSUES in each voxel: (7, X, Y, Z) float32."""
    gray, white, brain, _ = tissue
    soft = rng.uniform(0.6, 2.0) / spacing_mm
    ncr, edema, et = (ndimage.gaussian_filter((labels == n).astype(np.float32), soft)
                      for n in (NCR, ED, ET))
    depth = ndimage.gaussian_filter((labels > 0).astype(np.float32), 4 / spacing_mm)
    weakest = rng.uniform(0.55, 1)  # of edema at its edge
    edema *= np.clip(weakest + (1 - weakest) * (2 * depth - 0.6), 0, 1.1)
    healthy = np.clip(1 - ncr - edema - et, 0, 1)
    fluid = np.clip(brain - gray - white, 0, 1)
    # White matter hyperintensities of age look like edema and have no label.
    caps = ndimage.gaussian_filter(fluid, 4 / spacing_mm)
    likely = (smooth_noise(rng, brain.shape, 7 / spacing_mm) + rng.uniform(1.5, 4) * caps
              - rng.uniform(1.1, 3.2))
    spots = (rng.uniform(0.3, 0.9) * np.clip(2 * likely, 0, 1) * (labels == 0)
             * (white > rng.uniform(0.2, 0.6)))
    edema = edema + healthy * spots
    healthy = healthy * (1 - spots)
    open_share = rng.uniform(0, 0.35)  # of what the template assigns to no tissue
    fluid = np.clip(fluid - open_share, 0, 1) / (1 - open_share)
    healthy = healthy / np.maximum(fluid + gray + white, 1e-3)
    return np.stack([healthy * fluid, healthy * gray, healthy * white, ncr * (1 - solid),
                     ncr * solid, edema, et]).astype(np.float32)


def contrasts(rng: np.random.Generator) -> np.ndarray:
    """Draw a patient's mean of each tissue in each modality: (4, 7)."""
    own = rng.standard_normal(CONTRAST.shape) * SPREAD
    own[:, NECROSIS:] += rng.standard_normal((4, 1)) * 0.05  # the tumor as a whole
    table = CONTRAST * np.exp(own)
    if rng.random() < 0.12:  # a cyst: fluid that FLAIR suppresses
        table[:, NECROSIS] = table[:, CSF] * rng.uniform(0.9, 1.8, 4)
    table[1:3, EDEMA] = np.minimum(table[1:3, EDEMA], 0.97 * table[1:3, WM])  # water darkens T1
    # Experts outline what stands out.
    visible = rng.uniform(1.04, 1.25)
    table[0, EDEMA] = max(table[0, EDEMA], table[0, 1:3].max() * visible)
    table[0, SOLID] = max(table[0, SOLID], table[0, 1:3].max() * rng.uniform(0.98, 1.2))
    table[2, ENHANCING] = max(table[2, ENHANCING], table[1, ENHANCING] + rng.uniform(0.1, 0.4),
                              table[2, SOLID] + rng.uniform(0.12, 0.4))
    return table.astype(np.float32)


def scan(rng: np.random.Generator, grid: np.ndarray, shares: np.ndarray, tissue: Tissue,
         labels: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Compute the four modalities from the tissues, (4, X, Y, Z) int16, 0 outside the brain."""
    shape, brain = labels.shape, tissue.brain
    images = np.tensordot(contrasts(rng), shares, 1)
    _texture(rng, images, shares, spacing_mm)
    _leftovers(rng, images, tissue.outside & (labels == 0), spacing_mm)
    _enhance_normal(rng, grid, images, tissue, labels, spacing_mm)
    if rng.random() < 0.15:  # blood is bright on T1, with and without contrast agent
        blood = np.clip(smooth_noise(rng, shape, 6 / spacing_mm) - rng.uniform(0.2, 1), 0, 1)
        blood *= shares[NECROSIS] + 0.5 * shares[SOLID]
        images[1:3] *= 1 + rng.uniform(0.3, 0.9) * blood
    coil = smooth_noise(rng, shape, 70 / spacing_mm)
    strength = rng.uniform(0, 0.18)
    for n, image in enumerate(images):
        images[n] = _scanner(rng, image, spacing_mm, strength * coil)
    mask = np.repeat(brain[None], 4, 0)
    for n in np.flatnonzero(rng.random(4) < 0.04):  # one modality ends earlier than the others
        cut = round(rng.uniform(4, 14) / spacing_mm)
        mask[n][..., :cut + int(np.argmax(brain.any((0, 1))))] = False
    return np.where(mask, np.clip(np.rint(images), 1, 32767), 0).astype(np.int16)


def _texture(rng: np.random.Generator, images: np.ndarray, shares: np.ndarray,
             spacing_mm: float) -> None:
    """Make tissues uneven: by their water, which all modalities see, and by what only one sees."""
    tumor = shares[NECROSIS:].sum(0)
    shape = tumor.shape
    fine, coarse = (smooth_noise(rng, shape, rng.uniform(*limits) / spacing_mm)
                    for limits in ((3, 6), (7, 16)))
    water = (rng.uniform(0.3, 1) * fine + coarse) * tumor * rng.uniform(0.15, 1) * MOTTLING
    healthy = rng.uniform(0.01, 0.08) * smooth_noise(rng, shape, rng.uniform(6, 25) / spacing_mm)
    uptake = rng.uniform(0.03, 0.28) * smooth_noise(rng, shape, rng.uniform(3, 8) / spacing_mm)
    for n, image in enumerate(images):
        own = rng.uniform(0.02, 0.10) * smooth_noise(rng, shape, rng.uniform(3, 9) / spacing_mm)
        log = WATER[n] * rng.uniform(0.5, 1.3) * (water + healthy * (1 - tumor)) + own
        image *= np.exp(log + uptake * shares[ENHANCING] if n == 2 else log)


def _leftovers(rng: np.random.Generator, images: np.ndarray, outside: np.ndarray,
               spacing_mm: float) -> None:
    """Give what skull-stripping left of dura, fat and muscle any intensity."""
    plain = rng.uniform(0.3, 1.2)
    levels = (rng.uniform(0.2, 0.9), plain, plain + rng.uniform(0, 2), rng.uniform(0.2, 1.3))
    uneven = np.exp(0.4 * smooth_noise(rng, outside.shape, rng.uniform(4, 10) / spacing_mm))
    for image, level in zip(images, levels, strict=True):
        image[outside] = level * uneven[outside]


def _enhance_normal(rng: np.random.Generator, grid: np.ndarray, images: np.ndarray, tissue: Tissue,
                    labels: np.ndarray, spacing_mm: float) -> None:
    """Add what takes up gadolinium and is no tumor: vessels, plexus, sinuses, falx and dura."""
    gray, white, brain, _ = tissue
    shape, healthy = labels.shape, labels == 0
    fluid = np.clip(brain - gray - white, 0, 1) * healthy
    vessels = np.clip(smooth_noise(rng, shape, rng.uniform(3, 6) / spacing_mm) - 0.9, 0, 1) * fluid
    depth = ndimage.gaussian_filter(brain.astype(np.float32), 5 / spacing_mm)
    shell = np.clip(rng.uniform(1.9, 2.8) - 3.2 * depth, 0, 1) * brain * healthy
    uneven = np.clip(0.6 + 0.5 * smooth_noise(rng, shape, 8 / spacing_mm), 0, 1)
    away = grid[0] + rng.uniform(-3, 3) + 2 * smooth_noise(rng, shape, 30 / spacing_mm)
    falx = np.exp(-(away / rng.uniform(1.5, 4))**2) * fluid
    behind = np.clip((grid[2] - grid[1]) / 30, 0, 1)  # above and behind the brain
    sinus = np.exp(-(away / rng.uniform(2, 8))**2) * shell * behind
    base = shell * np.clip(-grid[2] / 15 - 1, 0, 1) * uneven
    patches = np.clip(smooth_noise(rng, shape, rng.uniform(8, 20) / spacing_mm), 0, 1) * shell
    strength = rng.uniform(0, 1, 4) * (3, 2.5, 2.5, 2 * rng.random())
    images[2] += (rng.uniform(0.5, 3) * vessels + strength[0] * sinus * uneven
                  + strength[1] * falx * uneven * healthy + strength[2] * base
                  + strength[3] * patches)
    cortex = np.exp(-(away / rng.uniform(6, 16))**2) * gray * healthy
    images[0] *= 1 + rng.uniform(0, 0.25) * cortex * uneven
    if rng.random() < 0.25:  # fluid that flows is bright on FLAIR here and there
        images[0] += rng.uniform(0.1, 0.5) * fluid * np.clip(
            smooth_noise(rng, shape, 12 / spacing_mm), 0, 1)


def _scanner(rng: np.random.Generator, image: np.ndarray, spacing_mm: float,
             shading: np.ndarray) -> np.ndarray:
    """Blur, shift, shade and add noise to one modality, in the scanner's own units."""
    blur = rng.uniform(0, 1.0, 3)
    if rng.random() < 0.45:  # thick slices
        blur[rng.choice(3, p=[0.15, 0.15, 0.7])] = rng.uniform(1, 2.4)
    image = ndimage.gaussian_filter(image, blur / spacing_mm, truncate=3)
    if rng.random() < 0.4:  # registered not quite exactly
        for axis, shift in enumerate(rng.uniform(-1, 1, 3) / spacing_mm):
            share = np.float32(abs(shift))
            image = (1 - share) * image + share * np.roll(image, int(np.sign(shift)), axis)
    shape = image.shape
    own = rng.uniform(0, 0.12) * smooth_noise(rng, shape, 70 / spacing_mm)
    image = np.maximum(image, 0)**rng.uniform(0.8, 1.25) * np.exp(np.clip(shading + own, -0.4, 0.4))
    noise = np.float32(rng.uniform(0.003, 0.035))
    real, imaginary = (noise * rng.standard_normal(shape, np.float32) for _ in range(2))
    return np.hypot(image + real, imaginary) * np.float32(np.exp(rng.uniform(*np.log((400, 3000)))))


def _on_brats_grid(arrays: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Put arrays of the box, (C, X, Y, Z), in the middle of BraTS's grid."""
    whole = [round(mm / spacing_mm) for mm in BRATS_SHAPE]
    full = np.zeros((len(arrays), *whole), arrays.dtype)
    first = [(n - s) // 2 for n, s in zip(whole, arrays.shape[1:], strict=True)]
    full[(slice(None), *(slice(f, f + s) for f, s in zip(first, arrays.shape[1:], strict=True)))] = arrays
    return full
