"""A healthy brain from the MNI152 template, deformed anew for every patient and pushed aside by its tumors.

The template is the ICBM 2009a average that nilearn ships (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import ndimage

from ..basics.constants import BRATS_SHAPE
from .lesions import Lesion
from .noise import smooth_noise

VENTRICLES, VENTRICLES_MM = (0, 0, 9), 32             # where they are, mm from the middle of the brain, and their reach


@lru_cache(maxsize=1)
def template() -> tuple[np.ndarray, np.ndarray]:
    """Gray matter, white matter and brain of the template, (3, X, Y, Z) float32, and its affine."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template
    loaders = (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
    images = [load(resolution=1) for load in loaders]
    return np.stack([np.asarray(i.dataobj, np.float32) for i in images]), images[0].affine


def brats_affine(spacing_mm: float) -> np.ndarray:
    """BraTS's affine at a voxel size: indices grow to the left, the back and the top."""
    affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
    affine[1, 3] = 239
    return affine


def _points(spacing_mm: float) -> np.ndarray:
    shape = [int(round(s / spacing_mm)) for s in BRATS_SHAPE]
    axes = [np.arange(n, dtype=np.float32) * spacing_mm for n in shape]
    middle = [(n - 1) / 2 * spacing_mm for n in shape]
    x, y, z = np.meshgrid(*(a - m for a, m in zip(axes, middle, strict=True)), indexing="ij")
    return np.stack([-x, -y, z])                      # right, anterior and superior positive, as in the template


def anatomy(rng: np.random.Generator, place: np.ndarray, lesions: Sequence[Lesion], spacing_mm: float,
            ventricles: float = 0.0) -> np.ndarray:
    """Gray matter, white matter (fractions) and brain (0 or 1) of one patient: (3, X, Y, Z) float32."""
    angles = np.radians(rng.uniform(-6, 6, 3))
    matrix = _rotation(angles) @ np.diag(rng.uniform(1.0, 1.17, 3)) @ np.diag([rng.choice([-1, 1]), 1, 1])
    source = np.tensordot(matrix.astype(np.float32), place, 1)
    for axis in range(3):
        source[axis] += rng.uniform(-3, 3) + 3.5 * smooth_noise(rng, place.shape[1:], 30 / spacing_mm)
    if ventricles:                                    # the middle of the brain is magnified, its surface stays
        away = place - np.array(VENTRICLES, np.float32)[:, None, None, None]
        source -= away * ventricles * np.exp(-(away**2).sum(0) / VENTRICLES_MM**2)
    for lesion in lesions:                            # mass effect: what was at the core's center is now around it
        away = place - np.array(lesion.center, np.float32)[:, None, None, None]
        distance = np.sqrt((away**2).sum(0)) + 1e-3
        source -= away / distance * lesion.push * np.exp(-((distance / (2 * lesion.radius)) ** 2))
    maps, affine = template()
    middle = np.array([0, -18, 6], np.float32)        # of the template's brain, mm
    voxels = source + (middle - affine[:3, 3])[:, None, None, None]
    gray, white, brain = (ndimage.map_coordinates(m, voxels, order=1, prefilter=False) for m in maps)
    brain = ndimage.binary_fill_holes(brain > 0.5).astype(np.float32)
    return np.stack([gray * brain, white * brain, brain])


def _rotation(angles: np.ndarray) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (i for i in range(3) if i != axis)
        step = np.eye(3)
        step[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = step @ matrix
    return matrix
