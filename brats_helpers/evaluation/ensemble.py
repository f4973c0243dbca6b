"""Load several networks as one, which averages their probabilities and has a tag."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from tqdm import tqdm

from ..basics.config import Config
from ..basics.constants import MODALITIES, REGIONS
from ..basics.device import Device, describe_device
from ..basics.errors import BratsError
from ..data.cases import Case
from ..data.labels import scheme_of
from ..data.pipeline import content_hash
from .build import for_inference
from .checkpoints import hash_weights, network_of, read_checkpoint
from .domain_shift import union_of_ranges
from .postprocessing import POSTPROCESSING
from .prediction import passes
from .pretrained import (
    REFINER_WEIGHTS,
    WEIGHTS,
    fine_tuned,
    load_refiner,
    refiner_settings,
)
from .refinement import Refiner


@dataclass(frozen=True)
class Ensemble:
    """Networks whose probabilities are averaged, and all that decides a mask besides the scans."""

    models: Sequence[nn.Module]
    config: Config
    tta: bool
    training_ranges: dict[str, list[float]]  # `domain_shift.ranges` of the training runs
    device: Device
    refiner: Refiner | None  # segments the tumor again, with smaller voxels
    tag: str  # changes with the weights and the options
    takes_incomplete: bool  # all networks have learned from patches that lacked modalities
    by_modalities: dict  # "flair t2" -> Dice of WT, TC, ET with these alone, where measured
    least_dice: float  # an expected Dice below it brings a warning

    def compiled(self, patients: int) -> Ensemble:
        """Return a copy for this number of patients, compiled if that is worth it."""
        number = passes(patients, self.tta)

        def ready(models: Sequence[nn.Module]) -> list[nn.Module]:
            return [for_inference(model, self.device, number) for model in models]
        refiner = self.refiner and replace(self.refiner, models=ready(self.refiner.models))
        return replace(self, models=ready(self.models), refiner=refiner)

    def cost_of(self, case: Case) -> list[str]:
        """Say what a patient lacks and what that costs, by the network's own table."""
        if not case.missing:
            return []
        present = " ".join(name for name in MODALITIES if name not in case.missing)
        said = f"patient {case.name} has no {', '.join(case.missing)}: the mask is less exact"
        scores, whole = (self.by_modalities.get(key) for key in (present, " ".join(MODALITIES)))
        if scores and whole:
            pairs = ", ".join(f"{name} {a:.2f} instead of {b:.2f}"
                              for name, a, b in zip(REGIONS, scores, whole, strict=True))
            said += f" (Dice on development patients: {pairs})"
        return [f"{said}. {case.hint}" if case.hint else said]


def load_ensemble(checkpoints: Sequence[Path] | None, tta: bool) -> Ensemble:
    """Load networks that work at the same voxel size and patch; BratsError if they do not.

    Without checkpoints, load the network in the box. The refiner comes with it, and with networks
    that are `fine_tuned` from it.
    """
    device, paths = describe_device(), checkpoints or [WEIGHTS]
    contents = [read_checkpoint(path, device) for path in paths]
    loaded = [network_of(content, path, device)
              for content, path in zip(contents, paths, strict=True)]
    close = not checkpoints or all(fine_tuned(config) for _, config in loaded)
    refiner = load_refiner(device) if close else None
    # The figures are those of the network in the box with its refiner.
    about = {} if checkpoints else read_checkpoint(REFINER_WEIGHTS[0], device)
    training_ranges = union_of_ranges([content.get("seen", {}) for content in contents])
    if not training_ranges:
        tqdm.write("The checkpoint does not describe its training patients, or had too few: your "
                   "patients are not compared with them.")
    config = loaded[0][1]
    if len({(other.spacing_mm, other.patch) for _, other in loaded}) > 1:
        raise BratsError("these checkpoints work at different voxel sizes or patches and cannot be "
                         "averaged: give those of one cross-validation.")
    settings = [config.spacing_mm, config.patch, config.overlap, tta, POSTPROCESSING,
                *sorted((other.network, hash_weights(model.state_dict()))
                        for model, other in loaded), *refiner_settings(refiner)]
    tag = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    return Ensemble([model for model, _ in loaded], config, tta, training_ranges, device, refiner,
                    tag, all(other.modality_dropout for _, other in loaded),
                    about.get("by_modalities", {}), about.get("trust", {}).get("least_dice", 0.0))


def made_from(case: Case, ensemble: Ensemble) -> str:
    """Hash the scans, the networks and the options to 16 characters; "" if scans are missing."""
    try:
        scans = "" if case.problem else content_hash(case, ensemble.config.spacing_mm)
    except BratsError:  # the check names it
        scans = ""
    text = f"{scans} {case.channels} {' '.join((*case.missing, ensemble.tag))}"
    if case.labels:
        text += f" {scheme_of(case).on_disk}"
    return scans and hashlib.sha256(text.encode()).hexdigest()[:16]
