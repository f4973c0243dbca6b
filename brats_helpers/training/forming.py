"""How a prediction forms: the probabilities in one slice of one patient after a few steps.

Notebook 05 draws them. A training of EARLY[-1] steps or fewer keeps none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..basics.config import Config
from ..basics.device import Device
from ..basics.files import atomic_path
from ..data.preprocessing import network_input, slice_with_most_tumor
from ..data.storage import load_prepared
from ..evaluation.sliding_window import sliding_window_inference
from . import distributed
from .state import State

EARLY = (0, 25, 100)  # steps at which a slice is kept, besides the last step
FOLDER = "forming"  # beside the checkpoints
FULL = 255  # stands for a probability of 1


class SliceRecorder:
    """A recorder of how the probabilities in one slice of the first patient change in training."""

    def __init__(self, patients: Sequence[Path], folder: Path, config: Config,
                 device: Device) -> None:
        self.patient = min(patients, key=lambda path: path.name)
        self.folder, self.config, self.device = folder / FOLDER, config, device
        total = config.epochs * config.steps
        wanted = total > EARLY[-1] and distributed.rank() == 0
        self.steps = {*EARLY, total} if wanted else set()

    def __call__(self, state: State) -> None:
        """Write the slice with the most tumor, (3, H, W) uint8, if this step is one to keep."""
        if state.step not in self.steps:
            return
        prepared, network = load_prepared(self.patient), state.ema.module.eval()
        image = network_input(prepared, self.device)
        found = sliding_window_inference(network, image, self.config.patch, self.config.overlap,
                                         device=self.device)
        at = slice_with_most_tumor(prepared.reference, axis=0)
        with atomic_path(self.folder / f"{state.step}.npy") as temporary:
            np.save(temporary, (found[:, at] * FULL).round().byte().cpu().numpy())


def read_forming(folder: Path) -> dict[int, np.ndarray]:
    """Read step -> probabilities (3, H, W) float32 from a folder of checkpoints, in order."""
    found = {int(path.stem): path for path in (Path(folder) / FOLDER).glob("[0-9]*.npy")}
    return {step: np.load(found[step]).astype(np.float32) / FULL for step in sorted(found)}
