"""The kinds of synthetic cohorts: what their patients have in common, and how far they differ."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

VERSION = 2  # raised whenever the same seed gives other voxels
WIDE_REVISION = 2  # the same, if only the wide kind has changed

# Mean intensity of each tissue in each modality; white matter on T1 is 1.
#                            CSF   GM    WM    NCR   ED    ET
NARROW_CONTRAST = np.array([[0.22, 0.73, 0.54, 0.40, 0.86, 0.66],  # FLAIR: fluid dark, edema bright
                            [0.25, 0.68, 1.00, 0.42, 0.54, 0.66],  # T1: tumor, edema below WM
                            [0.27, 0.70, 1.00, 0.36, 0.54, 1.55],  # T1CE: ET takes up gadolinium
                            [1.05, 0.60, 0.42, 1.00, 0.94, 0.68]])  # T2: water is bright
# The wide cohort's patients differ as scanners and tumors do, by these log-normal deviations.
WIDE_CONTRAST = np.array([[0.30, 0.74, 0.62, 0.96, 0.86, 0.88],
                          [0.32, 0.78, 1.00, 0.84, 0.87, 0.92],
                          [0.34, 0.78, 1.00, 0.72, 0.77, 1.24],
                          [1.35, 0.68, 0.52, 0.98, 0.79, 0.76]])
WIDE_CONTRAST_SPREAD = np.array([[0.20, 0.08, 0.08, 0.18, 0.12, 0.12],
                                 [0.20, 0.07, 0.05, 0.16, 0.10, 0.12],
                                 [0.20, 0.07, 0.05, 0.12, 0.08, 0.18],
                                 [0.20, 0.08, 0.10, 0.20, 0.12, 0.14]])
Range = tuple[float, float]  # a patient's value is drawn from it; equal limits: one value for all


@dataclass(frozen=True)
class TumorVariation:
    """Where tumors are and how they are shaped."""

    kind_probabilities: tuple[float, float, float] = (0.82, 0.09, 0.09)  # ring, no ET, ET only
    second_probability: float = 0.14  # of a second tumor
    rim_share: Range = (0.20, 0.38)  # thickness of the enhancing rim, in core radii,
    rim_extra_mm: float = 1.8  # to which this is added
    # From the middle of the brain: to either side, forward, up.
    center_mm: tuple[Range, Range, Range] = ((18, 42), (-55, 45), (-5, 42))
    edema_mm: Range = (2, 22)
    stretch: Range = (0.8, 1.25)  # of the core along each axis
    coarse_roughness: Range = (0.16, 0.16)  # of the core's boundary, in core radii
    fine_roughness: Range = (0.09, 0.09)
    rim_roughness: Range = (0.15, 0.15)  # relative to its thickness
    rim_roughness_mm: Range = (10, 10)  # the length over which it changes
    edema_patchiness: float = 0


@dataclass(frozen=True)
class TissueVariation:
    """How bright tissues are, how they mix, and what else in the brain is bright."""

    contrast: np.ndarray = field(default_factory=NARROW_CONTRAST.copy)  # (4 modalities, 6 tissues)
    contrast_spread: float | np.ndarray = 0.05  # log-normal
    cyst_probability: float = 1  # of necrosis with another brightness on FLAIR,
    cyst_factor: Range = (0.5, 1.5)  # multiplied by this
    distinct_tumor: bool = False  # edema and ET always stand out, as those that experts outline
    tumor_mottling: Range = (0, 0)  # unevenness inside a tissue, log-normal
    healthy_mottling: Range = (0, 0)
    boundary_mm: Range = (0.7, 0.7)  # softness of the edge of a compartment
    edema_edge_strength: float = 0.70  # rises to 1 in the depth of
    edema_full_mm: float = 8
    edema_waviness: float = 0.08
    # White matter hyperintensities of age:
    spots_near_fluid: Range = (2.5, 2.5)
    spots_rarity: Range = (1.9, 3.0)
    spots_strength: Range = (0.7, 0.7)
    spots_least_white: Range = (0.6, 0.6)  # the fraction of white matter where they occur
    vessels: Range = (0.8, 0.8)  # brightness on T1CE
    sinuses: Range = (0, 0)  # brightness on T1CE of the sinuses and falx between the halves
    midline_cortex: Range = (0, 0)  # brightness on FLAIR of the cortex beside them
    ventricle_enlargement: Range = (0, 0)  # x: by a factor of 1 / (1 - x), as with age
    unassigned_tissue: Range = (0, 0)  # share of what the template leaves open


@dataclass(frozen=True)
class ScannerVariation:
    """What the scanner adds to a modality."""

    texture: Range = (0.05, 0.05)  # of the tissue itself, relative
    blur_mm: float = 0  # at most
    bias: tuple[Range, Range, Range, Range] = (
        (0.16, 0.16), (0.12, 0.12), (0.12, 0.12), (0.14, 0.14))  # smooth shading, log-normal
    noise: Range = (0.025, 0.025)  # Rician, relative to white matter


@dataclass(frozen=True)
class PhantomVariation:
    """How the patients of a synthetic cohort may differ."""

    tumor: TumorVariation = field(default_factory=TumorVariation)
    tissue: TissueVariation = field(default_factory=TissueVariation)
    scanner: ScannerVariation = field(default_factory=ScannerVariation)


NARROW = PhantomVariation()
WIDE_LOOK = PhantomVariation(
    TumorVariation(
        kind_probabilities=(0.80, 0.08, 0.12), second_probability=0.25, rim_share=(0.08, 0.4),
        rim_extra_mm=1.2, center_mm=((8, 50), (-62, 52), (-25, 48)), edema_mm=(1, 26),
        stretch=(0.65, 1.5), coarse_roughness=(0.1, 0.35), fine_roughness=(0.05, 0.2),
        rim_roughness=(0.1, 0.7), rim_roughness_mm=(5, 12), edema_patchiness=0.2),
    TissueVariation(
        contrast=WIDE_CONTRAST, contrast_spread=WIDE_CONTRAST_SPREAD, cyst_probability=0.06,
        cyst_factor=(0.35, 0.7), distinct_tumor=True, tumor_mottling=(0.02, 0.16),
        healthy_mottling=(0.02, 0.12), boundary_mm=(0.7, 2.2), edema_edge_strength=0.80,
        edema_full_mm=5, spots_near_fluid=(1.5, 4), spots_rarity=(1.1, 3.0),
        spots_strength=(0.4, 0.9), spots_least_white=(0.2, 0.6), vessels=(0.8, 3.5),
        sinuses=(0, 2.5), midline_cortex=(0, 0.25), ventricle_enlargement=(0, 0.6),
        unassigned_tissue=(0, 0.35)),
    ScannerVariation(
        texture=(0.01, 0.06), blur_mm=1.2, bias=((0.02, 0.22),) * 4, noise=(0.003, 0.03)))
LOOKS = {"phantom": NARROW, "wide": WIDE_LOOK}  # the sources of synthetic patients


def draw(rng: np.random.Generator, limits: Range) -> float:
    """Draw a value between two limits; equal limits consume no randomness."""
    return limits[0] if limits[0] == limits[1] else float(rng.uniform(*limits))
