"""Estimates what the series costs for 1,251 patients: `python -m benchmarks.costs` prints it.

`python -m benchmarks.costs patch` times the quarter of a patch from which the CPU's row follows.

One GPU was timed, an H200 (`python -m benchmarks.gpu`). The others follow from it by the ratio of
their data sheets: matrix products (fp16 or bf16, dense) and memory bandwidth, the two limits of a
training. NVIDIA's own figures test the method. Its 3D U-Net trains 11.4 patches of 128^3 per second
on a V100 and 24.6 on an A100 of 80 GB (its README, "Training performance", batch 1), a ratio of
0.46. The data sheets give 0.40 and 0.44.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from brats_helpers.basics.config import PRESETS
from brats_helpers.basics.device import describe_device, keep_memory
from brats_helpers.lessons.session import OTHER_MB, PREPARED_MB
from brats_helpers.network import UNet
from brats_helpers.network.losses import deep_supervision_loss

from .gpu import flips_and_views

# LONG: epochs of a fold for a submission
PATIENTS, EPOCHS, PATCHES, FOLDS, LONG = 1251, 30, 1000, 5, 150
HELD_OUT = PATIENTS // FOLDS + 1  # validated on after each epoch
RESULTS, TIMED = (Path(__file__).with_name(name)
                  for name in ("results.json", "gpu_nvidia_h200.json"))
# what `python -m benchmarks.costs patch` printed on two cores of an AMD EPYC with AVX2 alone
QUARTER_SECONDS = 24.5
A100_EPOCH = 173.0  # s for 1,000 patches and 251 validation patients: NVIDIA's BraTS21 notebook
PUBLISHED = {"V100": 11.38, "A100": 24.61}  # patches a second: its README, November 2022


@dataclass(frozen=True)
class Gpu:
    """Holds the figures of a data sheet."""

    tflops: float  # of matrix products, fp16 or bf16, dense
    gigabytes: float  # a second, of memory
    cards: int = 1
    small: bool = False  # 16 GB: the kaggle preset
    compiles: bool = True  # Triton knows it


# NVIDIA's data sheets of T4, P100 (PCIe), A100 (80 GB, SXM), H200 (SXM, half of the figure with
# sparsity) and V100 (SXM2).
H200, V100 = Gpu(989, 4800), Gpu(125, 900)
GPUS = {"T4": Gpu(65, 320, small=True), "T4 x2": Gpu(65, 320, 2, small=True),
        "P100": Gpu(18.7, 732, small=True, compiles=False), "A100": Gpu(312, 2039), "H200": H200}


def relative(gpu: Gpu, unit: Gpu = H200) -> tuple[float, float]:
    """Return the speed of a card relative to `unit`, at worst and at best."""
    ratios = gpu.tflops / unit.tflops, gpu.gigabytes / unit.gigabytes
    return min(ratios), max(ratios)


def timed(gpu: Gpu) -> tuple[float, float, float]:
    """Return what the H200 took with a card's preset.

    Seconds an epoch with validation, seconds a patient with 8 flips, peak GiB.
    """
    found = json.loads(TIMED.read_text())
    few, flips, views = flips_and_views(found["inference_seconds"])
    # a view takes (flips - views) / (8 - few) seconds; validation takes one
    held_out = HELD_OUT * (views - (few - 1) * (flips - views) / (8 - few))
    if gpu.small:
        row = found["t4"]["compiled" if gpu.compiles else "not compiled"]
        return PATCHES / row["steps_per_second"] + held_out, flips, row["peak_gib"]
    loader = found["training"]
    wanted = ("ours", "bfloat16", loader["batch"])
    peak = next(row["peak_gib"] for row in found["throughput"]
                if (row["network"], row["dtype"], row["batch"]) == wanted)
    return PATCHES / (loader["batch"] * loader["from disk"]) + held_out, flips, peak


def epoch_seconds(gpu: Gpu) -> tuple[float, float]:
    """Return an epoch's seconds at best and at worst; two cards count as twice as fast."""
    slow, fast = relative(gpu)
    once = timed(gpu)[0] / gpu.cards
    return once / fast, once / slow


def span(low: float, high: float, digits: int = 0) -> str:
    """Format a range to two significant digits, or one number if both ends read the same."""
    ends = [f"{float(f'{value:.2g}'):,.{digits}f}" for value in (low, high)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def row(name: str, gpu: Gpu) -> str:
    """Return a row of the table."""
    low, high = epoch_seconds(gpu)
    fold, five = ([count * seconds / 3600 for seconds in (low, high)]
                  for count in (EPOCHS, FOLDS * LONG * gpu.cards))
    _, flips, peak = timed(gpu)
    segment = [FOLDS * flips / speed for speed in reversed(relative(gpu))]
    how = {"H200": "from what was measured",
           "A100": f"computed; NVIDIA's {A100_EPOCH:.0f}"}.get(name, "computed")
    return (f"| {name} | {span(low, high)} ({how}) | {span(*fold, 1)} | {span(*five)} | "
            f"{span(*segment)} | {peak:.1f} GiB at batch {1 if gpu.small else 2} |")


def quarter_seconds(filters: Sequence[int] = PRESETS["full"].filters) -> float:
    """Time a network forward and backward on 128 x 64 x 64 voxels, on this machine."""
    keep_memory()
    device, shape = describe_device(), (128, 64, 64)
    model = UNet(filters).to(device.torch_device).train()
    images, target = (torch.rand(1, n, *shape, device=device.torch_device) for n in (5, 3))
    begin = time.perf_counter()
    with device.autocast():
        outputs = model(images)
    deep_supervision_loss(outputs, target).backward()
    return time.perf_counter() - begin


def table() -> str:
    """Return the table and the line below it as Markdown."""
    patch = QUARTER_SECONDS * 4
    cpu = [patch * PATCHES, patch * PATCHES * EPOCHS / 3600, patch * PATCHES * FOLDS * LONG / 3600]
    seconds = next(i["ours_ms"] for i in json.loads(RESULTS.read_text())["items"]
                   if i["item"] == "preprocess") / 1000
    prepared, disk = PATIENTS * PREPARED_MB[1.0] / 1000, OTHER_MB / 1000
    lines = ["| machine | an epoch of 1,000 patches, s | one fold, 30 epochs, h | five folds of "
             "150 epochs, GPU hours | a patient by five networks, 8 views, s | GPU memory |",
             "|---|---|---|---|---|---|",
             f"| CPU, two cores without bf16 | {cpu[0]:,.0f} (computed, from a measured patch) | "
             f"{cpu[1]:,.0f} | {cpu[2]:,.0f} on the CPU | not computed | none |",
             *(row(name, gpu) for name, gpu in GPUS.items()), "",
             f"Before that, each machine needs {PATIENTS * seconds / 60:.1f} minutes of one core "
             f"to prepare {PATIENTS:,} patients ({seconds:.2f} s each, measured), {prepared:.1f} "
             f"GB for them (measured on ten) and {disk:.1f} GB for checkpoints, besides the "
             "archive, which stays packed."]
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{quarter_seconds():.1f} s" if sys.argv[1:] == ["patch"] else table())
