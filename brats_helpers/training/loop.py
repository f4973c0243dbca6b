"""The training loop: mixed precision, warm-up and cosine, weight averaging, and resuming to the same bits.

All randomness is a function of the seed and the patch's number (see `loaders`), so a run that was killed and
goes on from its last checkpoint ends in the same weights, bit for bit on the CPU. The recipe is
NVIDIA's (Futrega et al. 2021, arXiv:2110.03352) with the warm-up that its text describes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ..basics.config import Config
from ..basics.constants import REGIONS
from ..basics.device import Device, describe_device
from ..basics.errors import BratsError, Stopped
from ..basics.files import stop_button
from ..data.loaders import PatchDataset, batches, explain_killed_worker
from ..data.preprocessing import normalize_batch
from ..data.storage import load
from ..evaluation.build import for_inference
from ..evaluation.checkpoints import write_checkpoint
from ..evaluation.metrics import dice, regions
from ..evaluation.sliding_window import sliding_window_inference
from . import distributed
from .resume import InitialWeights, create_or_resume, save
from .step import PrefetchedBatches, State, learning_rate, train_step
from .tensorboard import Tracker

SAVE_SECONDS = 600                                    # a checkpoint at least this often, within an epoch too


def train(config: Config, training: Sequence[Path], validation: Sequence[Path], folder: Path,
          on_epoch: Callable[[list[dict]], None] | None = None, device: Device | None = None,
          start: InitialWeights | None = None) -> list[dict]:
    """Train on prepared patients, or go on where `folder`/last.pt stands; returns the history, a record an epoch.

    Writes last.pt (all of the state, every epoch and every ten minutes), before.pt (the one before it) and, where there are
    validation patients, best.pt (averaged weights, their highest mean Dice). A stop (Ctrl-C) is heeded after the step under
    way, with all saved: Stopped. Inside `distributed.group` each process takes its share of every batch. start: the weights
    that training begins with, instead of random ones, and patients that it goes on seeing (`pretraining.rehearsal`).
    """
    device = device or describe_device()
    state, tag = create_or_resume(config, training, validation, folder, device, start)
    tracker = Tracker(folder, config, state.step, device)
    dataset = PatchDataset(rehearsal(training, start.patients if start else ()), config.patch, config.oversample_foreground, config.seed)
    total = config.epochs * config.steps
    workers, who = 4 if device.kind == "cuda" else 0, (distributed.rank(), distributed.world_size())
    started, saved = time.monotonic() - state.seconds, time.monotonic()
    with stop_button() as stopped, explain_killed_worker(), tqdm(total=total, initial=state.step, desc="train", unit="step", mininterval=1,
                                                   disable=who[0] > 0) as bar:
        source = PrefetchedBatches(batches(dataset, config.batch, state.step, total, workers, *who), config, device)
        for batch in source:
            state.model.train()
            try:
                loss = train_step(state, batch, config, device, source.prepare_next)
            except BratsError:
                save(state, folder, config, tag)
                raise
            state.losses += [loss] if math.isfinite(loss) else []
            bar.update()
            tracker.step(state, loss)
            state.seconds = time.monotonic() - started
            if state.step % config.steps == 0:
                finish_epoch(state, config, validation, folder, tag, device)
                tracker.epoch(state, next(iter(validation), None))
                bar.set_postfix(loss=f"{state.history[-1]['loss']:.3f}")
                if on_epoch:
                    on_epoch(state.history)
            due, stop = distributed.any_rank(time.monotonic() - saved >= SAVE_SECONDS, stopped())
            if not (due or stop or state.step % config.steps == 0):
                continue
            state.seconds, saved = time.monotonic() - started, time.monotonic()
            save(state, folder, config, tag)
            if stop and state.step < total:
                raise Stopped(f"stopped after step {state.step} of {total}; all is saved in {folder}: run it again to go on.")
    return state.history


def finish_epoch(state: State, config: Config, validation: Sequence[Path], folder: Path, tag: str,
                 device: Device) -> None:
    """Record the epoch that has just ended; where it is time to validate, do so and keep the best weights."""
    epoch = state.step // config.steps
    dice = None
    if validation and (epoch % config.validate_every == 0 or epoch == config.epochs):
        network = for_inference(state.average.module, device, config.epochs * config.steps)
        dice = validate(network, validation, config, device)
        mean = sum(dice.values()) / len(dice)
    state.history.append({
        "step": state.step, "epoch": epoch, "loss": sum(state.losses) / max(1, len(state.losses)),
        "learning_rate": learning_rate(state.step - 1, config), "dice": dice, "seconds": round(state.seconds, 1)})
    state.losses = []
    if dice and mean > state.best:
        state.best = mean
        if distributed.rank() == 0:
            write_checkpoint(folder / "best.pt", config, {"fingerprint": tag, "step": state.step, "best": mean,
                                                          "seen": state.seen, "average": state.average.module.state_dict()})


def validate(model: nn.Module, paths: Sequence[Path], config: Config, device: Device) -> dict[str, float]:
    """Mean Dice per region over prepared patients, at the network's own resolution, without flips."""
    model.eval()
    scores = []
    for path in paths[distributed.rank()::distributed.world_size()]:
        prepared = load(path)
        volume = torch.from_numpy(prepared.volume)
        image = normalize_batch(volume[None, :4], torch.tensor([prepared.meta.mean]), torch.tensor([prepared.meta.std]))
        predicted = sliding_window_inference(model, image[0], config.patch, config.overlap, device=device).numpy() > 0.5
        scores.append([dice(p, r) for p, r in zip(predicted, regions(prepared.volume[4]), strict=True)])
    scores = distributed.gather(scores)
    return {name: float(sum(s[i] for s in scores) / len(scores)) for i, name in enumerate(REGIONS)}


def rehearsal(patients: Sequence[Path], phantoms: Sequence[Path]) -> list[Path]:
    """What to draw patches from: few patients so often that half of the patches are theirs, and the phantoms once each."""
    return [*patients] * max(1, round(len(phantoms) / len(patients))) + [*phantoms]
