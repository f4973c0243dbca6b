"""Write and read checkpoints, and rebuild their networks.

A checkpoint is a dictionary of plain values and tensors, read with `weights_only=True`, so that a
file from elsewhere can run no code. Its network is rebuilt from the configuration in it, which
may import only MONAI (see `build`). Weights to share are stored as safetensors, with the rest of
the dictionary as JSON in the file's header.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..basics.config import Config
from ..basics.constants import CHANNELS, REGIONS
from ..basics.device import Device, describe_device
from ..basics.errors import BratsError
from ..basics.files import GZIP, atomic_path
from ..basics.shapes import NUMBER, mismatch
from .build import build_network
from .domain_shift import MIN_MARGIN

FORMAT = 1  # of the file
STATE_DICT = {...: Tensor}
# What a checkpoint may hold. USUAL rebuilds a network, RESUMED a training; `predict` uses the rest.
PARTS = {
    "format": int, "config": dict, "channels": (tuple, list), "regions": (tuple, list),
    "average": STATE_DICT, "fingerprint": str, "step": int, "best": NUMBER, "seconds": NUMBER,
    "losses": list, "seen": {...: [NUMBER]}, "history": [dict], "rate_factor": NUMBER,
    "n_averaged": int, "model": STATE_DICT, "optimizer": dict, "scaler": dict,
    "trust": {...: NUMBER}, "by_modalities": {...: [NUMBER]}}
USUAL = ("format", "config", "channels", "regions", "average")
RESUMED = (*USUAL, "fingerprint", "step", "best", "seconds", "losses", "history", "rate_factor",
           "n_averaged", "model", "optimizer", "scaler")  # what training goes on from
DAMAGE = (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError,
          TypeError, OverflowError, AssertionError, struct.error, zipfile.BadZipFile, zlib.error,
          pickle.UnpicklingError)
# First bytes of other files. A pickle alone is what torch wrote before version 1.6.
OTHERS = {GZIP: "a gzip file, perhaps a scan", b"\x89HDF": "HDF5",
          b"\x80": "a pickle, perhaps an old torch file", b"\x5c\x01\0\0": "a NIfTI scan",
          b"\x08": "perhaps ONNX", b"{": "JSON", b"version https": "a Git LFS pointer"}
ZIP_END, ZIP_END_SIZE = b"PK\5\6", 22  # the last record of torch's files
SAFETENSORS = ".safetensors"
ADVICE = "name a checkpoint that this project wrote, best.pt or last.pt"


def _described(config: Config, content: dict) -> dict:
    return {"format": FORMAT, "config": asdict(config), "channels": CHANNELS,
            "regions": tuple(REGIONS), **content}


def write_checkpoint(path: Path, config: Config, content: dict) -> None:
    """Write a checkpoint atomically, with its format, settings and what the channels mean."""
    whole = _described(config, content)
    # Given a path, torch would write its name into the file.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(whole, file)


def read_checkpoint(path: Path, device: Device, needs: Iterable[str] = USUAL) -> dict:
    """Read a checkpoint that has at least the parts in `needs`.

    Raises BratsError if it is missing, damaged, or not one of ours.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted([*path.glob("*.pt"), *path.glob("checkpoints/*.pt")],
                       key=lambda p: (p.name not in ("best.pt", "last.pt"), p))
        inside = (f": name one of the files in it, {', '.join(map(str, found[:4]))}" if found
                  else " without a checkpoint")
        raise BratsError(f"{path} is a folder{inside}.")
    if not path.is_file():
        raise BratsError(f"{path} is missing: train first (notebook 05), or name another "
                         "checkpoint.")
    try:
        if path.suffix.lower() == SAFETENSORS:
            return _check(path, _read_safetensors(path, device), needs)
        names = _names_in_whole_zip(path)
        if not any(name.endswith("/data.pkl") for name in names) or any(
                "/code/" in name for name in names):
            raise BratsError(f"{path} is not a checkpoint of this project but another kind of zip "
                             f"file (it holds {', '.join(names[:2])}): {ADVICE}.")
        content = torch.load(path, map_location=device.torch_device, weights_only=True)
    except DAMAGE as error:
        raise BratsError(_unreadable(path, error)) from error
    return _check(path, content, needs)


def write_safetensors(path: Path, config: Config, content: dict) -> None:
    """Write weights to share: `content` is a checkpoint's, without what training needs."""
    from safetensors.torch import save_file
    values = _described(config, content)
    tensors = {name: value.contiguous() for name, value in sorted(values.pop("average").items())}
    values["weights"] = hash_weights(tensors)  # reveals damage, as a .pt's own checksum does
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"checkpoint": json.dumps(values)})


def _read_safetensors(path: Path, device: Device) -> dict:
    """Read what `write_safetensors` wrote; other files raise one of DAMAGE."""
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, "pt", device=str(device.torch_device)) as file:
            values = json.loads((file.metadata() or {}).get("checkpoint", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if not isinstance(values, dict):
        return tensors
    if values.pop("weights", None) != hash_weights(dict(sorted(tensors.items()))):
        raise ValueError("its weights do not match their checksum")
    return {**values, "average": tensors}


def _names_in_whole_zip(path: Path) -> list[str]:
    """List what torch's file, a zip, holds; OSError if its checksums or its end are wrong."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise OSError(f"{damaged} does not match its checksum")
    with open(path, "rb") as file:
        file.seek(-ZIP_END_SIZE, os.SEEK_END)
        if file.read(4) != ZIP_END:
            raise OSError("other bytes follow its end")
    return archive.namelist()


def _unreadable(path: Path, error: Exception) -> str:
    """Say why a file is no checkpoint, by its first bytes."""
    try:
        with open(path, "rb") as file:
            first = file.read(16)
    except OSError as problem:
        return (f"{path} cannot be read as a checkpoint ({problem.strerror}): allow it (chmod), "
                "or name another one.")
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, pickle.UnpicklingError):  # torch's text advises to run foreign code
        reason = "it holds other objects than tensors and plain values"
    if first.startswith(b"PK") and not isinstance(error, pickle.UnpicklingError):
        return (f"{path} cannot be read as a checkpoint ({reason}): it may be cut short or "
                "damaged. Name another checkpoint; to train on from an older one, move this file "
                "away.")
    if path.suffix.lower() == SAFETENSORS:
        return (f"{path} cannot be read as a checkpoint ({reason}): it is damaged, or another "
                f"program wrote it; {ADVICE}, or leave out --checkpoint.")
    kind = next((kind for magic, kind in OTHERS.items() if first.startswith(magic)), reason)
    kind = "empty" if not first else "safetensors" if first[8:10] == b'{"' else kind
    return (f"{path} cannot be read as a checkpoint ({kind}): it is not a checkpoint of this "
            f"project; {ADVICE}.")


def _check(path: Path, content: object, needs: Iterable[str]) -> dict:
    """Return the content; BratsError if it is not from a checkpoint of this project."""
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        held = (f" (it holds {', '.join(map(str, list(content)[:3]))})"
                if isinstance(content, dict) and content else "")
        raise BratsError(f"{path} is not a checkpoint of this project{held}: {ADVICE}.")
    if content["format"] != FORMAT:
        raise BratsError(f"{path} is not a checkpoint of this version (format {FORMAT}, found "
                         f"{content['format']}): use the version of the module that wrote it.")
    wanted = {name: shape for name, shape in PARTS.items() if name in content or name in needs}
    problem = mismatch(content, wanted, "the checkpoint")
    if not problem and any(len(pair) != 2 or str(key).split(" ")[0] not in MIN_MARGIN
                           for key, pair in content.get("seen", {}).items()):
        problem = "'seen' does not describe patients"
    if problem:
        raise BratsError(
            f"{path} is not a complete checkpoint of this project ({problem}): {ADVICE}.")
    for what, ours in (("channels", CHANNELS), ("regions", tuple(REGIONS))):
        if tuple(content[what]) != ours:
            raise BratsError(
                f"{path} was trained with the {what} {', '.join(map(str, content[what]))}, and "
                f"this version uses {', '.join(ours)}: its predictions would be wrong.")
    return content


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Hash all weights to sixteen characters."""
    digest = hashlib.sha256()
    for value in weights.values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_weights(model: nn.Module, weights: dict, path: Path) -> None:
    """Put weights into a network; BratsError if they are of another architecture."""
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:  # the latter two: a name is not text
        raise BratsError(f"{path} does not fit the network that its own settings describe "
                         f"({str(error).splitlines()[-1].strip()}): it was changed, or is "
                         "damaged.") from error


def load_checkpoint(path: Path, device: Device | None = None) -> tuple[nn.Module, Config]:
    """Load a checkpoint's averaged network, in evaluation mode, and its configuration.

    BratsError if the file is missing, damaged or not one of ours.
    """
    device = device or describe_device()
    return network_of(read_checkpoint(path, device), path, device)


def config_of(content: dict, path: Path) -> Config:
    """Read the configuration in a checkpoint; BratsError names the file if it is not one."""
    try:
        return Config.from_dict(content["config"])
    except BratsError as error:
        raise BratsError(
            f"{path}: the settings in it are not those of this project: {error}") from error


def network_of(content: dict, path: Path, device: Device) -> tuple[nn.Module, Config]:
    """Rebuild the network of a checkpoint that was read, as `load_checkpoint` does."""
    config = config_of(content, path)
    model = build_network(config, device, from_checkpoint=True)
    load_weights(model, content["average"], path)
    return model.eval(), config
