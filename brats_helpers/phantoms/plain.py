"""The plain kind of phantom: one scanner, one look, and tumors that a small network soon learns.

Tumors grow in the deformed template, and each compartment looks in each modality as the BraTS
annotation protocol describes it (Baid et al. 2021, arXiv:2107.02314, section 2.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.special import ndtri

from ..basics.constants import ED, ET, NCR
from ..data.cases import Patient
from ..data.preprocessing import largest_component, padded_box
from .anatomy import (
    Tumor,
    brats_affine,
    column,
    coordinates_mm,
    displaced,
    rotation_and_scale,
    sample_template,
    size_rank,
)
from .noise import Noise, smooth_noise

VERSION = 2  # raised whenever the same seed gives other voxels
# Mean intensity of each tissue in each modality; white matter on T1 is 1.
#                     CSF   GM    WM    NCR   ED    ET
CONTRAST = np.array([[0.22, 0.73, 0.54, 0.40, 0.86, 0.66],  # FLAIR: fluid dark, edema bright
                     [0.25, 0.68, 1.00, 0.42, 0.54, 0.66],  # T1: tumor, edema below WM
                     [0.27, 0.70, 1.00, 0.36, 0.54, 1.55],  # T1CE: ET takes up gadolinium
                     [1.05, 0.60, 0.42, 1.00, 0.94, 0.68]])  # T2: water is bright
CONTRAST_SPREAD = 0.05  # of a patient's own means, log-normal
SHADING = (0.16, 0.12, 0.12, 0.14)  # of each modality, log-normal
SHADING_MM, SHADING_LIMIT = 70, 1.4  # the length over which it changes; deviations at most
NOISE, TEXTURE = 0.025, 0.05  # Rician, relative to white matter; of the tissue itself
SCALE = (400, 3000)  # white matter's 1.0 in the scanner's own units
REACH_MM = 17  # the widest filter below reaches 16 mm; what lies farther outside has no effect


def make_plain(seed: int, index: int, spacing_mm: float = 2.0) -> Patient:
    """Make patient number `index` of the plain cohort `seed`; equal numbers give equal voxels."""
    rng = np.random.default_rng([seed, index, VERSION])
    tumors = plan(rng, size_rank(seed, index))
    place = coordinates_mm(spacing_mm)
    tissue = anatomy(rng, place, tumors, spacing_mm)
    shape, box = tissue.shape[1:], padded_box(tissue[2] > 0, math.ceil(REACH_MM / spacing_mm))
    place, tissue = (array[(slice(None), *box)] for array in (place, tissue))
    noise = Noise(rng, shape, box)
    labels = np.zeros(tissue.shape[1:], np.uint8)
    for tumor in tumors:
        grown = grow(noise, place, tumor, tissue, spacing_mm)
        labels = np.where((labels == 0) | np.isin(grown, (NCR, ET)), grown, labels)
    images, reference = np.zeros((4, *shape), np.int16), np.zeros(shape, np.uint8)
    images[(slice(None), *box)] = scan(noise, tissue, labels, spacing_mm)
    reference[box] = labels
    return Patient(f"BraTS2021_{index:05d}", images, reference, brats_affine(spacing_mm))


def plan(rng: np.random.Generator, rank: float) -> list[Tumor]:
    """Draw one or two tumors: most with a rim around necrosis, some without ET, some of ET only.

    `rank` is the first tumor's place in the distribution of sizes, from 0 (smallest) to 1.
    """
    kind = str(rng.choice(["ring", "no ET", "ET only"], p=(0.82, 0.09, 0.09)))
    tumors = []
    for n in range(1 + (rng.random() < 0.14)):
        size = rng.random() if n else rank
        radius = float(np.clip(13 * np.exp(0.5 * ndtri(size)), 4.5, 27)) * (0.65 if n else 1)
        radius = min(radius, 14.0) if kind == "ET only" else max(
            radius, 12.0 if kind == "no ET" else 4.5)
        ring = rng.uniform(0.20, 0.38) * radius + 1.8
        side = (-1) ** n * rng.choice([-1, 1])
        across, forward, up = (rng.uniform(*mm) for mm in ((18, 42), (-55, 45), (-5, 42)))
        tumors.append(Tumor(
            kind=kind, center=np.array([side * across, forward, up]), radius=radius,
            rim=float({"ring": ring, "no ET": 0.0, "ET only": np.inf}[kind]),  # inf: all is ET
            edema=float(rng.uniform(2, 22)), axes=rng.uniform(0.8, 1.25, 3),
            push=float(rng.uniform(0.1, 0.3) * radius)))
    return tumors


def anatomy(rng: np.random.Generator, place: np.ndarray, tumors: Sequence[Tumor],
            spacing_mm: float) -> np.ndarray:
    """Make one patient's gray and white matter (fractions) and brain (0 or 1): (3, X, Y, Z)."""
    source = np.tensordot(rotation_and_scale(rng), place, 1)
    for axis in range(3):
        shift = rng.uniform(-3, 3)
        source[axis] += shift + 3.5 * smooth_noise(rng, place.shape[1:], 30 / spacing_mm)
    gray, white, brain = sample_template(displaced(source, place, tumors))
    brain = ndimage.binary_fill_holes(brain > 0.5).astype(np.float32)
    return np.stack([gray * brain, white * brain, brain])


def grow(noise: Noise, place: np.ndarray, tumor: Tumor, tissue: np.ndarray,
         spacing_mm: float) -> np.ndarray:
    """Grow one tumor: labels (X, Y, Z) uint8, a core inside edema that follows white matter.

    place is (3, X, Y, Z), in mm from the middle of the brain; tissue is from `anatomy`.
    """
    gray, white, brain = tissue
    stretched = (place - column(tumor.center)) / column(tumor.axes)
    depth = np.sqrt((stretched**2).sum(0))  # mm from the center; noise makes it irregular
    for scale, share in ((1.0, 0.16), (0.45, 0.09)):
        length = max(2, scale * tumor.radius / spacing_mm)
        depth += share * tumor.radius * noise.smooth(length)
    inside = brain > 0.5
    core = largest_component((depth < tumor.radius) & inside)
    rim = tumor.rim
    if np.isfinite(rim):
        rim *= 1 + 0.15 * noise.smooth(10 / spacing_mm)
    along = ndimage.gaussian_filter(white, 3 / spacing_mm)
    reach = tumor.radius + tumor.edema * (0.25 + 1.0 * along)
    reach = reach + 1.5 * noise.smooth(8 / spacing_mm)
    fluid = ndimage.gaussian_filter(brain - gray - white, 2 / spacing_mm) > 0.6
    edema = largest_component(((depth < reach) & inside & ~fluid) | core)  # it spares ventricles
    labels = np.where(edema, ED, 0).astype(np.uint8)
    labels[core] = ET
    labels[core & (depth < tumor.radius - rim)] = NCR
    return labels


def scan(noise: Noise, tissue: np.ndarray, labels: np.ndarray,
         spacing_mm: float) -> np.ndarray:
    """Compute a patient's modalities, (4, X, Y, Z) int16, 0 outside the brain.

    tissue is gray matter, white matter and brain, (3, X, Y, Z); labels are (X, Y, Z), 0 to 3.
    """
    shares = _shares(noise, tissue, labels, spacing_mm)
    table = CONTRAST * np.exp(CONTRAST_SPREAD * noise.rng.standard_normal(CONTRAST.shape))
    table[0, 3] *= noise.rng.uniform(0.5, 1.5)  # necrosis on FLAIR, from fluid to almost edema
    images = np.tensordot(table.astype(np.float32), shares, 1)
    fluid = np.clip(tissue[2] - tissue[0] - tissue[1], 0, 1)
    # Vessels and choroid plexus take up gadolinium as tumors do.
    vessels = np.clip(noise.smooth(5 / spacing_mm) - 0.9, 0, 1) * fluid
    images[2] += 0.8 * (vessels * (labels == 0))
    for n, image in enumerate(images):
        image *= 1 + TEXTURE * noise.smooth(4 / spacing_mm)
        shading = noise.smooth(SHADING_MM / spacing_mm)
        image *= np.exp(SHADING[n] * SHADING_LIMIT * np.tanh(shading / SHADING_LIMIT))
        real, imaginary = (NOISE * noise.white() for _ in range(2))
        images[n] = np.hypot(image + real, imaginary) * np.exp(noise.rng.uniform(*np.log(SCALE)))
    return np.where(tissue[2] > 0.5, np.clip(np.rint(images), 1, 32767), 0).astype(np.int16)


def _shares(noise: Noise, tissue: np.ndarray, labels: np.ndarray,
            spacing_mm: float) -> np.ndarray:
    """Compute the fractions of CSF, GM, WM, NCR, ED and ET: (6, X, Y, Z), sum 1 in the brain."""
    gray, white, brain = tissue
    partial = [ndimage.gaussian_filter((labels == n).astype(np.float32), 0.7 / spacing_mm)
               for n in (NCR, ED, ET)]
    depth = _depth_mm(labels > 0, spacing_mm)
    waves = noise.smooth(8 / spacing_mm)
    edge = 0.70  # edema is weaker at its edge
    partial[1] *= edge + (1 - edge) * np.clip(depth / 8, 0, 1) + 0.08 * waves
    # White matter hyperintensities of age look like edema and have no label.
    caps = ndimage.gaussian_filter(np.clip(brain - gray - white, 0, 1), 4 / spacing_mm)
    likely = noise.smooth(7 / spacing_mm) + 2.5 * caps - noise.rng.uniform(1.9, 3.0)
    spots = 0.7 * np.clip(2 * likely, 0, 1) * (white > 0.6) * (labels == 0)
    healthy = np.clip(1 - sum(partial), 0, 1)
    partial[1] = partial[1] + healthy * spots
    healthy = healthy * (1 - spots)
    fluid = np.clip(brain - gray - white, 0, 1)
    total = np.maximum(fluid + gray + white, 1e-3)
    return np.stack([*(healthy * part / total for part in (fluid, gray, white)), *partial])


def _depth_mm(mask: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Measure each voxel's depth in a mask, in mm; its padded box holds the nearest outside."""
    depth = np.zeros(mask.shape)
    if mask.any():
        box = padded_box(mask, 1)
        depth[box] = ndimage.distance_transform_edt(mask[box], sampling=spacing_mm)
    return depth
