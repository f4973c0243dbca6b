"""Checkpoints: what is in one, and how a network comes back from it.

A checkpoint is a dictionary of plain values and tensors, read with `weights_only=True`, so that a
file from elsewhere can run no code. It holds the configuration that its network is rebuilt from.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from .config import Config
from .constants import CHANNELS, REGIONS
from .device import Device, describe_device
from .errors import BratsError
from .files import atomic_path
from .unet import UNet

FORMAT = 1                                            # of the file


def write_checkpoint(path: Path, config: Config, content: dict) -> None:
    """Write a checkpoint atomically: the content, and beside it the format, the configuration and what channels mean."""
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, "config": asdict(config), "channels": CHANNELS, "regions": tuple(REGIONS),
                    **content}, temporary)


def read_checkpoint(path: Path, device: Device) -> dict:
    """The content of a checkpoint; BratsError where it is missing, damaged or not one of ours."""
    if not Path(path).is_file():
        raise BratsError(f"{path} is missing: train first (notebook 05), or name another checkpoint.")
    try:
        content = torch.load(path, map_location=device.torch_device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise BratsError(f"{path} cannot be read as a checkpoint ({error}): it may be cut short; "
                         "delete it, and train on from an older one.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BratsError(f"{path} is not a checkpoint of this version (format {FORMAT}).")
    return content


def load_checkpoint(path: Path, device: Device | None = None) -> tuple[nn.Module, Config]:
    """The averaged network of a checkpoint, in evaluation mode, and the configuration that it was trained with."""
    device = device or describe_device()
    content = read_checkpoint(path, device)
    config = Config.from_dict(content["config"])
    model = UNet(config.filters).to(device.torch_device)
    model.load_state_dict(content["average"])
    return model.eval(), config
