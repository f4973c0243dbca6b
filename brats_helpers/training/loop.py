"""The training loop: epochs of steps, validation, checkpoints, and resuming to the same bits.

All randomness is a function of the seed and the patch's number (see `loaders`). A run that was
killed continues from its last checkpoint to the same weights, bit for bit on the CPU. The recipe is
NVIDIA's (Futrega et al. 2021, arXiv:2110.03352) with the warm-up that its text describes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn
from tqdm import tqdm

from ..basics.config import Config
from ..basics.constants import REGIONS
from ..basics.device import Device, describe_device
from ..basics.errors import BratsError, Stopped, stop_button
from ..basics.files import write_json
from ..data.loaders import PatchDataset, batches, explain_killed_worker
from ..data.preprocessing import Prepared, network_input
from ..data.storage import load_prepared
from ..evaluation.build import for_inference
from ..evaluation.checkpoints import write_checkpoint
from ..evaluation.metrics import dice, regions
from ..evaluation.sliding_window import STRETCH, sliding_window_inference
from . import distributed
from .forming import SliceRecorder
from .resume import create_or_resume, save
from .state import State
from .step import PrefetchedBatches, train_step
from .tensorboard import Tracker

SAVE_SECONDS = 600  # between two checkpoints, at most
GPU_WORKERS = 4  # processes that read patches for a GPU
HISTORY = "history.json"  # the record of every epoch, beside the checkpoints


@dataclass
class Run:
    """The parts of a training that stay the same."""

    config: Config
    validation: Sequence[Path]
    folder: Path
    device: Device
    hash: str  # of settings and patients
    tracker: Tracker
    recorder: SliceRecorder
    on_epoch: Callable[[list[dict]], None] | None


def train(config: Config, training: Sequence[Path], validation: Sequence[Path], folder: Path,
          on_epoch: Callable[[list[dict]], None] | None = None, device: Device | None = None,
          start: Path | None = None, synthetic: bool = False) -> list[dict]:
    """Train on prepared patients, or go on from `folder`/last.pt; returns a record of each epoch.

    Writes last.pt (the whole state, every epoch and every ten minutes), before.pt (the previous
    one), history.json, the slices of `forming` and, with validation patients, best.pt (averaged
    weights with the highest mean Dice). A stop (Ctrl-C) takes effect after the current step, saves,
    and raises Stopped. In `distributed.group` each process takes its share of every batch. `start`
    has the initial weights, `synthetic` marks the pictures.
    """
    device = device or describe_device()
    state, run_hash = create_or_resume(config, training, validation, folder, device, start)
    run = Run(config, validation, folder, device, run_hash,
              Tracker(folder, config, state.step, synthetic),
              SliceRecorder([*training, *validation], folder, config, device), on_epoch)
    _write_history(state, folder)
    run.recorder(state)
    total = config.epochs * config.steps
    stream = _batches(run, state.step, training)
    started, saved = time.monotonic() - state.seconds, time.monotonic()
    with stop_button() as stopped, explain_killed_worker(), _bar(state.step, total) as bar:
        for batch in stream:
            _step(state, batch, run, stream.prepare_next)
            bar.update()
            state.seconds = time.monotonic() - started
            if epoch_ends := state.step % config.steps == 0:
                finish_epoch(state, run)
                bar.set_postfix(loss=f"{state.history[-1]['loss']:.3f}")
            overdue = time.monotonic() - saved >= SAVE_SECONDS
            overdue, stop = distributed.any_rank(overdue, stopped())
            if overdue or stop or epoch_ends:
                state.seconds, saved = time.monotonic() - started, time.monotonic()
                save(state, folder, config, run_hash)
            if stop and state.step < total:
                raise Stopped(f"stopped after step {state.step} of {total}; all is saved in "
                              f"{folder}: run it again to go on.")
    return state.history


def _batches(run: Run, first: int, paths: Sequence[Path]) -> PrefetchedBatches:
    """Read this process's share of all batches from step `first` on."""
    config = run.config
    dataset = PatchDataset(paths, config.patch, config.oversample_foreground, config.seed)
    workers = GPU_WORKERS if run.device.kind == "cuda" else 0
    source = batches(dataset, config.batch, first, config.epochs * config.steps, workers,
                     distributed.rank(), distributed.world_size())
    return PrefetchedBatches(source, config, run.device)


def _bar(step: int, total: int) -> tqdm:
    return tqdm(total=total, initial=step, desc="train", unit="step", mininterval=1,
                disable=distributed.rank() > 0)


def _step(state: State, batch: dict, run: Run, while_gpu_works: Callable[[], None]) -> None:
    """Take a step and note its loss; save the state before an error ends the training."""
    state.model.train()
    try:
        loss = train_step(state, batch, run.config, run.device, while_gpu_works)
    except BratsError:
        save(state, run.folder, run.config, run.hash)
        raise
    if math.isfinite(loss):
        state.losses.append(loss)
    run.tracker.step(state.step, loss, state.optimizer.param_groups[0]["lr"])
    run.recorder(state)


def finish_epoch(state: State, run: Run) -> None:
    """Record the epoch that has just ended; validate if it is time, and keep the best weights."""
    config = run.config
    epoch = state.step // config.steps
    scores = example = None
    if run.validation and (epoch % config.validate_every == 0 or epoch == config.epochs):
        network = for_inference(state.ema.module, run.device, config.epochs * config.steps)
        scores, example = validate(network, run.validation, config, run.device)
    state.history.append({
        "step": state.step, "epoch": epoch, "loss": sum(state.losses) / max(1, len(state.losses)),
        "learning_rate": state.optimizer.param_groups[0]["lr"], "dice": scores,
        "seconds": round(state.seconds, 1)})
    state.losses = []
    if scores:
        _keep_best(state, run, sum(scores.values()) / len(scores))
    _write_history(state, run.folder)
    run.tracker.epoch(state.step, state.history[-1], example)
    if run.on_epoch:
        run.on_epoch(state.history)


def _keep_best(state: State, run: Run, mean_dice: float) -> None:
    """Write best.pt if the mean Dice is higher than in every earlier epoch."""
    if mean_dice > state.best:
        state.best = mean_dice
        if distributed.rank() == 0:
            write_checkpoint(run.folder / "best.pt", run.config, {
                "fingerprint": run.hash, "step": state.step, "best": mean_dice,
                "seen": state.training_ranges, "average": state.ema.module.state_dict()})


def _write_history(state: State, folder: Path) -> None:
    if distributed.rank() == 0:
        write_json(folder / HISTORY, state.history)


def validate(model: nn.Module, paths: Sequence[Path], config: Config,
             device: Device) -> tuple[dict[str, float], tuple[Prepared, np.ndarray] | None]:
    """Compute the mean Dice of each region over prepared patients, on their grid, without flips.

    Also returns the first patient of this process with the predicted regions, (3, D, H, W) bool.
    """
    model.eval()
    scores = []
    example = None
    for path in paths[distributed.rank()::distributed.world_size()]:
        prepared = load_prepared(path)
        image = network_input(prepared, device)
        probability = sliding_window_inference(model, image, config.patch, config.overlap,
                                               device=device, stretch=STRETCH)
        predicted = probability.cpu().numpy() > 0.5  # these scores only compare epochs
        reference = regions(prepared.reference)
        scores.append([dice(p, r) for p, r in zip(predicted, reference, strict=True)])
        example = example or (prepared, predicted)
    scores = distributed.gather(scores)
    means = {name: float(sum(s[i] for s in scores) / len(scores)) for i, name in enumerate(REGIONS)}
    return means, example
