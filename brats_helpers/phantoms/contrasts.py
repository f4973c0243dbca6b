"""The four modalities of a phantom, computed from its tissues and its tumor labels."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..basics.constants import ED, ET, NCR
from .kinds import NARROW, PhantomVariation, TissueVariation, draw
from .noise import smooth_noise

BIAS_MM = 70  # the length over which the shading changes
BIAS_LIMIT = 1.4  # deviations that the shading does not exceed
SCALE = (400, 3000)  # white matter's 1.0 in the scanner's own units


def compose(rng: np.random.Generator, tissue: np.ndarray, labels: np.ndarray, spacing_mm: float,
            variation: PhantomVariation = NARROW) -> np.ndarray:
    """Compute a patient's modalities, (4, X, Y, Z) int16, 0 outside the brain.

    tissue: gray matter, white matter and brain, (3, X, Y, Z); labels (X, Y, Z), 0 to 3.
    """
    tissues, scanner = variation.tissue, variation.scanner
    shares = _shares(rng, tissue, labels, spacing_mm, tissues)
    table = _contrasts(rng, tissues).astype(np.float32)
    if tissues.tumor_mottling[1]:
        images = np.stack([np.tensordot(means, _mottled(rng, shares, spacing_mm, tissues), 1)
                           for means in table])
    else:
        images = np.tensordot(table, shares, 1)
    images[2] += draw(rng, tissues.vessels) * _vessels(rng, tissue, labels, spacing_mm)
    if tissues.sinuses[1]:
        sinuses, cortex = _midline(rng, tissue, labels, spacing_mm)
        images[2] += draw(rng, tissues.sinuses) * sinuses
        images[0] *= 1 + draw(rng, tissues.midline_cortex) * cortex
    shape = labels.shape
    for n, image in enumerate(images):
        image *= 1 + draw(rng, scanner.texture) * smooth_noise(rng, shape, 4 / spacing_mm)
        if scanner.blur_mm:
            blur = rng.uniform(0, scanner.blur_mm, 3) * (rng.random(3) < 0.6)
            image[:] = ndimage.gaussian_filter(image, blur / spacing_mm)
        shading = smooth_noise(rng, shape, BIAS_MM / spacing_mm)
        strength = draw(rng, scanner.bias[n])
        image *= np.exp(strength * BIAS_LIMIT * np.tanh(shading / BIAS_LIMIT))
        noise = draw(rng, scanner.noise)
        real, imaginary = (noise * rng.standard_normal(shape, np.float32) for _ in range(2))
        images[n] = np.hypot(image + real, imaginary) * np.exp(rng.uniform(*np.log(SCALE)))
    return np.where(tissue[2] > 0.5, np.clip(np.rint(images), 1, 32767), 0).astype(np.int16)


def _contrasts(rng: np.random.Generator, variation: TissueVariation) -> np.ndarray:
    """Draw a patient's own mean of each tissue in each modality, (4, 6)."""
    deviations = rng.standard_normal(variation.contrast.shape)
    table = variation.contrast * np.exp(variation.contrast_spread * deviations)
    if variation.cyst_probability == 1 or rng.random() < variation.cyst_probability:
        table[0, 3] *= rng.uniform(*variation.cyst_factor)  # on FLAIR, from fluid to almost edema
    if variation.distinct_tumor:
        table[0, 4:] = np.maximum(table[0, 4:], max(table[0, 1:3]) * rng.uniform(1.10, 1.25))
        table[2, 5] = max(table[2, 5], table[1, 5] + rng.uniform(0.12, 0.4),
                          table[2, 2] * rng.uniform(0.95, 1.1))
    return table


def _mottled(rng: np.random.Generator, shares: np.ndarray, spacing_mm: float,
             variation: TissueVariation) -> np.ndarray:
    """Make each tissue's share uneven; drawn anew for every modality."""
    uneven = np.empty_like(shares)
    for k, share in enumerate(shares):
        limits, lengths_mm = variation.tumor_mottling, (3, 9)
        if k < 3:
            limits, lengths_mm = variation.healthy_mottling, (6, 25)
        strength = draw(rng, limits)
        noise = smooth_noise(rng, share.shape, draw(rng, lengths_mm) / spacing_mm)
        uneven[k] = share * np.exp(strength * noise)
    return uneven


def _shares(rng: np.random.Generator, tissue: np.ndarray, labels: np.ndarray, spacing_mm: float,
            variation: TissueVariation) -> np.ndarray:
    """Compute the fractions of CSF, GM, WM, NCR, ED and ET: (6, X, Y, Z), sum 1 in the brain."""
    gray, white, brain = tissue
    soft = draw(rng, variation.boundary_mm) / spacing_mm
    partial = [ndimage.gaussian_filter((labels == n).astype(np.float32), soft)
               for n in (NCR, ED, ET)]
    depth = ndimage.distance_transform_edt(labels > 0, sampling=spacing_mm)
    edge, waves = variation.edema_edge_strength, smooth_noise(rng, brain.shape, 8 / spacing_mm)
    partial[1] *= (edge + (1 - edge) * np.clip(depth / variation.edema_full_mm, 0, 1)
                   + variation.edema_waviness * waves)
    spots = _spots(rng, tissue, labels, spacing_mm, variation)
    healthy = np.clip(1 - sum(partial), 0, 1)
    partial[1] = partial[1] + healthy * spots  # these look like edema, but have no label
    healthy = healthy * (1 - spots)
    unassigned = draw(rng, variation.unassigned_tissue)
    fluid = np.clip(brain - gray - white - unassigned, 0, 1) / (1 - unassigned)
    total = np.maximum(fluid + gray + white, 1e-3)
    return np.stack([*(healthy * part / total for part in (fluid, gray, white)), *partial])


def _fluid(tissue: np.ndarray) -> np.ndarray:
    return np.clip(tissue[2] - tissue[0] - tissue[1], 0, 1)


def _spots(rng: np.random.Generator, tissue: np.ndarray, labels: np.ndarray, spacing_mm: float,
           variation: TissueVariation) -> np.ndarray:
    """Make white matter hyperintensities of age, (X, Y, Z) in [0, 1): bright on FLAIR and T2."""
    caps = ndimage.gaussian_filter(_fluid(tissue), 4 / spacing_mm)
    noise = smooth_noise(rng, labels.shape, 7 / spacing_mm)
    likely = (noise + draw(rng, variation.spots_near_fluid) * caps
              - draw(rng, variation.spots_rarity))
    strength = draw(rng, variation.spots_strength) * np.clip(2 * likely, 0, 1)
    return strength * (tissue[1] > draw(rng, variation.spots_least_white)) * (labels == 0)


def _vessels(rng: np.random.Generator, tissue: np.ndarray, labels: np.ndarray,
             spacing_mm: float) -> np.ndarray:
    """Make vessels and choroid plexus, which take up gadolinium as tumors do: (X, Y, Z), 0 to 1."""
    noise = smooth_noise(rng, labels.shape, 5 / spacing_mm)
    return np.clip(noise - 0.9, 0, 1) * _fluid(tissue) * (labels == 0)


def _midline(rng: np.random.Generator, tissue: np.ndarray, labels: np.ndarray,
             spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Make what lies between the halves of the brain, two arrays (X, Y, Z) from 0 to 1.

    Sinuses and falx take up gadolinium without being tumor. The cortex beside them is brighter on
    FLAIR than elsewhere.
    """
    shape, healthy = labels.shape, labels == 0
    across = (np.arange(shape[0]) - (shape[0] - 1) / 2) * spacing_mm - rng.uniform(-3, 3)
    away = across[:, None, None] + 2 * smooth_noise(rng, shape, 30 / spacing_mm)
    outer = ndimage.distance_transform_edt(tissue[2], sampling=spacing_mm) < draw(rng, (3, 8))
    uneven = np.clip(0.6 + 0.5 * smooth_noise(rng, shape, 8 / spacing_mm), 0, 1)
    sinuses = (np.exp(-((away / draw(rng, (1.5, 4))) ** 2))
               * np.clip(_fluid(tissue) + outer, 0, 1) * uneven * healthy)
    uneven = np.clip(0.5 + smooth_noise(rng, shape, 25 / spacing_mm), 0, 1)
    cortex = np.exp(-((away / draw(rng, (6, 16))) ** 2)) * tissue[0] * uneven * healthy
    return sinuses.astype(np.float32), cortex.astype(np.float32)
