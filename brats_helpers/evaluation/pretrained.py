"""Load the network in the box, which comes with the package and was trained on phantoms alone.

In `predict`, its refiner segments the tumor again, with smaller voxels. Both have one model card,
`brats_helpers/weights/README.md`.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..basics.config import Config
from ..basics.device import Device, describe_device
from .checkpoints import config_of, load_checkpoint, read_checkpoint

WEIGHTS = Path(__file__).parents[1] / "weights" / "varied.safetensors"
REFINER_WEIGHTS = WEIGHTS.with_name("refiner.safetensors")
FINE_TUNING_STEPS = 200  # few: a network soon memorizes a few patients


def pretrained_config() -> Config:
    """Read the configuration of the network in the box."""
    return config_of(read_checkpoint(WEIGHTS, describe_device()), WEIGHTS)


def fine_tuned(config: Config) -> bool:
    """Tell whether a network is so close to the network in the box that the refiner suits it."""
    return config.pretrained and config.epochs * config.steps <= FINE_TUNING_STEPS


def load_pretrained(device: Device | None = None) -> tuple[nn.Module, Config]:
    """Load the network in the box, in evaluation mode, and the configuration of its training."""
    return load_checkpoint(WEIGHTS, device)
