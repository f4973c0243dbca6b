"""Compare this project with its peers in one run, as ratios: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from brats_helpers.basics.device import describe_device, keep_memory

from . import cohort, peers
from .items import ITEMS, Bench
from .report import write
from .timing import processor

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run the items, and write results.json, results.md and results.png."""
    keep_memory()  # for everybody: it helps the peers as much as us
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument("--only", choices=ITEMS, help="run one item")
    options.add_argument("--rounds", type=int, default=3, help="times that each way is run (3)")
    options.add_argument("--work", type=Path, default=Path("runs/bench"),
                         help="folder for data (runs/bench)")
    options.add_argument("--out", type=Path, default=HERE,
                         help="folder for the results (benchmarks)")
    chosen = options.parse_args()
    cases, archive, synthetic = cohort.bench_cases(chosen.work.absolute())
    raw = cohort.nnunet_dataset(cases, chosen.work.absolute() / "nnunet", synthetic)
    bench = Bench(cases, archive, peers.NnUNet(raw), chosen.work.absolute(), chosen.rounds)
    results = []
    with tqdm([chosen.only] if chosen.only else ITEMS, unit="item") as bar:
        for name in bar:
            bar.set_postfix_str(name)
            # one result, several, or none where the data are not there
            done = getattr(bench, name)()
            results += done if isinstance(done, list) else [done] if done else []
    device = describe_device()
    machine = {"processor": processor(device), "threads": torch.get_num_threads(),
               "precision": str(device.dtype), "torch": torch.__version__,
               "python": platform.python_version(), "data": "phantoms, 240 x 240 x 155" if synthetic
               else "real patients, 240 x 240 x 155", "date": datetime.date.today().isoformat()}
    print(write(results, machine, chosen.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
