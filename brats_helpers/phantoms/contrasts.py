"""The four MRI contrasts of a phantom, computed from its tissues and its tumor labels."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..basics.constants import ED, ET, NCR
from .kinds import NARROW, Look, draw
from .noise import smooth_noise

BIAS_MM = 70                                          # over which the shading changes
BIAS_LIMIT = 1.4                                      # deviations that the shading does not exceed
SCALE = (400, 3000)                                   # what white matter's 1.0 becomes in the scanner's own units


def compose(rng: np.random.Generator, tissue: np.ndarray, labels: np.ndarray, spacing_mm: float,
            look: Look = NARROW) -> np.ndarray:
    """The four contrasts of a patient, (4, X, Y, Z) int16, 0 outside the brain."""
    brain = tissue[2] > 0.5
    shares = _shares(rng, tissue, labels, spacing_mm, look)
    table = _contrasts(rng, look).astype(np.float32)
    if look.mottled[0][1]:
        images = np.stack([np.tensordot(means, _mottled(rng, shares, spacing_mm, look), 1) for means in table])
    else:
        images = np.tensordot(table, shares, 1)
    images[2] += draw(rng, look.vessels) * _vessels(rng, tissue, labels, spacing_mm)
    if look.midline[0][1]:
        sinuses, cortex = _midline(rng, tissue, labels, spacing_mm)
        images[2] += draw(rng, look.midline[0]) * sinuses
        images[0] *= 1 + draw(rng, look.midline[1]) * cortex
    shape = brain.shape
    for n, image in enumerate(images):
        image *= 1 + draw(rng, look.texture) * smooth_noise(rng, shape, 4 / spacing_mm)
        if look.blur_mm:
            image[:] = ndimage.gaussian_filter(image, rng.uniform(0, look.blur_mm, 3) * (rng.random(3) < 0.6) / spacing_mm)
        shading = smooth_noise(rng, shape, BIAS_MM / spacing_mm)
        image *= np.exp(draw(rng, look.bias[n]) * BIAS_LIMIT * np.tanh(shading / BIAS_LIMIT))
        strength = draw(rng, look.noise)
        real, imaginary = (strength * rng.standard_normal(shape, np.float32) for _ in range(2))
        images[n] = np.hypot(image + real, imaginary) * np.exp(rng.uniform(*np.log(SCALE)))
    return np.where(brain, np.clip(np.rint(images), 1, 32767), 0).astype(np.int16)


def _contrasts(rng: np.random.Generator, look: Look) -> np.ndarray:
    """A patient's own mean of each tissue in each contrast, (4, 6)."""
    table = look.contrast * np.exp(look.spread * rng.standard_normal(look.contrast.shape))
    if look.cysts == 1 or rng.random() < look.cysts:
        table[0, 3] *= rng.uniform(*look.cyst)        # necrosis on FLAIR: dark as fluid to nearly as edema
    if look.distinct:
        table[0, 4:] = np.maximum(table[0, 4:], max(table[0, 1:3]) * rng.uniform(1.10, 1.25))
        table[2, 5] = max(table[2, 5], table[1, 5] + rng.uniform(0.12, 0.4), table[2, 2] * rng.uniform(0.95, 1.1))
    return table


def _mottled(rng: np.random.Generator, shares: np.ndarray, spacing_mm: float, look: Look) -> np.ndarray:
    """The shares with each tissue made uneven, anew for every contrast."""
    uneven = np.empty_like(shares)
    for k, share in enumerate(shares):
        limits, lengths = (look.mottled[1], (6, 25)) if k < 3 else (look.mottled[0], (3, 9))
        uneven[k] = share * np.exp(draw(rng, limits) * smooth_noise(rng, share.shape, draw(rng, lengths) / spacing_mm))
    return uneven


def _shares(rng: np.random.Generator, tissue: np.ndarray, labels: np.ndarray, spacing_mm: float, look: Look) -> np.ndarray:
    """How much of each voxel is CSF, GM, WM, NCR, ED and ET: (6, X, Y, Z), summing to 1 in the brain."""
    gray, white, brain = tissue
    soft = draw(rng, look.soft_mm)
    partial = [ndimage.gaussian_filter((labels == n).astype(np.float32), soft / spacing_mm) for n in (NCR, ED, ET)]
    depth = ndimage.distance_transform_edt(np.isin(labels, (NCR, ED, ET)), sampling=spacing_mm)
    least, full_mm, wavy = look.fade
    partial[1] *= least + (1 - least) * np.clip(depth / full_mm, 0, 1) + wavy * smooth_noise(rng, brain.shape, 8 / spacing_mm)
    spots = _spots(rng, tissue, labels, spacing_mm, look)
    healthy = np.clip(1 - sum(partial), 0, 1)
    partial[1] = partial[1] + healthy * spots        # looks like edema, and is none
    healthy = healthy * (1 - spots)
    dry = draw(rng, look.dry)
    fluid = np.clip(brain - gray - white - dry, 0, 1) / (1 - dry)
    total = np.maximum(fluid + gray + white, 1e-3)
    return np.stack([healthy * fluid / total, healthy * gray / total, healthy * white / total, *partial])


def _spots(rng: np.random.Generator, tissue: np.ndarray, labels: np.ndarray, spacing_mm: float, look: Look) -> np.ndarray:
    """White matter hyperintensities of age, (X, Y, Z) from 0 to below 1: bright on FLAIR and T2, and not tumor."""
    caps = ndimage.gaussian_filter(np.clip(tissue[2] - tissue[0] - tissue[1], 0, 1), 4 / spacing_mm)
    near, rare, strong, white = look.spots
    likely = smooth_noise(rng, labels.shape, 7 / spacing_mm) + draw(rng, near) * caps - draw(rng, rare)
    return draw(rng, strong) * np.clip(2 * likely, 0, 1) * (tissue[1] > draw(rng, white)) * (labels == 0)


def _vessels(rng: np.random.Generator, tissue: np.ndarray, labels: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Vessels and choroid plexus, which take up gadolinium as a tumor does: (X, Y, Z) from 0 to 1."""
    fluid = np.clip(tissue[2] - tissue[0] - tissue[1], 0, 1)
    return np.clip(smooth_noise(rng, labels.shape, 5 / spacing_mm) - 0.9, 0, 1) * fluid * (labels == 0)


def _midline(rng: np.random.Generator, tissue: np.ndarray, labels: np.ndarray,
             spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Between the halves of the brain, both (X, Y, Z) from 0 to 1: sinuses and falx, which take up gadolinium without
    being tumor, and the cortex beside them, which is brighter on FLAIR than elsewhere."""
    across = (np.arange(labels.shape[0]) - (labels.shape[0] - 1) / 2) * spacing_mm - rng.uniform(-3, 3)
    away = across[:, None, None] + 2 * smooth_noise(rng, labels.shape, 30 / spacing_mm)
    healthy = labels == 0
    fluid = np.clip(tissue[2] - tissue[0] - tissue[1], 0, 1)
    outer = ndimage.distance_transform_edt(tissue[2], sampling=spacing_mm) < draw(rng, (3, 8))
    uneven = np.clip(0.6 + 0.5 * smooth_noise(rng, labels.shape, 8 / spacing_mm), 0, 1)
    sinuses = np.exp(-((away / draw(rng, (1.5, 4))) ** 2)) * np.clip(fluid + outer, 0, 1) * uneven * healthy
    uneven = np.clip(0.5 + smooth_noise(rng, labels.shape, 25 / spacing_mm), 0, 1)
    cortex = np.exp(-((away / draw(rng, (6, 16))) ** 2)) * tissue[0] * uneven * healthy
    return sinuses.astype(np.float32), cortex.astype(np.float32)
