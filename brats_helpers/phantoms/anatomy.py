"""The MNI152 template, from which every phantom's brain is made, and the grids of both.

The template is the ICBM 2009a average (Fonov et al. 2011,
doi:10.1016/j.neuroimage.2010.07.033), as nilearn ships it. Importing nilearn would take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ..basics.constants import BRATS_SHAPE

TEMPLATE_CENTER_MM = (0, -18, 6)  # of the template's brain


class Tissue(NamedTuple):
    """A healthy brain; each map is (X, Y, Z)."""

    gray: np.ndarray  # fractions, float32
    white: np.ndarray
    brain: np.ndarray  # bool: what skull-stripping has left
    outside: np.ndarray  # bool: what it should have removed


@dataclass(frozen=True)
class Tumor:
    """The plan of one tumor, lengths in mm."""

    kind: str  # such as "ring": `plain` and `tumors` have their own kinds
    center: np.ndarray  # from the middle of the brain: right, anterior, superior
    radius: float  # of the core
    rim: float  # thickness of the enhancing rim
    edema: float  # how far edema reaches along white matter
    axes: np.ndarray  # stretch of the core along each axis
    push: float  # of tissue, at most; at the core's edge it moves 78% as far: see `displaced`


@lru_cache(maxsize=1)
def template() -> tuple[np.ndarray, np.ndarray]:
    """Load the template's gray matter, white matter and brain, (3, X, Y, Z), and its affine."""
    image = nib.load(Path(__file__).with_name("template.nii.gz"))
    maps = np.moveaxis(np.asarray(image.dataobj), -1, 0).astype(np.float32)
    return maps / np.float32(255), image.affine


def brats_affine(spacing_mm: float) -> np.ndarray:
    """Make BraTS's affine at a voxel size: indices grow to the left, the back and the top."""
    affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
    affine[1, 3] = 239
    return affine


def coordinates_mm(spacing_mm: float,
                   extent_mm: Sequence[float] = BRATS_SHAPE) -> np.ndarray:
    """Compute each voxel's place in mm from the middle of the brain, (3, X, Y, Z) float32.

    As in the template, right, anterior and superior are positive.
    """
    shape = [int(round(mm / spacing_mm)) for mm in extent_mm]
    axes = [np.arange(n, dtype=np.float32) * spacing_mm - (n - 1) / 2 * spacing_mm for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return np.stack([-x, -y, z])


def size_rank(seed: int, index: int) -> float:
    """Return the rank of a patient's tumor size, 0 to 1, from a golden ratio sequence.

    Any run of patients then has small and large tumors in the same proportion.
    """
    return float((np.random.default_rng(seed).random() + index * (5**0.5 - 1) / 2) % 1)


def rotation_and_scale(rng: np.random.Generator) -> np.ndarray:
    """Draw a patient's rotation, size and mirroring: the (3, 3) matrix from place to template."""
    angles = rng.uniform(-6, 6, 3) * (1, -1, 1)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    return (rotation @ np.diag(rng.uniform(1.0, 1.17, 3))
            @ np.diag([rng.choice([-1, 1]), 1, 1])).astype(np.float32)


def displaced(source: np.ndarray, place: np.ndarray, tumors: Sequence[Tumor]) -> np.ndarray:
    """Apply the mass effect to source, in place: tissue moves away from a tumor's center.

    source and place are (3, X, Y, Z) in mm.
    """
    for tumor in tumors:
        away = place - column(tumor.center)
        distance = np.sqrt((away**2).sum(0)) + 1e-3
        strength = np.exp(-((distance / (2 * tumor.radius)) ** 2))
        source -= away / distance * tumor.push * strength
    return source


def sample_template(source: np.ndarray) -> np.ndarray:
    """Sample the template's gray matter, white matter and brain, (3, X, Y, Z), at places in mm."""
    maps, affine = template()
    origin = np.array(TEMPLATE_CENTER_MM, np.float32) - affine[:3, 3]
    voxels = source + origin[:, None, None, None]
    # Most places lie outside the head, where the maps are 0, so they are not sampled.
    near = np.rint(voxels).astype(np.intp)
    for index, size in zip(near, maps.shape[1:], strict=True):
        np.clip(index, 0, size - 1, out=index)
    head = _head()[tuple(near)]
    sampled = np.zeros((len(maps), *source.shape[1:]), np.float32)
    for each, volume in zip(sampled, maps, strict=True):
        each[head] = ndimage.map_coordinates(volume, voxels[:, head], order=1, prefilter=False)
    return sampled


@lru_cache(maxsize=1)
def _head() -> np.ndarray:
    """Mark the template's voxels that are not 0, and their neighbors: (X, Y, Z) bool."""
    return ndimage.maximum_filter(template()[0].any(0), 3, mode="constant")


def column(values: Sequence[float]) -> np.ndarray:
    """Shape three numbers so that they broadcast over (3, X, Y, Z)."""
    return np.array(values, np.float32)[:, None, None, None]
