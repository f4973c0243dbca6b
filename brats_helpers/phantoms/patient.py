"""A synthetic cohort: tumors grown in the MNI152 template, written exactly as BraTS 2021 is.

The anatomy is the ICBM 2009a template that nilearn ships (Fonov et al. 2011,
doi:10.1016/j.neuroimage.2010.07.033), deformed anew for every patient. What each compartment looks
like in each contrast follows the BraTS annotation protocol (Baid et al. 2021, arXiv:2107.02314,
section 2.2). It is a stand-in for teaching and tests, and every picture of it says "synthetic".
"""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from ..basics.constants import ET, NCR
from ..data.cases import Patient
from ..data.preprocessing import Prepared, prepare
from .anatomy import _points, anatomy, brats_affine
from .contrasts import compose
from .kinds import LOOKS, NARROW, VERSION, Look, draw
from .lesions import _rank, grow, plan_lesions

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


def some_phantoms(kind: str, number: int, spacing_mm: float, seed: int = 9) -> list[Prepared]:
    """A few phantoms of a kind (of `phantom.LOOKS`), prepared, in memory: to look at beside a cohort."""
    made = (make_patient(seed, n, spacing_mm, LOOKS[kind]) for n in range(number))
    return [prepare(patient, spacing_mm) for patient in tqdm(made, total=number, desc="phantoms", unit="patient")]
