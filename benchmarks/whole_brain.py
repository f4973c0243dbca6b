"""Segment a patient at 1 mm with the full network on the CPU, beside nnU-Net's predictor.

`python -m benchmarks.whole_brain` runs each way in a process of its own and stores seconds and the
peak of memory in whole_brain.json, one row for each machine and precision. Both have a network of
the same topology with random weights, patches of 128^3, half overlap and Gaussian weights; the item
`infer` of `python -m benchmarks` compares what such networks return.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from brats_helpers.basics.config import PRESETS
from brats_helpers.basics.device import describe_device, keep_memory
from brats_helpers.basics.files import read_json, write_json
from brats_helpers.data.cases import read_case
from brats_helpers.data.preprocessing import normalize, prepare
from brats_helpers.evaluation.prediction import segment
from brats_helpers.evaluation.sliding_window import FLIPS, OPPOSITE_FLIPS
from brats_helpers.network.unet import UNet

from . import cohort, peers
from .timing import processor

WAYS = {"ours": len(OPPOSITE_FLIPS), "nnU-Net": len(FLIPS)}  # and the views of each by default
STORE = Path(__file__).with_name("whole_brain.json")


def measure(way: str, work: Path) -> dict:
    """Segment the first patient: ours with two views, nnU-Net with one; seconds and GiB."""
    keep_memory()
    cases, _, synthetic = cohort.bench_cases(work)
    patient, config = read_case(cases[0]), PRESETS["full"]
    torch.manual_seed(0)
    if way == "ours":
        views, model = WAYS[way], UNet(config.filters).eval()
        begin = time.perf_counter()
        segment([model], patient, config, tta=False, device=describe_device())
    else:
        plans = peers.NnUNet(cohort.nnunet_dataset(cases, work / "nnunet", synthetic))
        views, network = 1, peers.dynunet(config.filters).eval()
        predictor = peers.nnunet_predictor(network, plans, config.patch)
        predictor.use_mirroring = False
        begin = time.perf_counter()
        prepared = prepare(patient, config.spacing_mm)
        image = normalize(prepared.images, prepared.meta.mean, prepared.meta.std)
        predictor.predict_sliding_window_return_logits(torch.from_numpy(image))
    seconds = (time.perf_counter() - begin) / views
    import resource  # not on Windows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds_a_view": round(seconds, 1), "peak_gib": round(peak, 2)}


def table(rows: Sequence[dict]) -> str:
    """Return Markdown: seconds and memory of both on each machine."""
    lines = ["| processor, precision | | a view, s | views by default | a patient, s | peak, GiB |",
             "|---|---|--:|--:|--:|--:|"]
    for row in rows:
        for way, views in WAYS.items():
            found = row[way]
            lines.append(f"| {row['processor']}, {row['precision'] if way == 'ours' else 'float32'}"
                         f" | {way} | {found['seconds_a_view']:.0f} | {views} | "
                         f"{views * found['seconds_a_view']:.0f} | {found['peak_gib']:.1f} |")
    return "\n".join(lines)


def main() -> int:
    """Run every way on this machine, and store a row; with the name of a way, run only that."""
    work = Path("runs/bench").absolute()
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1], work)))
        return 0
    device = describe_device()
    row = {"processor": processor(device), "threads": torch.get_num_threads(),
           "precision": str(device.dtype).split(".")[1]}
    for way in WAYS:
        done = subprocess.run([sys.executable, "-m", "benchmarks.whole_brain", way], check=True,
                              stdout=subprocess.PIPE, text=True)
        row[way] = json.loads(done.stdout.splitlines()[-1])
    rows = read_json(STORE, "python -m benchmarks.whole_brain") if STORE.is_file() else []
    same = ("processor", "threads", "precision")
    rows = [old for old in rows if any(old[key] != row[key] for key in same)] + [row]
    write_json(STORE, rows)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
