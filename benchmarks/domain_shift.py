"""Measures how far phantoms are from patients: distances of z-scores by compartment and modality.

    python -m benchmarks.domain_shift FOLDER_OF_PATIENTS

Wasserstein distances, in standard deviations of a brain, between the labeled patients of a folder
and phantoms of each kind, all at 2 mm. Writes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from brats_helpers.data.cases import find_cases, read_case
from brats_helpers.data.preprocessing import prepare
from brats_helpers.lessons.compare_cohorts import distances
from brats_helpers.phantoms.kinds import KINDS, make_patient

SPACING_MM, PHANTOMS, SEED = 2.0, 40, 9


def main(folder: Path) -> None:
    """Print the distances for each kind of phantom, and their mean over the tumor."""
    cases = [case for case in find_cases(folder) if case.reference]
    patients = [prepare(read_case(case), SPACING_MM) for case in tqdm(cases, unit="patient")]
    for kind in KINDS:
        numbers = tqdm(range(PHANTOMS), desc="phantoms", unit="patient")
        phantoms = [prepare(make_patient(SEED, n, SPACING_MM, kind), SPACING_MM) for n in numbers]
        table = distances(patients, phantoms)
        print(f"\n{kind:<10}" + "".join(f"{title:>7}" for title in table["healthy"]))
        for name, row in table.items():
            print(f"{name:<10}" + "".join(f"{value:7.2f}" for value in row.values()))
        tumor = [list(row.values()) for name, row in table.items() if name != "healthy"]
        print(f"mean over the tumor: {np.mean(tumor):.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
