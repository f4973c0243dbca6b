"""Times two or more ways of doing one thing in turn in one process, for stable ratios."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from brats_helpers.basics.device import Device

Way = Callable[[], object]


@dataclass
class Result:
    """Holds a row of the table: the cost of this project and of its peers, in `unit`."""

    item: str
    ours: float
    peers: dict[str, float]
    equal: str  # what was compared before anything was timed, and how it came out
    unit: str = "ms"
    # peer -> the ratio that this project set out to reach
    goals: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> dict[str, float]:
        """Return each peer's cost relative to ours."""
        return {name: value / self.ours for name, value in self.peers.items()}

    def as_dict(self) -> dict:
        """Return the row of results.json."""
        return {"item": self.item, f"ours_{self.unit}": round(self.ours, 3), "unit": self.unit,
                "peers": {k: round(v, 3) for k, v in self.peers.items()},
                "ratio": {k: round(v, 2) for k, v in self.ratio.items()}, "goals": self.goals,
                "equal": self.equal}


def processor(device: Device) -> str:
    """Return the processor's name, and the instructions to which oneDNN is limited, if it is."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"{device.name} limited to {limit}" if limit else device.name


def race(ours: Way, peers: Mapping[str, Way], rounds: int,
         in_a_row: int = 1) -> tuple[float, dict[str, float]]:
    """Return the median milliseconds of ours and of each peer, after one round that does not count.

    A round takes the mean of `in_a_row` runs of each way, which evens out random work.
    """
    ways = {"ours": ours, **peers}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            for _ in range(in_a_row):
                way()
            if number:
                taken[name].append(1000 * (time.perf_counter() - begin) / in_a_row)
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    return medians.pop("ours"), medians


@contextmanager
def one_core() -> Iterator[None]:
    """Run the block on a single core, libraries' threads included (outside Linux only torch's)."""
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    try:
        torch.set_num_threads(1)
        if cores:
            os.sched_setaffinity(0, {max(cores)})
        yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)
