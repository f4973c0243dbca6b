"""Segment the tumor and its surroundings again with smaller voxels: a coarse-to-fine cascade.

Large voxels blur small cores and thin rims, but segmenting a whole brain with small voxels is slow.
So the first network finds the tumor, and the refiner's networks see only a box around it. Inside
the box, the probabilities of all networks are averaged. Several first networks count as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from torch import nn

from ..basics.config import Config
from ..basics.constants import REGION_THRESHOLDS
from ..basics.device import Device
from ..data.cases import Patient
from ..data.preprocessing import bounding_box, network_input, prepare, restore
from ..data.storage import Meta, Prepared
from .sliding_window import predict_image

MARGIN_MM = 10.0  # around the tumor that the first network has found


@dataclass(frozen=True)
class Refiner:
    """Networks that work with smaller voxels than the first, and their settings."""

    models: Sequence[nn.Module]
    config: Config


def refine(probabilities: np.ndarray, coarse: np.ndarray, meta: Meta, patient: Patient,
           refiner: Refiner, tta: bool, device: Device) -> np.ndarray:
    """Average the first network's probabilities with the refiner's near the tumor.

    `probabilities`, (3, X, Y, Z), are on the scan's grid. `coarse`, (3, D, H, W), are the same
    values on the first network's grid, which `meta` describes. Returns (3, X, Y, Z) float32.
    """
    tumor = coarse[0] >= REGION_THRESHOLDS["WT"]
    if not tumor.any():
        return probabilities
    config = refiner.config
    prepared = prepare(patient, config.spacing_mm)
    if prepared.meta.downsampling == meta.downsampling:
        return probabilities  # the scan's voxels are too coarse to refine
    box = tumor_box(tumor, meta, prepared, config)
    image = network_input(prepared, device)[:, *box].contiguous()
    second = np.zeros((4, *prepared.volume.shape[1:]), np.float32)
    second[:3, *box] = predict_image(refiner.models, image, config.patch, config.overlap, tta,
                                     device)
    second[3, *box] = 1
    *second, inside = restore(second, prepared.meta)  # softens the box's edge
    blended, share = probabilities.copy(), 1 - 1 / (1 + len(refiner.models))
    for channel, other in zip(blended, second, strict=True):
        channel *= 1 - share * inside
        channel += share * other
    return blended


def tumor_box(tumor: np.ndarray, meta: Meta, finer: Prepared,
              config: Config) -> tuple[slice, ...]:
    """Return the box around a coarse mask (D, H, W), plus a margin, on the finer grid.

    Each edge is at least one patch long, or the whole axis if that is shorter: the network has
    learned from patches of that size. A false voxel far away enlarges the box. This takes longer
    and blends the refiner into more voxels.
    """
    margin, box = MARGIN_MM / config.spacing_mm, []
    scales = np.divide(meta.downsampling, finer.meta.downsampling)
    sizes = finer.volume.shape[1:]
    for (first, last), scale, size in zip(bounding_box(tumor), scales, sizes, strict=True):
        low, high = first * scale - margin, last * scale + margin
        edge = min(size, max(config.patch, ceil(high - low)))
        start = min(max(0, round((low + high - edge) / 2)), size - edge)
        box.append(slice(start, start + edge))
    return tuple(box)
