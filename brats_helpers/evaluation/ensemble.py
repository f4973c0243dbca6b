"""Load several networks as one, which averages their probabilities and has a tag."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from tqdm import tqdm

from ..basics.config import Config
from ..basics.device import Device, describe_device
from ..basics.errors import BratsError
from ..data.cases import Case
from ..data.pipeline import content_hash
from .build import for_inference
from .checkpoints import network_of, read_checkpoint, weights_tag
from .domain_shift import union_of_ranges
from .postprocessing import POSTPROCESSING
from .prediction import passes


@dataclass(frozen=True)
class Ensemble:
    """Hold networks to average, and all else that decides a mask besides the scans."""

    models: Sequence[nn.Module]
    config: Config
    tta: bool
    seen: dict  # `domain_shift.ranges` of the trainings
    device: Device
    tag: str  # changes with the weights and the options

    def compiled(self, patients: int) -> Ensemble:
        """Prepare the networks for this number of patients: compiled where that is worth it."""
        number = passes(patients, self.tta)
        models = [for_inference(model, self.device, number) for model in self.models]
        return replace(self, models=models)


def load_ensemble(checkpoints: Sequence[Path], tta: bool) -> Ensemble:
    """Load networks that work at the same voxel size and patch; BratsError where they do not."""
    device = describe_device()
    contents = [read_checkpoint(path, device) for path in checkpoints]
    loaded = [network_of(content, path, device)
              for content, path in zip(contents, checkpoints, strict=True)]
    seen = union_of_ranges([content.get("seen", {}) for content in contents])
    if not seen:
        tqdm.write("The checkpoint does not say what its training patients looked like, or they "
                   "were too few: whether yours are like them is not checked.")
    config = loaded[0][1]
    if len({(other.spacing_mm, other.patch) for _, other in loaded}) > 1:
        raise BratsError("these checkpoints work at different voxel sizes or patches and cannot be "
                         "averaged: give those of one cross-validation.")
    networks = sorted((other.network, weights_tag(model.state_dict())) for model, other in loaded)
    tag = _hash([config.spacing_mm, config.patch, config.overlap, tta, POSTPROCESSING, *networks])
    return Ensemble([model for model, _ in loaded], config, tta, seen, device, tag)


def made_from(case: Case, ensemble: Ensemble) -> str:
    """Hash the scans, the networks and the options; "" where scans are missing."""
    try:
        scans = "" if case.problem else content_hash(case, ensemble.config.spacing_mm)
    except BratsError:  # the check names it
        scans = ""
    return scans and _hash(f"{scans} {case.channels} {ensemble.tag}")


def _hash(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()[:16]
