"""Load the network in the box, which comes with the package and was trained on phantoms alone.

In `predict`, its refiner (two more networks) segments the tumor again with smaller voxels. The
model card is `brats_helpers/weights/README.md`.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..basics.config import Config
from ..basics.device import Device, describe_device
from .checkpoints import config_of, hash_weights, load_checkpoint, read_checkpoint
from .refinement import MARGIN_MM, Refiner

WEIGHTS = Path(__file__).parents[1] / "weights" / "varied.safetensors"
# The first of these files also holds the figures of all networks together.
REFINER_WEIGHTS = tuple(WEIGHTS.with_name(f"refiner-{n}.safetensors") for n in (1, 2))
FINE_TUNING_RATE = 1e-4
FINE_TUNING_STEPS = 200  # few: a network soon memorizes a few patients


def pretrained_config() -> Config:
    """Read the configuration of the network in the box."""
    return config_of(read_checkpoint(WEIGHTS, describe_device()), WEIGHTS)


def fine_tuned(config: Config) -> bool:
    """Tell whether a network is still so close to these weights that the refiner suits it.

    It started from them, kept their voxel size, and trained only briefly at a low rate.
    """
    return (config.pretrained and config.learning_rate <= FINE_TUNING_RATE
            and config.epochs * config.steps <= FINE_TUNING_STEPS
            and config.spacing_mm == pretrained_config().spacing_mm)


def load_refiner(device: Device) -> Refiner:
    """Load the refiner, in evaluation mode."""
    models, configs = zip(*(load_checkpoint(path, device) for path in REFINER_WEIGHTS), strict=True)
    return Refiner(models, configs[0])


def refiner_settings(refiner: Refiner | None) -> list[object]:
    """List what decides the refiner's part of a mask; empty without one."""
    if refiner is None:
        return []
    return [MARGIN_MM, refiner.config,
            *(hash_weights(model.state_dict()) for model in refiner.models)]


def load_pretrained(device: Device | None = None) -> tuple[nn.Module, Config]:
    """Load the network in the box, in evaluation mode, and the configuration of its training."""
    return load_checkpoint(WEIGHTS, device)
