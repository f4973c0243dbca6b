"""Tumors: drawn from a plan, then grown in the anatomy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.stats import norm

from ..basics.constants import ED, ET, NCR
from .kinds import NARROW, Look, draw
from .noise import smooth_noise


@dataclass(frozen=True)
class Lesion:
    """The plan of one tumor, lengths in mm."""

    center: tuple[float, float, float]                # from the middle of the brain, right anterior superior
    radius: float                                     # of the core
    rim: float                                        # thickness of the enhancing rim; 0: none, infinite: all of the core
    edema: float                                      # how far edema reaches along white matter
    axes: tuple[float, float, float]                  # stretch of the core along each axis
    push: float                                       # how far the tissue at its edge is displaced


def plan_lesions(rng: np.random.Generator, rank: float, look: Look = NARROW) -> list[Lesion]:
    """Draw one or two tumors: most with a rim around necrosis, some without any ET, some of ET only.

    rank: where in the distribution of sizes the first one is, from 0 (smallest) to 1.
    """
    kind = rng.choice(["ring", "no ET", "ET only"], p=look.kinds)
    lesions = []
    for n in range(1 + (rng.random() < look.second)):
        size = rng.random() if n else rank
        radius = float(np.clip(13 * np.exp(0.5 * norm.ppf(size)), 4.5, 27)) * (0.65 if n else 1)
        radius = min(radius, 14.0) if kind == "ET only" else max(radius, 12.0 if kind == "no ET" else 4.5)
        rim = {"ring": rng.uniform(*look.rim) * radius + look.rim_mm, "no ET": 0.0, "ET only": np.inf}[kind]
        side = (-1) ** n * rng.choice([-1, 1])
        lesions.append(Lesion(
            center=(side * rng.uniform(*look.center[0]), rng.uniform(*look.center[1]), rng.uniform(*look.center[2])),
            radius=radius, rim=float(rim), edema=float(rng.uniform(*look.edema)),
            axes=tuple(rng.uniform(*look.axes, 3)), push=float(rng.uniform(0.1, 0.3) * radius)))
    return lesions


def _rank(seed: int, index: int) -> float:
    """The golden ratio's sequence: any run of patients has small and large tumors in the same proportion."""
    return float((np.random.default_rng(seed).random() + index * (5**0.5 - 1) / 2) % 1)


def grow(rng: np.random.Generator, place: np.ndarray, lesion: Lesion, tissue: np.ndarray, spacing_mm: float,
         look: Look = NARROW) -> np.ndarray:
    """The labels of one tumor, (X, Y, Z) uint8: a rim around necrosis, and edema that follows white matter."""
    gray, white, brain = tissue
    shape = brain.shape
    away = place - np.array(lesion.center, np.float32)[:, None, None, None]
    stretched = away / np.array(lesion.axes, np.float32)[:, None, None, None]
    depth = np.sqrt((stretched**2).sum(0))            # mm from the center; the noise makes its boundary irregular
    for scale, share in zip((1.0, 0.45), (draw(rng, limits) for limits in look.rough), strict=True):
        depth += share * lesion.radius * smooth_noise(rng, shape, max(2, scale * lesion.radius / spacing_mm))
    inside = brain > 0.5
    fluid = ndimage.gaussian_filter(brain - gray - white, 2 / spacing_mm) > 0.6   # edema stops at the ventricles
    core = _largest((depth < lesion.radius) & inside)
    rim = lesion.rim
    if np.isfinite(rim):
        rim *= 1 + draw(rng, look.rim_rough) * smooth_noise(rng, shape, draw(rng, look.rim_rough_mm) / spacing_mm)
    along = ndimage.gaussian_filter(white, 3 / spacing_mm)
    if look.patchy:
        along = along + look.patchy * smooth_noise(rng, shape, 14 / spacing_mm)
    reach = lesion.radius + lesion.edema * (0.25 + 1.0 * along) + 1.5 * smooth_noise(rng, shape, 8 / spacing_mm)
    edema = _largest(((depth < reach) & inside & ~fluid) | core)
    labels = np.where(edema, ED, 0).astype(np.uint8)
    labels[core] = ET
    labels[core & (depth < lesion.radius - rim)] = NCR
    return labels


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
