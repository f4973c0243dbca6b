"""The state of a training on disk: saved, found again, and continued to the same bits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ..basics.config import Config
from ..basics.device import Device
from ..basics.errors import BratsError
from ..basics.files import remove_leftovers
from ..data.storage import open_volume
from ..evaluation.checkpoints import (
    RESUMED,
    hash_weights,
    load_weights,
    read_checkpoint,
    write_checkpoint,
)
from ..evaluation.domain_shift import ranges
from . import distributed
from .state import State, new_state

# Settings that do not change what is trained.
IRRELEVANT = ("preset", "patients", "test_patients", "tta", "on_nan", "tensorboard")


def create_or_resume(config: Config, training: Sequence[Path], validation: Sequence[Path],
                     folder: Path, device: Device, start: Path | None) -> tuple[State, str]:
    """Return the state to train from, new or the last in `folder`, and its hash.

    Both are the same in all processes. BratsError if a batch cannot be shared equally, or if the
    processes do not see the same folder.
    """
    check_shares(config, distributed.world_size())
    state, run_hash = _build(config, training, validation, device, start)
    with distributed.rank_zero_first():  # it may move a folder of other settings
        remove_leftovers(folder)
        resume(state, folder, run_hash, config, device)
    if len(set(distributed.gather([state.step]))) > 1:
        raise BratsError(f"not all processes find the same checkpoint in {folder}: all machines "
                         "must share that folder.")
    return state, run_hash


def check_shares(config: Config, processes: int) -> None:
    """Raise BratsError if the processes cannot share a batch equally."""
    if config.batch % processes:
        raise BratsError(f"batch={config.batch} cannot be shared equally by {processes} processes: "
                         f"choose a multiple of {processes} for batch, which counts the patches of "
                         "all, or fewer processes.")


def _build(config: Config, training: Sequence[Path], validation: Sequence[Path], device: Device,
           start: Path | None) -> tuple[State, str]:
    """Build a new state, with random weights or those of a checkpoint, and its hash."""
    state = new_state(config, device)
    weights = None
    patients = [*training, *validation]
    if start:
        weights = read_checkpoint(start, device)["average"]
        for model in (state.model, state.ema.module):
            load_weights(model, weights, start)
    run_hash = distributed.broadcast_from_rank_zero(lambda: hash_run(config, patients, weights))
    state.training_ranges = ranges([open_volume(path)[1].fingerprint for path in training])
    return state, run_hash


def hash_run(config: Config, patients: Sequence[Path],
             start: Mapping[str, Tensor] | None = None) -> str:
    """Hash every setting and patient that the weights or the choice of the best depend on."""
    settings = {k: v for k, v in asdict(config).items() if k not in IRRELEVANT}
    before = [hash_weights(start)] if start else []
    sources = [[p.name, open_volume(p)[1].content_hash] for p in patients]
    text = json.dumps([settings, sources, *before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def save(state: State, folder: Path, config: Config, run_hash: str) -> None:
    """Write the state to last.pt; the checkpoint before it becomes before.pt."""
    if distributed.rank() == 0:
        if (folder / "last.pt").is_file():
            os.replace(folder / "last.pt", folder / "before.pt")
        content = {"fingerprint": run_hash, **state.state_dict()}
        write_checkpoint(folder / "last.pt", config, content)
    distributed.barrier()  # no process goes on before it is on disk


def newest(folder: Path, device: Device) -> dict | None:
    """Read last.pt or, with a warning if it is damaged, before.pt; None if there is neither."""
    problem = None
    for path in (folder / "last.pt", folder / "before.pt"):
        if path.is_file():
            try:
                return read_checkpoint(path, device, RESUMED)
            except BratsError as error:
                problem = error
                tqdm.write(f"WARNING: {error} The checkpoint before it is used, if there is one.")
    if problem:
        raise problem
    return None


def resume(state: State, folder: Path, run_hash: str, config: Config, device: Device) -> None:
    """Load the last checkpoint with this hash; move one of other settings aside."""
    content = newest(folder, device)
    if content and content["fingerprint"] != run_hash:
        _set_aside(folder, content["fingerprint"])
        content = None
    if not content and _bring_back(folder, run_hash):
        content = newest(folder, device)
    if content:
        state.load_state_dict(content)
        total = config.epochs * config.steps
        if state.step < total:
            tqdm.write(f"going on from step {state.step} of {total} ({folder})")


def _set_aside(folder: Path, run_hash: str) -> None:
    aside = folder.with_name(f"{folder.name}.{run_hash}")
    tqdm.write(f"{folder} was trained with other settings or patients: kept in {aside}.")
    if aside.is_dir():  # of the same settings: the newer is kept
        shutil.rmtree(aside)
    folder.rename(aside)


def _bring_back(folder: Path, run_hash: str) -> bool:
    """Restore the folder of an earlier training with these settings; False if there is none."""
    earlier = folder.with_name(f"{folder.name}.{run_hash}")
    if not earlier.is_dir():
        return False
    if folder.is_dir():  # it has no checkpoint: that training ended before its first
        shutil.rmtree(folder)
    earlier.rename(folder)
    return True
