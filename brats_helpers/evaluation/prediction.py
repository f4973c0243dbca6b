"""From a trained network to a segmentation: windows, flips, post-processing, files.

Windows overlap and are weighted by a Gaussian (Isensee et al. 2021), eight flips are averaged as
probabilities, and thresholds and small components follow Futrega et al. 2021 (arXiv:2110.03352,
section 3.5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn
from tqdm import tqdm

from ..basics.config import Config
from ..basics.device import Device, describe_device
from ..basics.errors import BratsError
from ..data.cases import Patient, find_cases, read_case, write_mask
from ..data.preprocessing import brain_mask, prepare
from .build import for_inference
from .checkpoints import network_of, read_checkpoint
from .domain_shift import outside_ranges, union_of_ranges
from .postprocessing import postprocess
from .sliding_window import EVEN_FLIPS, FLIPS, predict_prepared

WINDOWS = 8                                           # of a patient at 1 mm


def passes(patients: int, tta: bool) -> int:
    """About how often a network runs to segment so many patients."""
    return patients * WINDOWS * len(FLIPS if tta else EVEN_FLIPS)


def segment(models: Sequence[nn.Module], patient: Patient, config: Config, tta: bool | None = None,
            device: Device | None = None, seen: Mapping[str, Sequence[float]] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels (X, Y, Z) and probabilities (3, X, Y, Z) of a patient, on the scan's own grid.

    seen: what the patients of the training looked like (`shift.ranges`); a patient who is unlike them brings a warning.
    """
    prepared = prepare(patient, config.spacing_mm)
    if strange := outside_ranges(prepared.meta.fingerprint, seen or {}):
        tqdm.write(f"WARNING: patient {patient.name} is unlike those that the network learnt from, and the mask may be "
                   f"wrong: {'; '.join(strange[:3])}. Look at the scans, then at the mask.")
    probabilities = predict_prepared(models, prepared, config.patch, config.overlap,
                                     config.tta if tta is None else tta, device)
    labels = postprocess(probabilities, patient.spacing)
    return labels * brain_mask(patient.images), probabilities     # interpolation may reach a voxel out of the brain


def predict_cases(folders: Sequence[Path], checkpoints: Sequence[Path], out: Path, tta: bool = False) -> Iterator[Path]:
    """Segment every patient in these folders into `out`/<case>.nii.gz, labels 0, 1, 2, 4, the input's geometry.

    Several checkpoints are averaged. Yields each file when it is complete.
    """
    device = describe_device()
    contents = [read_checkpoint(path, device) for path in checkpoints]
    loaded = [network_of(content, path, device) for content, path in zip(contents, checkpoints, strict=True)]
    seen = union_of_ranges([content.get("seen", {}) for content in contents])
    if not seen:
        tqdm.write("What the patients of this training looked like was not stored, or they were too few: whether yours are "
                   "like them is not checked.")
    config = loaded[0][1]
    if any((other.spacing_mm, other.patch) != (config.spacing_mm, config.patch) for _, other in loaded):
        raise BratsError("these checkpoints work at different voxel sizes or patches and cannot be averaged: give those "
                         "of one cross-validation.")
    cases = [case for folder in folders for case in find_cases(Path(folder))]
    if twice := sorted({case.name for case in cases if sum(other.name == case.name for other in cases) > 1}):
        raise BratsError(f"two patients are called {', '.join(twice)}: their masks would overwrite each other.")
    models = [for_inference(model, device, passes(len(cases), tta)) for model, _ in loaded]
    for case in tqdm(cases, desc="predict", unit="patient"):
        patient = read_case(case)
        labels, _ = segment(models, patient, config, tta, device, seen)
        target = Path(out) / f"{case.name}.nii.gz"
        write_mask(target, labels, patient.affine, case)
        yield target
