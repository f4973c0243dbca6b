"""What the phantoms of a cohort have in common, and how far they may differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    center: tuple[Range, Range, Range]                # mm from the middle: to either side, forward, up
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
    center=((18, 42), (-55, 45), (-5, 42)), edema=(2, 22), axes=(0.8, 1.25), rough=((0.16, 0.16), (0.09, 0.09)),
    rim_rough=(0.15, 0.15), rim_rough_mm=(10, 10), patchy=0, cysts=1, cyst=(0.5, 1.5), distinct=False,
    mottled=((0, 0), (0, 0)), vessels=(0.8, 0.8), texture=(0.05, 0.05), blur_mm=0,
    bias=((0.16, 0.16), (0.12, 0.12), (0.12, 0.12), (0.14, 0.14)), noise=(0.025, 0.025), fade=(0.70, 8, 0.08),
    spots=((2.5, 2.5), (1.9, 3.0), (0.7, 0.7), (0.6, 0.6)))
WIDE_LOOK = Look(
    contrast=WIDE, spread=WIDE_SPREAD, kinds=(0.80, 0.08, 0.12), second=0.25, rim=(0.08, 0.4), rim_mm=1.2,
    center=((8, 50), (-62, 52), (-25, 48)), edema=(1, 26), axes=(0.65, 1.5), rough=((0.1, 0.35), (0.05, 0.2)),
    rim_rough=(0.1, 0.7), rim_rough_mm=(5, 12), patchy=0.2, cysts=0.06, cyst=(0.35, 0.7), distinct=True,
    mottled=((0.02, 0.16), (0.02, 0.12)), vessels=(0.8, 3.5), texture=(0.01, 0.06), blur_mm=1.2,
    bias=((0.02, 0.22),) * 4, noise=(0.003, 0.03), fade=(0.80, 5, 0.08),
    spots=((1.5, 4), (1.1, 3.0), (0.4, 0.9), (0.2, 0.6)), ventricles=(0, 0.6),
    soft_mm=(0.7, 2.2), dry=(0, 0.35), midline=((0, 2.5), (0, 0.25)))
LOOKS = {"phantom": NARROW, "wide": WIDE_LOOK}        # the sources of synthetic patients


def draw(rng: np.random.Generator, limits: Range) -> float:
    """A value between two limits; chance is not asked where they are one."""
    return limits[0] if limits[0] == limits[1] else float(rng.uniform(*limits))
