"""A synthetic cohort: tumors grown in the MNI152 template, written exactly as BraTS 2021 is.

The anatomy is the ICBM 2009a template that nilearn ships (Fonov et al. 2011,
doi:10.1016/j.neuroimage.2010.07.033), deformed anew for every patient. What each compartment looks
like in each contrast follows the BraTS annotation protocol (Baid et al. 2021, arXiv:2107.02314,
section 2.2). It is a stand-in for teaching and tests, and every picture of it says "synthetic".
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed
from scipy import ndimage
from scipy.stats import norm
from tqdm import tqdm

from .cases import Patient
from .constants import BRATS_SHAPE, DISK_ET, ED, ET, MODALITIES, NCR
from .files import atomic_path, write_json

TRAINING, TEST = "BraTS2021_Training_Data.tar", "BraTS2021_Test_Data.tar"
TEST_INDEX = 90_000                                   # test patients' numbers start here, so that no name is met twice
VERSION = 2                                           # raised whenever the same seed gives other voxels
WIDE_REVISION = 2                                     # the same, where only the wide kind has changed

# Mean intensity of each tissue in each contrast, white matter on T1 being 1.
#                     CSF   GM    WM    NCR   ED    ET
CONTRAST = np.array([[0.22, 0.73, 0.54, 0.40, 0.86, 0.66],       # FLAIR: fluid dark, edema bright
                     [0.25, 0.68, 1.00, 0.42, 0.54, 0.66],       # T1: tumor and edema darker than white matter
                     [0.27, 0.70, 1.00, 0.36, 0.54, 1.55],       # T1CE: the rim takes up gadolinium
                     [1.05, 0.60, 0.42, 1.00, 0.94, 0.68]])      # T2: all that holds water is bright
# The same for the wide cohort, whose patients differ as scanners and tumors do, and how far: log-normal deviations.
WIDE = np.array([[0.30, 0.74, 0.62, 0.96, 0.86, 0.88],
                 [0.32, 0.78, 1.00, 0.84, 0.87, 0.92],
                 [0.34, 0.78, 1.00, 0.72, 0.77, 1.24],
                 [1.35, 0.68, 0.52, 0.98, 0.79, 0.76]])
WIDE_SPREAD = np.array([[0.20, 0.08, 0.08, 0.18, 0.12, 0.12],
                        [0.20, 0.07, 0.05, 0.16, 0.10, 0.12],
                        [0.20, 0.07, 0.05, 0.12, 0.08, 0.18],
                        [0.20, 0.08, 0.10, 0.20, 0.12, 0.14]])
VENTRICLES, VENTRICLES_MM = (0, 0, 9), 32             # where they are, mm from the middle of the brain, and their reach
BIAS_MM = 70                                          # over which the shading changes
BIAS_LIMIT = 1.4                                      # deviations that the shading does not exceed
SCALE = (400, 3000)                                   # what white matter's 1.0 becomes in the scanner's own units
Range = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """How the patients of a cohort may differ; a range is drawn from for each patient, or is one value for all."""

    contrast: np.ndarray
    spread: float | np.ndarray                        # of each entry of the contrasts, log-normal
    kinds: tuple[float, float, float]                 # how often: a rim around necrosis, no ET, ET only
    second: float                                     # how often there is a second tumor
    rim: Range                                        # of the core's radius
    rim_mm: float                                     # and at least that
    centre: tuple[Range, Range, Range]                # mm from the middle: to either side, forward, up
    edema: Range                                      # mm
    axes: Range
    rough: tuple[Range, Range]                        # how irregular the core is, coarsely and finely
    rim_rough: Range
    rim_rough_mm: Range
    patchy: float                                     # how irregular the edema is
    cysts: float                                      # how often necrosis has another brightness on FLAIR,
    cyst: Range                                       # and by which factor
    distinct: bool                                    # whether edema and ET always stand out, as what experts outline does
    mottled: tuple[Range, Range]                      # unevenness of tumor and of healthy tissue, log-normal
    vessels: Range
    texture: Range                                    # of the tissue itself, relative
    blur_mm: float
    bias: tuple[Range, Range, Range, Range]           # of the smooth shading of each contrast, log-normal
    noise: Range                                      # Rician, relative to white matter
    fade: tuple[float, float, float]                  # edema's strength at its edge, the mm to its full one, its waviness
    spots: tuple[Range, Range, Range, Range]          # age's white spots: nearness to fluid, rarity, strength, whiteness
    ventricles: Range = (0, 0)                        # how much larger than the template's, by age: 1 / (1 - this)
    soft_mm: Range = (0.7, 0.7)                       # of a compartment's edge
    dry: Range = (0, 0)                               # how much of what the template leaves open is tissue, not fluid
    midline: tuple[Range, Range] = ((0, 0), (0, 0))   # between the halves: sinuses and falx on T1CE, cortex on FLAIR


NARROW = Look(
    contrast=CONTRAST, spread=0.05, kinds=(0.82, 0.09, 0.09), second=0.14, rim=(0.20, 0.38), rim_mm=1.8,
    centre=((18, 42), (-55, 45), (-5, 42)), edema=(2, 22), axes=(0.8, 1.25), rough=((0.16, 0.16), (0.09, 0.09)),
    rim_rough=(0.15, 0.15), rim_rough_mm=(10, 10), patchy=0, cysts=1, cyst=(0.5, 1.5), distinct=False,
    mottled=((0, 0), (0, 0)), vessels=(0.8, 0.8), texture=(0.05, 0.05), blur_mm=0,
    bias=((0.16, 0.16), (0.12, 0.12), (0.12, 0.12), (0.14, 0.14)), noise=(0.025, 0.025), fade=(0.70, 8, 0.08),
    spots=((2.5, 2.5), (1.9, 3.0), (0.7, 0.7), (0.6, 0.6)))
WIDE_LOOK = Look(
    contrast=WIDE, spread=WIDE_SPREAD, kinds=(0.80, 0.08, 0.12), second=0.25, rim=(0.08, 0.4), rim_mm=1.2,
    centre=((8, 50), (-62, 52), (-25, 48)), edema=(1, 26), axes=(0.65, 1.5), rough=((0.1, 0.35), (0.05, 0.2)),
    rim_rough=(0.1, 0.7), rim_rough_mm=(5, 12), patchy=0.2, cysts=0.06, cyst=(0.35, 0.7), distinct=True,
    mottled=((0.02, 0.16), (0.02, 0.12)), vessels=(0.8, 3.5), texture=(0.01, 0.06), blur_mm=1.2,
    bias=((0.02, 0.22),) * 4, noise=(0.003, 0.03), fade=(0.80, 5, 0.08),
    spots=((1.5, 4), (1.1, 3.0), (0.4, 0.9), (0.2, 0.6)), ventricles=(0, 0.6),
    soft_mm=(0.7, 2.2), dry=(0, 0.35), midline=((0, 2.5), (0, 0.25)))
LOOKS = {"phantom": NARROW, "wide": WIDE_LOOK}        # the sources of synthetic patients


def draw(rng: np.random.Generator, limits: Range) -> float:
    """A value between two limits; chance is not asked where they are one."""
    return limits[0] if limits[0] == limits[1] else float(rng.uniform(*limits))


@dataclass(frozen=True)
class Lesion:
    """The plan of one tumor, lengths in mm."""

    centre: tuple[float, float, float]                # from the middle of the brain, right anterior superior
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
            centre=(side * rng.uniform(*look.centre[0]), rng.uniform(*look.centre[1]), rng.uniform(*look.centre[2])),
            radius=radius, rim=float(rim), edema=float(rng.uniform(*look.edema)),
            axes=tuple(rng.uniform(*look.axes, 3)), push=float(rng.uniform(0.1, 0.3) * radius)))
    return lesions


@lru_cache(maxsize=1)
def template() -> tuple[np.ndarray, np.ndarray]:
    """Grey matter, white matter and brain of the template, (3, X, Y, Z) float32, and its affine."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template
    loaders = (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
    images = [load(resolution=1) for load in loaders]
    return np.stack([np.asarray(i.dataobj, np.float32) for i in images]), images[0].affine


def brats_affine(spacing_mm: float) -> np.ndarray:
    """BraTS's affine at a voxel size: indices grow to the left, the back and the top."""
    affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
    affine[1, 3] = 239
    return affine


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


# ---------------------------------------------------------------- one patient

def make_patient(seed: int, index: int, spacing_mm: float = 2.0, look: Look = NARROW) -> Patient:
    """Patient number `index` of the cohort `seed`; the same two numbers give the same voxels at a voxel size."""
    rng = np.random.default_rng([seed, index, VERSION])
    affine = brats_affine(spacing_mm)
    lesions = plan_lesions(rng, _rank(seed, index), look)
    place = _points(spacing_mm)                       # (3, X, Y, Z), mm from the middle of the brain
    tissue = anatomy(rng, place, lesions, spacing_mm, draw(rng, look.ventricles))
    labels = np.zeros(tissue.shape[1:], np.uint8)
    for lesion in lesions:
        grown = grow(rng, place, lesion, tissue, spacing_mm, look)
        labels = np.where((labels == 0) | np.isin(grown, (NCR, ET)), grown, labels)
    return Patient(f"BraTS2021_{index:05d}", compose(rng, tissue, labels, spacing_mm, look), labels, affine)


def _rank(seed: int, index: int) -> float:
    """The golden ratio's sequence: any run of patients has small and large tumors in the same proportion."""
    return float((np.random.default_rng(seed).random() + index * (5**0.5 - 1) / 2) % 1)


def _points(spacing_mm: float) -> np.ndarray:
    shape = [int(round(s / spacing_mm)) for s in BRATS_SHAPE]
    axes = [np.arange(n, dtype=np.float32) * spacing_mm for n in shape]
    middle = [(n - 1) / 2 * spacing_mm for n in shape]
    x, y, z = np.meshgrid(*(a - m for a, m in zip(axes, middle, strict=True)), indexing="ij")
    return np.stack([-x, -y, z])                      # right, anterior and superior positive, as in the template


def anatomy(rng: np.random.Generator, place: np.ndarray, lesions: Sequence[Lesion], spacing_mm: float,
            ventricles: float = 0.0) -> np.ndarray:
    """Grey matter, white matter (fractions) and brain (0 or 1) of one patient: (3, X, Y, Z) float32."""
    angles = np.radians(rng.uniform(-6, 6, 3))
    matrix = _rotation(angles) @ np.diag(rng.uniform(1.0, 1.17, 3)) @ np.diag([rng.choice([-1, 1]), 1, 1])
    source = np.tensordot(matrix.astype(np.float32), place, 1)
    for axis in range(3):
        source[axis] += rng.uniform(-3, 3) + 3.5 * smooth_noise(rng, place.shape[1:], 30 / spacing_mm)
    if ventricles:                                    # the middle of the brain is magnified, its surface stays
        away = place - np.array(VENTRICLES, np.float32)[:, None, None, None]
        source -= away * ventricles * np.exp(-(away**2).sum(0) / VENTRICLES_MM**2)
    for lesion in lesions:                            # mass effect: what was at the core's centre is now around it
        away = place - np.array(lesion.centre, np.float32)[:, None, None, None]
        distance = np.sqrt((away**2).sum(0)) + 1e-3
        source -= away / distance * lesion.push * np.exp(-((distance / (2 * lesion.radius)) ** 2))
    maps, affine = template()
    middle = np.array([0, -18, 6], np.float32)        # of the template's brain, mm
    voxels = source + (middle - affine[:3, 3])[:, None, None, None]
    grey, white, brain = (ndimage.map_coordinates(m, voxels, order=1, prefilter=False) for m in maps)
    brain = ndimage.binary_fill_holes(brain > 0.5).astype(np.float32)
    return np.stack([grey * brain, white * brain, brain])


def _rotation(angles: np.ndarray) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (i for i in range(3) if i != axis)
        step = np.eye(3)
        step[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = step @ matrix
    return matrix


def grow(rng: np.random.Generator, place: np.ndarray, lesion: Lesion, tissue: np.ndarray, spacing_mm: float,
         look: Look = NARROW) -> np.ndarray:
    """The labels of one tumor, (X, Y, Z) uint8: a rim around necrosis, and edema that follows white matter."""
    grey, white, brain = tissue
    shape = brain.shape
    away = place - np.array(lesion.centre, np.float32)[:, None, None, None]
    stretched = away / np.array(lesion.axes, np.float32)[:, None, None, None]
    depth = np.sqrt((stretched**2).sum(0))            # mm from the centre; the noise makes its boundary irregular
    for scale, share in zip((1.0, 0.45), (draw(rng, limits) for limits in look.rough), strict=True):
        depth += share * lesion.radius * smooth_noise(rng, shape, max(2, scale * lesion.radius / spacing_mm))
    inside = brain > 0.5
    fluid = ndimage.gaussian_filter(brain - grey - white, 2 / spacing_mm) > 0.6   # edema stops at the ventricles
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


# ---------------------------------------------------------------- contrasts

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
    grey, white, brain = tissue
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
    fluid = np.clip(brain - grey - white - dry, 0, 1) / (1 - dry)
    total = np.maximum(fluid + grey + white, 1e-3)
    return np.stack([healthy * fluid / total, healthy * grey / total, healthy * white / total, *partial])


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


# ---------------------------------------------------------------- archives

def build_cohort(folder: Path, seed: int, patients: int, test_patients: int, spacing_mm: float,
                 jobs: int = -1, kind: str = "phantom") -> tuple[Path, Path | None]:
    """Write the training and the test archive into `folder`; returns their paths (no test patients: None).

    kind: of LOOKS. Archives of the same settings are used again. The same settings give the same bytes.
    """
    folder = Path(folder)
    paths = []
    for name, first, count in ((TRAINING, 0, patients), (TEST, TEST_INDEX, test_patients)):
        settings = {"seed": seed, "patients": count, "spacing_mm": spacing_mm, "version": VERSION}
        settings |= {"kind": kind, "revision": WIDE_REVISION} if kind != "phantom" else {}
        if count:
            _build_archive(folder / name, settings, range(first, first + count), jobs)
        paths.append(folder / name if count else None)
    return paths[0], paths[1]


def _build_archive(path: Path, settings: dict, indices: Sequence[int], jobs: int) -> None:
    note = path.with_suffix(".json")                  # beside the archive: what is in it
    if path.is_file() and note.is_file() and json.loads(note.read_text()) == settings:
        return
    note.unlink(missing_ok=True)
    packed = Parallel(n_jobs=jobs, return_as="generator")(
        delayed(_pack)(settings["seed"], index, settings["spacing_mm"], settings.get("kind", "phantom")) for index in indices)
    with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
        for members in tqdm(packed, total=len(indices), desc=f"phantoms for {path.name}", unit="patient"):
            for name, content in members:
                info = tarfile.TarInfo(name)          # the default time, owner and mode: the same bytes every time
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    write_json(note, settings)


def _pack(seed: int, index: int, spacing_mm: float, kind: str) -> list[tuple[str, bytes]]:
    """The five files of a patient, as name and content, exactly as BraTS names and labels them."""
    patient = make_patient(seed, index, spacing_mm, LOOKS[kind])
    on_disk = np.array([0, NCR, ED, DISK_ET], np.uint8)[patient.reference]
    arrays = [*zip(MODALITIES, patient.images, strict=True), ("seg", on_disk)]
    return [(f"{patient.name}/{patient.name}_{kind}.nii.gz", _nifti_bytes(array, patient.affine))
            for kind, array in arrays]


def _nifti_bytes(array: np.ndarray, affine: np.ndarray) -> bytes:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    return gzip.compress(image.to_bytes(), compresslevel=3, mtime=0)
