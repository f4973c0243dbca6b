"""Tumors: drawn from a plan, then grown in the anatomy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.stats import norm

from ..basics.constants import ED, ET, NCR
from ..data.preprocessing import largest_component
from .kinds import NARROW, TumorVariation, draw
from .noise import smooth_noise


@dataclass(frozen=True)
class Lesion:
    """The plan of one tumor, lengths in mm."""

    center: tuple[float, float, float]  # from the middle of the brain, right anterior superior
    radius: float  # of the core
    rim: float  # thickness of the enhancing rim; 0: no ET, infinite: all of the core is ET
    edema: float  # how far edema reaches along white matter
    axes: tuple[float, float, float]  # stretch of the core along each axis
    push: float  # how far the tissue at its edge is displaced


def plan_lesions(rng: np.random.Generator, rank: float,
                 variation: TumorVariation = NARROW.tumor) -> list[Lesion]:
    """Draw one or two tumors: most with a rim around necrosis, some without ET, some of ET only.

    rank: the first tumor's place in the distribution of sizes, from 0 (smallest) to 1.
    """
    kind = rng.choice(["ring", "no ET", "ET only"], p=variation.kind_probabilities)
    lesions = []
    for n in range(1 + (rng.random() < variation.second_probability)):
        size = rng.random() if n else rank
        radius = float(np.clip(13 * np.exp(0.5 * norm.ppf(size)), 4.5, 27)) * (0.65 if n else 1)
        radius = min(radius, 14.0) if kind == "ET only" else max(
            radius, 12.0 if kind == "no ET" else 4.5)
        ring = rng.uniform(*variation.rim_share) * radius + variation.rim_extra_mm
        side = (-1) ** n * rng.choice([-1, 1])
        across, forward, up = (rng.uniform(*limits) for limits in variation.center_mm)
        lesions.append(Lesion(
            center=(side * across, forward, up), radius=radius,
            rim=float({"ring": ring, "no ET": 0.0, "ET only": np.inf}[kind]),
            edema=float(rng.uniform(*variation.edema_mm)),
            axes=tuple(rng.uniform(*variation.stretch, 3)),
            push=float(rng.uniform(0.1, 0.3) * radius)))
    return lesions


def size_rank(seed: int, index: int) -> float:
    """Rank a patient's tumor size by a golden ratio sequence.

    Any run of patients then has small and large tumors in the same proportion.
    """
    return float((np.random.default_rng(seed).random() + index * (5**0.5 - 1) / 2) % 1)


def grow(rng: np.random.Generator, place: np.ndarray, lesion: Lesion, tissue: np.ndarray,
         spacing_mm: float, variation: TumorVariation = NARROW.tumor) -> np.ndarray:
    """Grow one tumor: labels (X, Y, Z) uint8, a core inside edema that follows white matter.

    place: (3, X, Y, Z), mm from the middle of the brain; tissue: of `anatomy`.
    """
    gray, white, brain = tissue
    shape = brain.shape
    away = place - np.array(lesion.center, np.float32)[:, None, None, None]
    stretched = away / np.array(lesion.axes, np.float32)[:, None, None, None]
    depth = np.sqrt((stretched**2).sum(0))  # mm from the center; noise makes it irregular
    for scale, limits in ((1.0, variation.coarse_roughness), (0.45, variation.fine_roughness)):
        share, length = draw(rng, limits), max(2, scale * lesion.radius / spacing_mm)
        depth += share * lesion.radius * smooth_noise(rng, shape, length)
    inside = brain > 0.5
    core = largest_component((depth < lesion.radius) & inside)
    rim = lesion.rim
    if np.isfinite(rim):
        roughness = draw(rng, variation.rim_roughness)
        length = draw(rng, variation.rim_roughness_mm) / spacing_mm
        rim *= 1 + roughness * smooth_noise(rng, shape, length)
    along = ndimage.gaussian_filter(white, 3 / spacing_mm)
    if variation.edema_patchiness:
        patches = smooth_noise(rng, shape, 14 / spacing_mm)
        along = along + variation.edema_patchiness * patches
    reach = lesion.radius + lesion.edema * (0.25 + 1.0 * along)
    reach = reach + 1.5 * smooth_noise(rng, shape, 8 / spacing_mm)
    fluid = ndimage.gaussian_filter(brain - gray - white, 2 / spacing_mm) > 0.6
    edema = largest_component(((depth < reach) & inside & ~fluid) | core)  # it spares ventricles
    labels = np.where(edema, ED, 0).astype(np.uint8)
    labels[core] = ET
    labels[core & (depth < lesion.radius - rim)] = NCR
    return labels
