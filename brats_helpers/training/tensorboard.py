"""A training as TensorBoard event files, for those who ask for them: `Config.tensorboard`, off by default.

Losses, rates, speed, Dice and a picture at each validation, in checkpoints/tensorboard; to look at them:
`tensorboard --logdir FOLDER`. The values are those of the history that `training.train` returns.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import torch

from ..basics.config import Config
from ..basics.constants import REGION_COLORS
from ..basics.device import Device, gpu_load
from ..basics.errors import BratsError
from ..data.preprocessing import Prepared, normalize_batch
from ..data.storage import load
from ..evaluation.metrics import regions
from ..evaluation.sliding_window import sliding_window_inference
from ..lessons.plots import cut, draw_slice, finish, slice_with_most_tumor
from . import distributed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .step import State

EVERY = 10                                            # steps between two points of the curves of single steps


class Tracker:
    """Writes what `training.train` tells it, or, where it was not asked for, nothing."""

    def __init__(self, folder: Path, config: Config, step: int, device: Device) -> None:
        """step: where training goes on; what a session that was cut off has written beyond it is taken back."""
        self.config, self.device, self.writer = config, device, None
        if config.tensorboard and distributed.rank() == 0:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ModuleNotFoundError as error:
                raise BratsError("tensorboard=True needs a package more: pip install tensorboard.") from error
            self.writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=step + 1)
        self.since = (step, time.monotonic())         # where the present stretch of steps began

    def step(self, state: State, loss: float) -> None:
        """A point on the curves of loss, learning rate and speed, each EVERY steps."""
        if not self.writer or state.step % EVERY:
            return
        begun, then = self.since
        speed = (state.step - begun) * self.config.batch / max(time.monotonic() - then, 1e-9)
        self._write({"loss/step": loss, "learning_rate/step": state.optimizer.param_groups[0]["lr"],
                     "speed/patches_per_second": speed, **gpu_load()}, state.step)

    def epoch(self, state: State, validation: Path | None) -> None:
        """The epoch's record and, if it was validated, one validation patient with the averaged network's answer."""
        if not self.writer:
            return
        record = state.history[-1]
        if record["dice"]:
            prepared, model = load(validation), state.average.module.eval()
            picture = overlay(prepared, model, self.config, self.device)
            self.writer.add_figure(f"patient/{prepared.meta.name}", picture, state.step)
        self._write({"loss/epoch": record["loss"], "learning_rate/epoch": record["learning_rate"],
                     **{f"dice/{name}": value for name, value in (record["dice"] or {}).items()}}, state.step)

    def _write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()                           # before the checkpoint of this step is saved
        self.since = (step, time.monotonic())         # validation is not training: a new stretch


def overlay(prepared: Prepared, model: torch.nn.Module, config: Config, device: Device) -> Figure:
    """FLAIR of a prepared patient where he has most tumor, with the outlines of the reference and of the network."""
    volume, meta = torch.from_numpy(prepared.volume), prepared.meta
    image = normalize_batch(volume[None, :4], torch.tensor([meta.mean]), torch.tensor([meta.std]))[0]
    predicted = sliding_window_inference(model, image, config.patch, config.overlap, device=device).numpy() > 0.5
    figure, ax = plt.subplots(figsize=(4, 4.4))
    at = slice_with_most_tumor(prepared.volume[4].T)
    draw_slice(ax, image[0].numpy().T, "axial", at)
    for style, masks in (("dashed", regions(prepared.volume[4])), ("solid", predicted)):
        for color, mask in zip(REGION_COLORS.values(), masks, strict=True):
            if (outline := cut(mask.T, "axial", at)).any():
                ax.contour(outline, [0.5], colors=color, linestyles=style, linewidths=1)
    ax.set_title("dashed: reference, solid: network")
    return finish(figure, synthetic=False, prediction=True)
