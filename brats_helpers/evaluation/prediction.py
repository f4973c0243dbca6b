"""From a trained network to one patient's segmentation: windows, flips, post-processing.

Overlapping windows are weighted by a Gaussian (Isensee et al. 2021), the probabilities of two or
eight mirrored views are averaged, and thresholds and small components follow Futrega et al. 2021
(arXiv:2110.03352, section 3.5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn
from tqdm import tqdm

from ..basics.config import Config
from ..basics.constants import MODALITIES
from ..basics.device import Device, describe_device
from ..data.cases import Patient
from ..data.preprocessing import brain_mask, network_input, prepare, restore
from .domain_shift import Ranges, outside_ranges
from .postprocessing import postprocess
from .refinement import Refiner, refine
from .sliding_window import FLIPS, OPPOSITE_FLIPS, predict_image

WINDOWS = 8  # of a patient at 1 mm


def passes(patients: int, tta: bool) -> int:
    """Estimate how often a network runs to segment a number of patients."""
    return patients * WINDOWS * len(FLIPS if tta else OPPOSITE_FLIPS)


def segment(models: Sequence[nn.Module], patient: Patient, config: Config, tta: bool | None = None,
            device: Device | None = None, training_ranges: Ranges | None = None,
            warn: Callable[[str], None] = lambda text: tqdm.write(f"WARNING: {text}"),
            refiner: Refiner | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return a patient's labels, (X, Y, Z) uint8, and probabilities, (3, X, Y, Z) float32.

    Both are on the scan's own grid. `training_ranges` come from `domain_shift.ranges`; `warn` gets
    a sentence if this patient lies far outside them. A `refiner` segments the tumor again, with
    smaller voxels.
    """
    prepared = prepare(patient, config.spacing_mm)
    absent = {name for name, image in zip(MODALITIES, patient.images, strict=True)
              if not image.any()}
    there = {key: pair for key, pair in (training_ranges or {}).items()
             if not absent & set(key.split())}
    if strange := outside_ranges(prepared.meta.fingerprint, there):
        warn(f"patient {patient.name} is unlike those that the network learned from, and the mask "
             f"may be wrong: {'; '.join(strange[:3])}. Look at the scans, then at the mask.")
    tta, device = config.tta if tta is None else tta, device or describe_device()
    found = predict_image(models, network_input(prepared, device), config.patch, config.overlap,
                          tta, device)
    probabilities = np.asarray(restore(found, prepared.meta))
    if refiner:
        probabilities = refine(probabilities, found, prepared.meta, patient, refiner, tta, device)
    labels = postprocess(probabilities, patient.spacing)
    # Interpolation may reach a voxel outside the brain.
    return labels * brain_mask(patient.images), probabilities
