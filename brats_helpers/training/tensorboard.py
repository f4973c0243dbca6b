"""A training as TensorBoard event files, if `Config.tensorboard` is set.

The files in checkpoints/tensorboard hold losses, rates, speed, Dice and a picture per validation;
`tensorboard --logdir FOLDER` shows them. Values per epoch equal those in the history of `train`.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from scipy.ndimage import binary_erosion

from ..basics.config import Config
from ..basics.constants import REGION_COLORS
from ..basics.device import gpu_load
from ..basics.errors import BratsError
from ..data.preprocessing import Prepared, slice_with_most_tumor
from ..evaluation.metrics import regions
from . import distributed

EVERY = 10  # steps between two points of the curves of single steps
ENLARGE = 3  # pixels per voxel
PICTURE = "left_reference_right_network_not_for_diagnosis"


class Tracker:
    """A writer of a training's events, which does nothing if they are not asked for."""

    def __init__(self, folder: Path, config: Config, step: int, synthetic: bool = False) -> None:
        """Open the event file; events after `step`, where training goes on, are purged."""
        self.batch = config.batch
        self.prefix = "synthetic_patient" if synthetic else "patient"
        self.writer = None
        if config.tensorboard and distributed.rank() == 0:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ModuleNotFoundError as error:
                raise BratsError("tensorboard=True needs one more package: "
                                 "pip install tensorboard.") from error
            self.writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=step + 1)
        self.since = (step, time.monotonic())  # where the current stretch of steps began

    def step(self, step: int, loss: float, rate: float) -> None:
        """Add a point to the curves of loss, learning rate and speed, every EVERY steps."""
        if not self.writer or step % EVERY:
            return
        first, begun = self.since
        speed = (step - first) * self.batch / max(time.monotonic() - begun, 1e-9)
        self._write({"loss/step": loss, "learning_rate/step": rate,
                     "speed/patches_per_second": speed, **gpu_load()}, step)

    def epoch(self, step: int, record: dict, example: tuple[Prepared, np.ndarray] | None) -> None:
        """Add the record of an epoch and, after a validation, a patient with predicted regions."""
        if not self.writer:
            return
        if example:
            prepared, predicted = example
            tag = f"{self.prefix}/{prepared.meta.name}/{PICTURE}"
            self.writer.add_image(tag, overlay(prepared, predicted), step, dataformats="HWC")
        scores = {f"dice/{name}": value for name, value in (record["dice"] or {}).items()}
        self._write({"loss/epoch": record["loss"],
                     "learning_rate/epoch": record["learning_rate"], **scores}, step)

    def _write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # before the checkpoint of this step is saved
        self.since = (step, time.monotonic())  # validation does not count as training time


def overlay(prepared: Prepared, predicted: np.ndarray) -> np.ndarray:
    """Outline reference (left) and predicted regions (right) on FLAIR: (3 H, 6 W, 3) uint8.

    The axial slice is the one with most tumor; predicted is (3, D, H, W) bool.
    """
    flair, labels = prepared.volume[0], prepared.reference
    index = slice_with_most_tumor(labels, axis=0)
    low, high = np.percentile(flair[flair != 0], (1, 99))
    gray = np.clip((flair[index] - low) / max(high - low, 1e-6), 0, 1)
    views = [outlined(gray, masks[:, index]) for masks in (regions(labels), predicted)]
    return np.concatenate(views, axis=1)


def outlined(gray: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Draw the border of each mask, (3, H, W) bool, on a slice (H, W) of 0 to 1, enlarged."""
    def larger(x: np.ndarray) -> np.ndarray:
        return x.repeat(ENLARGE, 0).repeat(ENLARGE, 1)

    picture = np.stack([larger(gray)] * 3, axis=-1)
    for color, mask in zip(REGION_COLORS.values(), map(larger, masks), strict=True):
        picture[mask & ~binary_erosion(mask)] = to_rgb(color)
    return (255 * picture).astype(np.uint8)
