"""Trains networks that lack something, as long as the network in the box, and scores them.

    python -m benchmarks.ablation FOLDER [FOLDER ...] --network "half as wide" --work runs/ablation

Each learns from the phantoms of `make weights`, with its settings but for those in NETWORKS. The
scores go to benchmarks/zero_shot.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from brats_helpers.basics.device import describe_device
from brats_helpers.basics.files import read_json, write_json
from brats_helpers.data.cases import find_cases
from brats_helpers.phantoms.prepared import prepare_varied
from brats_helpers.tools.weights import CONFIG, TRAINING
from brats_helpers.training.loop import train

from .zero_shot import ABLATION, STORED, score

HALF = {"filters": (8, 16, 32, 64)}
NETWORKS = {"half as wide": HALF,
            "half as wide, always all four contrasts": HALF | {"modality_dropout": 0.0}}


def main() -> None:
    """Train one network, or go on with it, and score it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    device = describe_device()
    config = CONFIG.with_(**NETWORKS[options.network])
    files = prepare_varied(options.work / "preprocessed", TRAINING, config.seed, config.spacing_mm)
    checkpoints = options.work / options.network.replace(" ", "_")
    train(config, files, [], checkpoints, device=device, synthetic=True)
    cases = [case for folder in options.folders for case in find_cases(folder) if case.reference]
    rows = score(checkpoints / "last.pt", cases, device, 1)
    results = read_json(STORED, "the benchmark of the network in the box")
    write_json(STORED, results | {ABLATION + options.network: rows})


if __name__ == "__main__":
    main()
