"""The training loop: mixed precision, warm-up and cosine, weight averaging, and resuming to the same bits.

All randomness is a function of the seed and the patch's number (see `loaders`), so a run that was killed and
goes on from its last checkpoint ends in the same weights, bit for bit on the CPU. The recipe is
NVIDIA's (Futrega et al. 2021, arXiv:2110.03352) with the warm-up that its text describes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from . import distributed
from .augment import augment, normalise_batch
from .checkpoints import load_weights, read_checkpoint, weights_tag, write_checkpoint
from .cohort import read_cohort
from .config import Config
from .constants import REGIONS
from .device import Device, describe_device
from .errors import BratsError, Stopped
from .files import stop_button, sweep
from .inference import sliding_window
from .loaders import PatchDataset, batches, watched
from .losses import deep_supervision_loss, labels_to_regions
from .metrics import dice, regions
from .networks import build_network, compile_for_training, for_inference
from .preprocessing import load, open_volume, prepared_files
from .pretraining import Start, make_phantoms, on_phantoms, rehearsal
from .shift import ranges
from .tracking import Tracker

SAVE_SECONDS = 600                                    # a checkpoint at least this often, within an epoch too
# Settings that what was trained does not depend on.
ELSEWHERE = ("preset", "patients", "test_patients", "tta", "on_nan", "tensorboard")
LEAST_FACTOR = 2**-6                                  # of the learning rate: halved more often, training has failed


def learning_rate(step: int, config: Config) -> float:
    """The rate of a step (from 0): a linear warm-up to the peak, then half a cosine down to 0 at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.epochs * config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass
class State:
    """Everything that changes during training, and so everything that a checkpoint must hold."""

    model: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    rate_factor: float = 1.0                          # halved by each batch that was left out (`Config.on_nan`)
    seconds: float = 0.0                              # of training, over all sessions
    best: float = -1.0                                # mean validation Dice of the best checkpoint
    seen: dict = field(default_factory=dict)          # what the patients look like (`shift.ranges`)
    losses: list[float] = field(default_factory=list)         # of the epoch under way
    history: list[dict] = field(default_factory=list)         # one record an epoch
    parallel: nn.Module = field(init=False)           # the model, whose gradients are those of all processes together

    def __post_init__(self) -> None:
        self.parallel = distributed.parallel(self.model)


def new_state(config: Config, device: Device) -> State:
    """A freshly initialised network and optimizer; the same for the same seed."""
    torch.manual_seed(config.seed)
    model = build_network(config, device)
    compile_for_training(model, device, config.epochs * config.steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay,
                                  fused=device.kind != "mps")
    return State(model, average, optimizer, torch.amp.GradScaler(device.kind, enabled=device.scaler))


class Ahead(Iterator):
    """Batches of `loaders.batches` with what `prepare_batch` makes of them, which `look` has made while a GPU was busy."""

    def __init__(self, source: Iterator[dict], config: Config, device: Device) -> None:
        self.source, self.ready, self.config, self.device = source, [], config, device

    def look(self) -> None:
        """Make the next batch ready, if there is one."""
        if not self.ready:
            self.ready += [batch | {"prepared": prepare_batch(batch, self.config.seed, self.device)}
                           for batch in itertools.islice(self.source, 1)]

    def __next__(self) -> dict:
        self.look()
        if not self.ready:
            raise StopIteration
        return self.ready.pop()


def train_step(state: State, batch: dict, config: Config, device: Device,
               meanwhile: Callable[[], None] | None = None) -> float:
    """One optimizer step on one batch of `loaders.batches` or `Ahead`; returns the loss.

    meanwhile: called when a GPU has been told what to do, and before its results are waited for.
    """
    images, target = batch.get("prepared") or prepare_batch(batch, config.seed, device)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config) * state.rate_factor
    with device.autocast():
        outputs = state.parallel(images)
    loss = deep_supervision_loss(outputs, target)
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
    if meanwhile:
        meanwhile()
    loss = distributed.mean(loss)                     # of cross-entropy's parts; Dice is that of the whole batch already
    # Loss scaling tries scales that are too large, and leaves out those steps itself.
    if sound := bool(torch.isfinite(loss) and (device.scaler or torch.isfinite(norm))):
        state.scaler.step(state.optimizer)
        state.average.update_parameters(state.model)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if not sound:
        leave_out(state, batch["name"], f"the loss became {loss.item():.3g}, its gradient {norm.item():.3g}", config)
    state.step += 1
    return loss.item() if sound else math.nan


def leave_out(state: State, names: Sequence[str], problem: str, config: Config) -> None:
    """A batch whose loss or gradient is no number: stop there, or halve the learning rate for what follows."""
    problem = f"{problem} at step {state.step}, on patches of {', '.join(distributed.gather(names))}"
    if config.on_nan == "stop":
        raise BratsError(f"{problem}: the weights were not touched. Look at these patients' scans"
                         f"{' (phantoms may have the same names)' if config.pretrain else ''}, lower learning_rate, or go on "
                         "from here without the batch and at half the rate: on_nan=halve.")
    state.rate_factor /= 2
    if state.rate_factor < LEAST_FACTOR:
        raise BratsError(f"{problem}, the rate halved {round(-math.log2(LEAST_FACTOR))} times already: these patients' "
                         "intensities are damaged, or learning_rate is far too high.")
    tqdm.write(f"WARNING: {problem}: left out; the learning rate is multiplied by {state.rate_factor:g} from here on.")


def prepare_batch(batch: dict, seed: int, device: Device) -> tuple[Tensor, Tensor]:
    """A batch on the device, z-scored and augmented: images (B, 5, P, P, P) and regions (B, 3, P, P, P)."""
    volume, mean, std = (batch[key].to(device.torch_device, non_blocking=True) for key in ("volume", "mean", "std"))
    images = normalise_batch(volume[:, :4], mean, std)
    images, labels = augment(images, volume[:, 4:], [patch_generator(seed, number) for number in batch["number"]])
    return images, labels_to_regions(labels)


def patch_generator(seed: int, number: int) -> torch.Generator:
    """What a patch's augmentation is drawn from: a function of the run's seed and of the patch's number alone.

    Hashed, because torch's CPU generator looks at 32 bits of its seed only: no sum or shift of the two would fit.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 2, number]).generate_state(1)[0]))


def train(config: Config, training: Sequence[Path], validation: Sequence[Path], folder: Path,
          on_epoch: Callable[[list[dict]], None] | None = None, device: Device | None = None,
          start: Start | None = None) -> list[dict]:
    """Train on prepared patients, or go on where `folder`/last.pt stands; returns the history, a record an epoch.

    Writes last.pt (all of the state, every epoch and every ten minutes), before.pt (the one before it) and, where there are
    validation patients, best.pt (averaged weights, their highest mean Dice). A stop (Ctrl-C) is heeded after the step under
    way, with all saved: Stopped. Inside `distributed.group` each process takes its share of every batch. start: the weights
    that training begins with, instead of random ones, and patients that it goes on seeing (`pretraining.rehearsal`).
    """
    device = device or describe_device()
    state, tag = begin(config, training, validation, folder, device, start)
    tracker = Tracker(folder, config, state.step, device)
    dataset = PatchDataset(rehearsal(training, start.patients if start else ()), config.patch, config.foreground, config.seed)
    total = config.epochs * config.steps
    workers, who = 4 if device.kind == "cuda" else 0, (distributed.rank(), distributed.size())
    started, saved = time.monotonic() - state.seconds, time.monotonic()
    with stop_button() as stopped, watched(), tqdm(total=total, initial=state.step, desc="train", unit="step", mininterval=1,
                                                   disable=who[0] > 0) as bar:
        source = Ahead(batches(dataset, config.batch, state.step, total, workers, *who), config, device)
        for batch in source:
            state.model.train()
            try:
                loss = train_step(state, batch, config, device, source.look)
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
            due, stop = distributed.agreed(time.monotonic() - saved >= SAVE_SECONDS, stopped())
            if not (due or stop or state.step % config.steps == 0):
                continue
            state.seconds, saved = time.monotonic() - started, time.monotonic()
            save(state, folder, config, tag)
            if stop and state.step < total:
                raise Stopped(f"stopped after step {state.step} of {total}; all is saved in {folder}: run it again to go on.")
    return state.history


def train_work(config: Config, work: Path, on_epoch: Callable[[list[dict]], None] | None = None,
               device: Device | None = None, everyone: bool = False) -> list[dict]:
    """`train` on the patients that notebooks 01 to 03 have left in a work folder; checkpoints go to `checkpoint_folder`.

    Where the settings say so, on phantoms before (`pretraining`), in a work folder of their own, and beside the patients.
    everyone: on those too that are held out otherwise.
    """
    start = None
    if config.pretrain:
        first, phantoms = on_phantoms(config), distributed.once(lambda: make_phantoms(config, work))
        train_work(first, phantoms, None, device)
        seen, _ = distributed.once(lambda: training_files(first, phantoms))
        start = Start(checkpoint_folder(phantoms) / "last.pt", seen)
    files = distributed.once(lambda: training_files(config, work, everyone))
    return train(config, *files, checkpoint_folder(work, everyone), on_epoch, device, start)


def checkpoint_folder(work: Path, everyone: bool = False) -> Path:
    """Where `train_work` keeps its checkpoints: a network that has learnt from everyone lies apart from the measured one."""
    return work / ("everyone" if everyone else "checkpoints")


def training_files(config: Config, work: Path, everyone: bool = False) -> tuple[list[Path], list[Path]]:
    """The prepared patients of a work folder to learn from, and those to validate on; all of them and none for everyone."""
    cohort = read_cohort(work)
    learnt, held_out = cohort.learnt(config, everyone), [] if everyone else cohort.held_out(config)
    cases = [cohort.by_name[name] for name in (*learnt, *held_out)]
    files = prepared_files(cases, work / "preprocessed", config.spacing_mm)
    return [files[name] for name in learnt], [files[name] for name in held_out]


def check_shares(config: Config, processes: int) -> None:
    """BratsError where a batch cannot be shared equally."""
    if config.batch % processes:
        raise BratsError(f"batch={config.batch} cannot be shared equally by {processes} processes: choose a multiple of "
                         f"{processes} for batch, which counts the patches of all, or fewer processes.")


def begin(config: Config, training: Sequence[Path], validation: Sequence[Path], folder: Path, device: Device,
          start: Start | None) -> tuple[State, str]:
    """The state to train from, new or `folder`'s last, and the fingerprint of settings and patients; alike in all processes.

    BratsError where a batch cannot be shared equally, or not all processes see the same folder.
    """
    check_shares(config, distributed.size())
    state = new_state(config, device)
    weights, rehearsed = (read_checkpoint(start.checkpoint, device)["average"], start.patients) if start else (None, ())
    tag = distributed.once(lambda: fingerprint(config, [*training, *validation, *rehearsed], weights))
    state.seen = ranges([open_volume(path)[1].figures for path in training])
    if weights:
        for model in (state.model, state.average.module):
            load_weights(model, weights, start.checkpoint)
    for turn in (True, False):                        # the first process may move what is of other settings; then the others
        if turn == (distributed.rank() == 0):
            sweep(folder)
            resume(state, folder, tag, config, device)
        distributed.wait()
    if len(set(distributed.gather([state.step]))) > 1:
        raise BratsError(f"not all processes find the same checkpoint in {folder}: all machines must share that folder.")
    return state, tag


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
    for path in paths[distributed.rank()::distributed.size()]:
        prepared = load(path)
        volume = torch.from_numpy(prepared.volume)
        image = normalise_batch(volume[None, :4], torch.tensor([prepared.meta.mean]), torch.tensor([prepared.meta.std]))
        predicted = sliding_window(model, image[0], config.patch, config.overlap, device=device).numpy() > 0.5
        scores.append([dice(p, r) for p, r in zip(predicted, regions(prepared.volume[4]), strict=True)])
    scores = distributed.gather(scores)
    return {name: float(sum(s[i] for s in scores) / len(scores)) for i, name in enumerate(REGIONS)}


def fingerprint(config: Config, patients: Sequence[Path], start: Mapping[str, Tensor] | None = None) -> str:
    """Eight characters that change with any setting or patient that training and the choice of the best depend on."""
    settings = {k: v for k, v in asdict(config).items() if k not in ELSEWHERE}
    before = [weights_tag(start)] if start else []
    text = json.dumps([settings, [[p.name, open_volume(p)[1].source] for p in patients], *before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def save(state: State, folder: Path, config: Config, tag: str) -> None:
    """Write all of the state, so that training can go on from it; the checkpoint before it is kept as before.pt."""
    if distributed.rank() == 0:
        _write(state, folder, config, tag)
    distributed.wait()                                # none ends, nor goes on, before it is on disk


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
                content = read_checkpoint(path, device)
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
