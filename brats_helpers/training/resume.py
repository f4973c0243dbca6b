"""The state of a training on disk: saved, found again, and continued to the same bits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

from ..basics.config import Config
from ..basics.device import Device
from ..basics.errors import BratsError
from ..basics.files import remove_leftovers
from ..data.storage import open_volume
from ..evaluation.checkpoints import (
    RESUMED,
    load_weights,
    read_checkpoint,
    weights_tag,
    write_checkpoint,
)
from ..evaluation.domain_shift import ranges
from . import distributed
from .step import State, new_state

# Settings that what was trained does not depend on.
ELSEWHERE = ("preset", "patients", "test_patients", "tta", "on_nan", "tensorboard")


def check_shares(config: Config, processes: int) -> None:
    """BratsError where a batch cannot be shared equally."""
    if config.batch % processes:
        raise BratsError(f"batch={config.batch} cannot be shared equally by {processes} processes: choose a multiple of "
                         f"{processes} for batch, which counts the patches of all, or fewer processes.")


def create_or_resume(config: Config, training: Sequence[Path], validation: Sequence[Path], folder: Path, device: Device,
          start: InitialWeights | None) -> tuple[State, str]:
    """The state to train from, new or `folder`'s last, and the fingerprint of settings and patients; alike in all processes.

    BratsError where a batch cannot be shared equally, or not all processes see the same folder.
    """
    check_shares(config, distributed.world_size())
    state = new_state(config, device)
    weights, rehearsed = (read_checkpoint(start.checkpoint, device)["average"], start.patients) if start else (None, ())
    tag = distributed.broadcast_from_rank_zero(lambda: fingerprint(config, [*training, *validation, *rehearsed], weights))
    state.seen = ranges([open_volume(path)[1].fingerprint for path in training])
    if weights:
        for model in (state.model, state.average.module):
            load_weights(model, weights, start.checkpoint)
    for turn in (True, False):                        # the first process may move what is of other settings; then the others
        if turn == (distributed.rank() == 0):
            remove_leftovers(folder)
            resume(state, folder, tag, config, device)
        distributed.barrier()
    if len(set(distributed.gather([state.step]))) > 1:
        raise BratsError(f"not all processes find the same checkpoint in {folder}: all machines must share that folder.")
    return state, tag


def fingerprint(config: Config, patients: Sequence[Path], start: Mapping[str, Tensor] | None = None) -> str:
    """Eight characters that change with any setting or patient that training and the choice of the best depend on."""
    settings = {k: v for k, v in asdict(config).items() if k not in ELSEWHERE}
    before = [weights_tag(start)] if start else []
    text = json.dumps([settings, [[p.name, open_volume(p)[1].content_hash] for p in patients], *before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def save(state: State, folder: Path, config: Config, tag: str) -> None:
    """Write all of the state, so that training can go on from it; the checkpoint before it is kept as before.pt."""
    if distributed.rank() == 0:
        _write(state, folder, config, tag)
    distributed.barrier()                                # none ends, nor goes on, before it is on disk


def _write(state: State, folder: Path, config: Config, tag: str) -> None:
    if (folder / "last.pt").is_file():
        os.replace(folder / "last.pt", folder / "before.pt")
    write_checkpoint(folder / "last.pt", config, {
        "fingerprint": tag, "step": state.step, "best": state.best, "seconds": state.seconds, "losses": state.losses,
        "seen": state.seen,
        "history": state.history, "rate_factor": state.rate_factor, "average": state.average.module.state_dict(),
        "n_averaged": int(state.average.n_averaged), "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(), "scaler": state.scaler.state_dict()})


def newest(folder: Path, device: Device) -> dict | None:
    """The content of last.pt or, with a warning where that is damaged, of before.pt; None where there is neither."""
    content, problem = None, None
    for path in (folder / "last.pt", folder / "before.pt"):
        if content is None and path.is_file():
            try:
                content = read_checkpoint(path, device, RESUMED)
            except BratsError as error:
                problem = error
                tqdm.write(f"WARNING: {error} The one before it is used, where there is one.")
    if problem and content is None:
        raise problem
    return content


def resume(state: State, folder: Path, tag: str, config: Config, device: Device) -> None:
    """Bring the state to where `folder`'s last checkpoint stands; one of other settings is set aside, not lost."""
    content, earlier = newest(folder, device), folder.with_name(f"{folder.name}.{tag}")
    if content and content["fingerprint"] != tag:
        aside = folder.with_name(f"{folder.name}.{content['fingerprint']}")
        tqdm.write(f"{folder} was trained with other settings or patients: kept in {aside}.")
        if aside.is_dir():                            # of the same settings: the newer is kept
            shutil.rmtree(aside)
        folder.rename(aside)
        content = None
    if not content and earlier.is_dir():              # these settings were trained before
        if folder.is_dir():                           # without a checkpoint: others ended before their first
            shutil.rmtree(folder)
        earlier.rename(folder)
        content = newest(folder, device)
    if not content:
        return
    state.model.load_state_dict(content["model"])
    state.average.module.load_state_dict(content["average"])
    state.average.n_averaged.fill_(content["n_averaged"])
    state.optimizer.load_state_dict(content["optimizer"])
    if content["scaler"]:                             # empty where the precision needed none: another device's
        state.scaler.load_state_dict(content["scaler"])
    for name in ("step", "best", "seconds", "losses", "history", "rate_factor"):
        setattr(state, name, content[name])
    if state.step < config.epochs * config.steps:
        tqdm.write(f"going on from step {state.step} of {config.epochs * config.steps} ({folder})")


class InitialWeights(NamedTuple):
    """What a training begins with: the averaged weights of another one, and the prepared patients that it learnt from."""

    checkpoint: Path
    patients: Sequence[Path]
