"""Checkpoints: what is in one, and how a network comes back from it.

A checkpoint is a dictionary of plain values and tensors, read with `weights_only=True`, so that a
file from elsewhere can run no code. It holds the configuration that its network is rebuilt from, for which nothing is
imported either (see `networks`).
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..basics.config import Config
from ..basics.constants import CHANNELS, REGIONS
from ..basics.device import Device, describe_device
from ..basics.errors import BratsError
from ..basics.files import atomic_path
from .build import build_network

FORMAT = 1                                            # of the file


def write_checkpoint(path: Path, config: Config, content: dict) -> None:
    """Write a checkpoint atomically: the content, and beside it the format, the configuration and what channels mean."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:  # given a path, torch writes its name into the file
        torch.save({"format": FORMAT, "config": asdict(config), "channels": CHANNELS, "regions": tuple(REGIONS),
                    **content}, file)


def read_checkpoint(path: Path, device: Device) -> dict:
    """The content of a checkpoint; BratsError where it is missing, damaged or not one of ours."""
    if not Path(path).is_file():
        raise BratsError(f"{path} is missing: train first (notebook 05), or name another checkpoint.")
    try:
        with zipfile.ZipFile(path) as archive:        # torch's file is a zip: each entry carries its checksum
            if damaged := archive.testzip():
                raise OSError(f"{damaged} does not match its checksum")
        content = torch.load(path, map_location=device.torch_device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error,
            pickle.UnpicklingError) as error:
        raise BratsError(f"{path} cannot be read as a checkpoint ({error}): it may be cut short; "
                         "delete it, and train on from an older one.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise BratsError(f"{path} is not a checkpoint of this version (format {FORMAT}, found {found}): use the version of "
                         "the module that wrote it.")
    for what, ours in (("channels", CHANNELS), ("regions", tuple(REGIONS))):
        if tuple(content[what]) != ours:
            raise BratsError(f"{path} was trained with the {what} {', '.join(content[what])}, and this version uses "
                             f"{', '.join(ours)}: its predictions would be wrong.")
    return content


def weights_tag(weights: Mapping[str, Tensor]) -> str:
    """Sixteen characters that change with any weight."""
    digest = hashlib.sha256()
    for value in weights.values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_weights(model: nn.Module, weights: dict, path: Path) -> None:
    """Put weights into a network; BratsError where they are of another architecture."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise BratsError(f"{path} does not fit the network that its own settings describe "
                         f"({str(error).splitlines()[-1].strip()}): it was changed, or is damaged.") from error


def load_checkpoint(path: Path, device: Device | None = None) -> tuple[nn.Module, Config]:
    """The averaged network of a checkpoint, in evaluation mode, and the configuration that it was trained with."""
    device = device or describe_device()
    return network_of(read_checkpoint(path, device), path, device)


def network_of(content: dict, path: Path, device: Device) -> tuple[nn.Module, Config]:
    """`load_checkpoint` of one that has been read already."""
    config = Config.from_dict(content["config"])
    model = build_network(config, device, from_checkpoint=True)
    load_weights(model, content["average"], path)
    return model.eval(), config
