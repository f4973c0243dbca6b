"""A healthy brain from the MNI152 template, deformed anew for every patient.

The template is the ICBM 2009a average that nilearn ships (Fonov et al. 2011,
doi:10.1016/j.neuroimage.2010.07.033).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ..basics.constants import BRATS_SHAPE
from .lesions import Lesion
from .noise import smooth_noise

VENTRICLES_CENTER_MM = (0, 0, 9)  # from the middle of the brain
VENTRICLES_REACH_MM = 32
TEMPLATE_CENTER_MM = (0, -18, 6)  # of the template's brain


@lru_cache(maxsize=1)
def template() -> tuple[np.ndarray, np.ndarray]:
    """Load the template's gray matter, white matter and brain, (3, X, Y, Z), and its affine."""
    from nilearn.datasets import (
        load_mni152_brain_mask,
        load_mni152_gm_template,
        load_mni152_wm_template,
    )
    loaders = (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
    images = [load(resolution=1) for load in loaders]
    return np.stack([np.asarray(i.dataobj, np.float32) for i in images]), images[0].affine


def brats_affine(spacing_mm: float) -> np.ndarray:
    """Make BraTS's affine at a voxel size: indices grow to the left, the back and the top."""
    affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
    affine[1, 3] = 239
    return affine


def coordinates_mm(spacing_mm: float) -> np.ndarray:
    """Give each voxel's place in mm from the middle of the brain, (3, X, Y, Z) float32.

    As in the template, right, anterior and superior are positive.
    """
    shape = [int(round(s / spacing_mm)) for s in BRATS_SHAPE]
    axes = [np.arange(n, dtype=np.float32) * spacing_mm - (n - 1) / 2 * spacing_mm for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return np.stack([-x, -y, z])


def anatomy(rng: np.random.Generator, place: np.ndarray, lesions: Sequence[Lesion],
            spacing_mm: float, ventricle_enlargement: float = 0.0) -> np.ndarray:
    """Make one patient's gray and white matter (fractions) and brain (0 or 1): (3, X, Y, Z)."""
    source = np.tensordot(rigid_and_scale(rng), place, 1)
    for axis in range(3):
        shift = rng.uniform(-3, 3)
        source[axis] += shift + 3.5 * smooth_noise(rng, place.shape[1:], 30 / spacing_mm)
    if ventricle_enlargement:  # the middle of the brain is magnified, its surface stays
        away = _away(place, VENTRICLES_CENTER_MM)
        strength = np.exp(-(away**2).sum(0) / VENTRICLES_REACH_MM**2)
        source -= away * ventricle_enlargement * strength
    for lesion in lesions:  # mass effect: tissue from the core's center moves to its surroundings
        away = _away(place, lesion.center)
        distance = np.sqrt((away**2).sum(0)) + 1e-3
        strength = np.exp(-((distance / (2 * lesion.radius)) ** 2))
        source -= away / distance * lesion.push * strength
    maps, affine = template()
    origin = np.array(TEMPLATE_CENTER_MM, np.float32) - affine[:3, 3]
    voxels = source + origin[:, None, None, None]
    gray, white, brain = (ndimage.map_coordinates(m, voxels, order=1, prefilter=False)
                          for m in maps)
    brain = ndimage.binary_fill_holes(brain > 0.5).astype(np.float32)
    return np.stack([gray * brain, white * brain, brain])


def rigid_and_scale(rng: np.random.Generator) -> np.ndarray:
    """Draw a patient's rotation, size and side: a matrix, (3, 3), from place to template."""
    angles = rng.uniform(-6, 6, 3) * (1, -1, 1)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    return (rotation @ np.diag(rng.uniform(1.0, 1.17, 3))
            @ np.diag([rng.choice([-1, 1]), 1, 1])).astype(np.float32)


def _away(place: np.ndarray, center: Sequence[float]) -> np.ndarray:
    return place - np.array(center, np.float32)[:, None, None, None]
