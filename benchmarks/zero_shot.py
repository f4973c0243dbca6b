"""Scores a network that has seen only phantoms on labeled patients.

    python -m brats_helpers run --source wide -p patients 150 -p epochs 12 --work runs/wide
    python -m benchmarks.zero_shot runs/wide/checkpoints/best.pt FOLDER_OF_PATIENTS

Prints Dice for each patient and region, and their means with bootstrap intervals; writes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from brats_helpers.basics.constants import REGIONS
from brats_helpers.basics.device import describe_device
from brats_helpers.data.cases import find_cases, read_case
from brats_helpers.evaluation.checkpoints import load_checkpoint
from brats_helpers.evaluation.metrics import bootstrap_ci, dice, regions
from brats_helpers.evaluation.prediction import segment


def main(checkpoint: Path, folder: Path) -> None:
    """Score a checkpoint on every labeled patient, with eight views, on the scans' own grid."""
    device = describe_device()
    model, config = load_checkpoint(checkpoint, device)
    scores = {}
    for case in tqdm([case for case in find_cases(folder) if case.reference], unit="patient"):
        patient = read_case(case)
        labels, _ = segment([model], patient, config, True, device)
        scores[case.name] = [dice(a, b)
                             for a, b in zip(regions(labels), regions(patient.reference),
                                             strict=True)]
    print(f"{'patient':<20} " + "  ".join(f"{name:>5}" for name in REGIONS))
    for name, row in scores.items():
        print(f"{name:<20} " + "  ".join(f"{score:5.2f}" for score in row))
    for name, column in zip(REGIONS, np.array(list(scores.values())).T, strict=True):
        print("{}: {:.3f} ({:.3f} to {:.3f})".format(name, *bootstrap_ci(column)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
