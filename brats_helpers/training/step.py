"""One optimizer step, and the state that it changes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ..basics.config import Config
from ..basics.device import Device
from ..basics.errors import BratsError
from ..data.preprocessing import normalize_batch
from ..evaluation.build import build_network, compile_for_training
from ..network.losses import deep_supervision_loss, labels_to_regions
from . import distributed
from .augmentation import augment

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
    """A freshly initialized network and optimizer; the same for the same seed."""
    torch.manual_seed(config.seed)
    model = build_network(config, device)
    compile_for_training(model, device, config.epochs * config.steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay,
                                  fused=device.kind != "mps")
    return State(model, average, optimizer, torch.amp.GradScaler(device.kind, enabled=device.scaler))


class PrefetchedBatches(Iterator):
    """Batches of `loaders.batches` with what `prepare_batch` makes of them, which `prepare_next` has made while a GPU was busy."""

    def __init__(self, source: Iterator[dict], config: Config, device: Device) -> None:
        self.source, self.ready, self.config, self.device = source, [], config, device

    def prepare_next(self) -> None:
        """Make the next batch ready, if there is one."""
        if not self.ready:
            self.ready += [batch | {"prepared": prepare_batch(batch, self.config.seed, self.device)}
                           for batch in itertools.islice(self.source, 1)]

    def __next__(self) -> dict:
        self.prepare_next()
        if not self.ready:
            raise StopIteration
        return self.ready.pop()


def train_step(state: State, batch: dict, config: Config, device: Device,
               while_gpu_works: Callable[[], None] | None = None) -> float:
    """One optimizer step on one batch of `loaders.batches` or `PrefetchedBatches`; returns the loss.

    while_gpu_works: called when a GPU has been told what to do, and before its results are waited for.
    """
    images, target = batch.get("prepared") or prepare_batch(batch, config.seed, device)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config) * state.rate_factor
    with device.autocast():
        outputs = state.parallel(images)
    loss = deep_supervision_loss(outputs, target, reduce=distributed.all_reduce_sum)
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
    if while_gpu_works:
        while_gpu_works()
    loss = distributed.all_reduce_mean(loss)                     # of cross-entropy's parts; Dice is that of the whole batch already
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
    images = normalize_batch(volume[:, :4], mean, std)
    images, labels = augment(images, volume[:, 4:], [patch_generator(seed, number) for number in batch["number"]])
    return images, labels_to_regions(labels)


def patch_generator(seed: int, number: int) -> torch.Generator:
    """What a patch's augmentation is drawn from: a function of the run's seed and of the patch's number alone.

    Hashed, because torch's CPU generator looks at 32 bits of its seed only: no sum or shift of the two would fit.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 2, number]).generate_state(1)[0]))
