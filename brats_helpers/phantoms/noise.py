"""Smooth random fields, from which phantoms get their irregular shapes and shading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], length: float) -> np.ndarray:
    """Noise of mean 0 and deviation about 1 that varies over `length` voxels: (X, Y, Z) float32."""
    nodes = [int(np.ceil(s / length)) + 3 for s in shape]
    coarse = rng.standard_normal(nodes).astype(np.float32)
    where = [np.linspace(1, 1 + (s - 1) / length, s) for s in shape]
    for axis, positions in enumerate(where):          # separable: one cubic interpolation an axis
        coarse = _interpolate(coarse, positions, axis)
    return coarse / 0.75


def _interpolate(array: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Cubic B-spline smoothing of a coarse array at real-valued positions along one axis."""
    first = np.floor(positions).astype(int)
    t = (positions - first).astype(np.float32)
    weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    matrix = np.zeros((len(positions), array.shape[axis]), np.float32)
    for k, w in enumerate(weights):
        np.add.at(matrix, (np.arange(len(positions)), np.clip(first + k - 1, 0, array.shape[axis] - 1)), w)
    return np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
