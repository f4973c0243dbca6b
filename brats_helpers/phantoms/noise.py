"""Smooth random fields, which give phantoms their irregular shapes and shading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], length: float) -> np.ndarray:
    """Make noise that varies over `length` voxels, with mean 0, deviation about 0.45: float32."""
    nodes = [int(np.ceil(s / length)) + 3 for s in shape]
    field = rng.standard_normal(nodes).astype(np.float32)
    for axis, s in enumerate(shape):  # separable: one cubic interpolation per axis
        field = _interpolate(field, np.linspace(1, 1 + (s - 1) / length, s), axis)
    return field / 0.75


def _interpolate(array: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Interpolate an array along an axis by cubic B-splines, at real-valued positions."""
    first = np.floor(positions).astype(int)
    t = (positions - first).astype(np.float32)
    weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6,
               (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    matrix = np.zeros((len(positions), array.shape[axis]), np.float32)
    for k, weight in enumerate(weights):
        nodes = np.clip(first + k - 1, 0, array.shape[axis] - 1)
        np.add.at(matrix, (np.arange(len(positions)), nodes), weight)
    return np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)


@dataclass(frozen=True)
class Noise:
    """Random fields drawn for a whole volume and cut to a box, so the box changes no voxel."""

    rng: np.random.Generator
    shape: tuple[int, ...]  # of the volume
    box: tuple[slice, ...]

    def smooth(self, length: float) -> np.ndarray:
        """Make `smooth_noise` in the box."""
        return smooth_noise(self.rng, self.shape, length)[self.box]

    def white(self) -> np.ndarray:
        """Make independent normal noise in the box: float32."""
        return self.rng.standard_normal(self.shape, np.float32)[self.box]
