"""The look of the varied kind: from tissues to four modalities, with all that scanners add."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..basics.constants import ED, ET, NCR
from .anatomy import Tissue
from .noise import smooth_noise

TISSUES = ("CSF", "GM", "WM", "necrosis", "non-enhancing", "edema", "ET")
CSF, GM, WM, NECROSIS, SOLID, EDEMA, ENHANCING = range(len(TISSUES))
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
# How a tissue's water, which varies within it, changes each modality, and its largest strength.
WATER = np.array([1.0, -0.45, -0.35, 0.9], np.float32)
MOTTLING = 0.20


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
    """Make tissues uneven, by their water, which all modalities show, and in each one alone."""
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
    """Give arbitrary intensities to the dura, fat and muscle that skull-stripping left."""
    plain = rng.uniform(0.3, 1.2)
    levels = (rng.uniform(0.2, 0.9), plain, plain + rng.uniform(0, 2), rng.uniform(0.2, 1.3))
    uneven = np.exp(0.4 * smooth_noise(rng, outside.shape, rng.uniform(4, 10) / spacing_mm))
    for image, level in zip(images, levels, strict=True):
        image[outside] = level * uneven[outside]


def _enhance_normal(rng: np.random.Generator, grid: np.ndarray, images: np.ndarray, tissue: Tissue,
                    labels: np.ndarray, spacing_mm: float) -> None:
    """Add what takes up gadolinium but is no tumor: vessels, plexus, sinuses, falx and dura."""
    gray, white, brain, _ = tissue
    shape, healthy = labels.shape, labels == 0
    fluid = np.clip(brain - gray - white, 0, 1) * healthy
    vessels = np.clip(smooth_noise(rng, shape, rng.uniform(3, 6) / spacing_mm) - 0.9, 0, 1) * fluid
    depth = ndimage.gaussian_filter(brain.astype(np.float32), 5 / spacing_mm)
    shell = np.clip(rng.uniform(1.9, 2.8) - 3.2 * depth, 0, 1) * brain * healthy
    uneven = np.clip(0.6 + 0.5 * smooth_noise(rng, shape, 8 / spacing_mm), 0, 1)
    away = grid[0] + rng.uniform(-3, 3) + 2 * smooth_noise(rng, shape, 30 / spacing_mm)
    falx = np.exp(-(away / rng.uniform(1.5, 4))**2) * fluid
    behind = np.clip((grid[2] - grid[1]) / 30, 0, 1)  # toward the top and back of the head
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
