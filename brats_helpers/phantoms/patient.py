"""A synthetic patient: tumors grown in the MNI152 template, seen in four modalities.

Each compartment looks in each modality as the BraTS annotation protocol describes it (Baid et al.
2021, arXiv:2107.02314, section 2.2). Phantoms are for teaching and tests, and every picture of one
says "synthetic".
"""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from ..basics.constants import ET, NCR
from ..data.cases import Patient
from ..data.preprocessing import Prepared, prepare
from .anatomy import anatomy, brats_affine, coordinates_mm
from .contrasts import compose
from .kinds import LOOKS, NARROW, VERSION, PhantomVariation, draw
from .lesions import grow, plan_lesions, size_rank


def make_patient(seed: int, index: int, spacing_mm: float = 2.0,
                 variation: PhantomVariation = NARROW) -> Patient:
    """Make patient number `index` of the cohort `seed`; both always give the same voxels."""
    rng = np.random.default_rng([seed, index, VERSION])
    lesions = plan_lesions(rng, size_rank(seed, index), variation.tumor)
    place = coordinates_mm(spacing_mm)
    enlargement = draw(rng, variation.tissue.ventricle_enlargement)
    tissue = anatomy(rng, place, lesions, spacing_mm, enlargement)
    labels = np.zeros(tissue.shape[1:], np.uint8)
    for lesion in lesions:
        grown = grow(rng, place, lesion, tissue, spacing_mm, variation.tumor)
        labels = np.where((labels == 0) | np.isin(grown, (NCR, ET)), grown, labels)
    images = compose(rng, tissue, labels, spacing_mm, variation)
    return Patient(f"BraTS2021_{index:05d}", images, labels, brats_affine(spacing_mm))


def some_phantoms(kind: str, number: int, spacing_mm: float, seed: int = 9) -> list[Prepared]:
    """Make and prepare a few phantoms of a kind in LOOKS, in memory, to compare with a cohort."""
    made = (make_patient(seed, n, spacing_mm, LOOKS[kind]) for n in range(number))
    progress = tqdm(made, total=number, desc="phantoms", unit="patient")
    return [prepare(patient, spacing_mm) for patient in progress]
