"""One optimizer step.

Read `plain_train_step` first: it is the whole idea. `train_step` takes the same step and adds mixed
precision, several processes, prefetching, and a decision about a loss that is not a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..basics.config import Config
from ..basics.device import Device
from ..basics.errors import BratsError
from ..data.loaders import AUGMENTATION
from ..data.preprocessing import normalize_batch
from ..network.losses import deep_supervision_loss, labels_to_regions
from . import distributed
from .augmentation import augment, drop_modalities
from .state import State

MAX_HALVINGS = 6  # of the learning rate; then training has failed


def plain_train_step(state: State, images: Tensor, target: Tensor, config: Config) -> float:
    """Take one optimizer step in full precision and one process; returns the loss."""
    set_learning_rate(state, config)
    outputs = state.model(images)  # logits at full, 1/2 and 1/4 resolution
    loss = deep_supervision_loss(outputs, target)
    loss.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update_parameters(state.model)
    state.step += 1
    return loss.item()


def train_step(state: State, batch: dict, config: Config, device: Device,
               while_gpu_works: Callable[[], None] | None = None) -> float:
    """Take one optimizer step on a batch of `loaders.batches` or `PrefetchedBatches`.

    `while_gpu_works` is called after the GPU has received its work and before its results are
    needed. Returns the loss, NaN if the batch was left out.
    """
    images, target = batch.get("prepared") or prepare_batch(batch, config, device)
    set_learning_rate(state, config)
    with device.autocast():
        outputs = state.parallel(images)
    loss = deep_supervision_loss(outputs, target, reduce=distributed.all_reduce_sum)
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
    if while_gpu_works:
        while_gpu_works()
    loss = distributed.all_reduce_mean(loss)  # Dice is shared already, cross-entropy is not
    # Loss scaling skips a step with an infinite gradient by itself, and lowers the scale.
    finite = bool(torch.isfinite(loss) and (device.loss_scaling or torch.isfinite(norm)))
    if finite:
        state.scaler.step(state.optimizer)
        state.ema.update_parameters(state.model)
    state.scaler.update()
    state.optimizer.zero_grad()
    if not finite:
        problem = f"the loss became {loss.item():.3g}, its gradient {norm.item():.3g}"
        leave_out(state, batch["name"], problem, config)
    state.step += 1
    return loss.item() if finite else math.nan


def learning_rate(step: int, config: Config) -> float:
    """Compute the rate of a step (from 0): a linear warm-up, then half a cosine down to 0."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.epochs * config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(state: State, config: Config) -> None:
    """Set the optimizer's learning rate for the current step."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config) * state.rate_factor


class PrefetchedBatches(Iterator):
    """Batches of `loaders.batches`, the next one prepared while the GPU computes."""

    def __init__(self, source: Iterator[dict], config: Config, device: Device) -> None:
        self.source = source
        self.config = config
        self.device = device
        self.ready: dict | None = None

    def prepare_next(self) -> None:
        """Prepare the next batch, unless it is ready or there is none."""
        if self.ready is None and (batch := next(self.source, None)):
            prepared = prepare_batch(batch, self.config, self.device)
            self.ready = batch | {"prepared": prepared}

    def __next__(self) -> dict:
        self.prepare_next()
        if self.ready is None:
            raise StopIteration
        batch, self.ready = self.ready, None
        return batch


def leave_out(state: State, names: Sequence[str], problem: str, config: Config) -> None:
    """Handle a batch whose loss or gradient is not a number: stop, or halve the rate and go on."""
    names = ", ".join(distributed.gather(names))
    problem = f"{problem} at step {state.step}, on patches of {names}"
    if config.on_nan == "stop":
        raise BratsError(f"{problem}: the weights were not touched. Look at these patients' "
                         f"scans, lower learning_rate, or go on from here without the batch "
                         "and at half the rate: on_nan=halve.")
    state.rate_factor /= 2
    if state.rate_factor < 2**-MAX_HALVINGS:
        raise BratsError(f"{problem}, after the rate was halved {MAX_HALVINGS} times: these "
                         "patients' intensities are damaged, or learning_rate is far too high.")
    tqdm.write(f"WARNING: {problem}: left out; the learning rate is multiplied by "
               f"{state.rate_factor:g} from here on.")


def prepare_batch(batch: dict, config: Config, device: Device) -> tuple[Tensor, Tensor]:
    """Put a batch on the device, z-scored and augmented; some patches may lose modalities.

    Returns images (B, 5, P, P, P) and regions (B, 3, P, P, P).
    """
    volume, mean, std = (batch[key].to(device.torch_device, non_blocking=True)
                         for key in ("volume", "mean", "std"))
    images = normalize_batch(volume[:, :4], mean, std)
    generators = [patch_generator(config.seed, number) for number in batch["number"]]
    images, labels = augment(images, volume[:, 4:], generators)
    if config.modality_dropout:
        for image, generator in zip(images, generators, strict=True):
            drop_modalities(image, config.modality_dropout, generator)
    return images, labels_to_regions(labels)


def patch_generator(seed: int, number: int) -> torch.Generator:
    """Seed a patch's augmentation from the run's seed and the patch's number alone.

    The two are hashed: torch's CPU generator uses 32 bits of its seed, too few for both.
    """
    hashed = np.random.SeedSequence([seed, AUGMENTATION, number]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(hashed))
