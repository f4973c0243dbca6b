"""Compare a training step with a matrix product of as many operations: the limit of any step.

`ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 python -m benchmarks.limit` times forward and
backward of the item `train-step` in float32, and stores the seconds in limit.json.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from brats_helpers.basics.config import PRESETS
from brats_helpers.basics.device import describe_device, keep_memory
from brats_helpers.basics.files import write_json
from brats_helpers.network.losses import deep_supervision_loss
from brats_helpers.network.unet import UNet

from .timing import processor, race

STORE = Path(__file__).with_name("limit.json")
EDGE = 2048  # of the square matrices


def measure(rounds: int = 8) -> dict:
    """Count the operations of a step, and time it beside a product; seconds of equal work."""
    keep_memory()
    torch.manual_seed(0)
    model = UNet(PRESETS["quick"].filters).train()
    x, target = torch.randn(2, 5, 64, 64, 64), (torch.rand(2, 3, 64, 64, 64) > 0.9).float()
    a, b = torch.randn(2, EDGE, EDGE)

    def step() -> None:
        model.zero_grad()
        deep_supervision_loss(model(x), target).backward()

    with FlopCounterMode(display=False) as counter:
        step()
    operations = counter.get_total_flops()
    ours, peers = race(step, {"product": lambda: a @ b}, rounds)
    return {"processor": processor(describe_device()), "threads": torch.get_num_threads(),
            "operations": operations, "step_s": round(ours / 1000, 3),
            "product_s": round(peers["product"] / 1000 * operations / (2 * EDGE**3), 3)}


def sentence(found: dict) -> str:
    """Return the result as a sentence."""
    return (f"Forward and backward of the item `train-step` are {found['operations'] / 1e9:.0f} "
            f"billion floating-point operations and take {found['step_s']:.2f} s in float32. A "
            f"product of large matrices takes {found['product_s']:.2f} s for as many operations "
            f"({found['processor']}, {found['threads']} threads, `python -m benchmarks.limit`).")


if __name__ == "__main__":
    write_json(STORE, measure())
