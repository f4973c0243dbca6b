"""Say what was chosen for this machine and how long the series will take, from a short measurement.

The constants come from a run of the quick preset (docs/costs.md).
"""

from __future__ import annotations

import statistics
import time

import torch

from ..basics.config import Config
from ..basics.device import Device
from ..training.state import new_state
from ..training.step import train_step

PRESET = "quick"  # the one that a measurement of seconds can forecast
OTHER_SECONDS = 80.0  # of notebooks 02 to 05 that depend little on the network: files and pictures
OTHER_STEPS = 350  # validation, evaluation and notebook 04, in training steps


def forecast_minutes(config: Config, device: Device, seconds: float = 2.0) -> float | None:
    """Print device, precision, threads and the minutes that notebooks 02 to 05 will take.

    Returns the minutes; None, and no measurement, for a preset other than quick.
    """
    threads = f", {torch.get_num_threads()} threads" if device.kind == "cpu" else ""
    print(f"chosen: {device.kind}, {device.precision}{threads}; {config.epochs * config.steps} "
          f"steps of {config.batch} patches of {config.patch} voxels per edge")
    if config.preset != PRESET:
        print("docs/costs.md says how long this preset takes.")
        return None
    step = step_seconds(config, device, seconds)
    minutes = minutes_left(config, step)
    print(f"A training step takes {step:.2f} s now: about {minutes:.0f} minutes for notebooks 02 "
          "to 05, longer if other programs are busy.")
    return minutes


def minutes_left(config: Config, step: float) -> float:
    """Estimate the minutes of notebooks 02 to 05 from the seconds of a training step."""
    return (OTHER_SECONDS + step * (config.epochs * config.steps + OTHER_STEPS)) / 60


def step_seconds(config: Config, device: Device, seconds: float) -> float:
    """Time training steps on random patches for `seconds`; returns the median of a step."""
    with torch.random.fork_rng():
        state = new_state(config, device)
        shape = (config.batch, 5, *(config.patch,) * 3)
        images = torch.randn(shape, device=device.torch_device)
    batch = {"prepared": (images, (images[:, :3] > 1).float()), "name": ["random"] * config.batch}
    train_step(state, batch, config, device)  # the first one also reserves memory
    took, begun = [], time.perf_counter()
    while not took or time.perf_counter() - begun < seconds:
        before = time.perf_counter()
        train_step(state, batch, config, device)
        took.append(time.perf_counter() - before)
    return statistics.median(took)
