"""How far phantoms are from patients: distances of z-scores by compartment and contrast.

    python -m benchmarks.domain_shift FOLDER_OF_PATIENTS

Wasserstein distances, in standard deviations of a brain, between the labeled patients of a folder and phantoms of each kind,
all at 2 mm. Writes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from brats_helpers.data.cases import find_cases, read_case
from brats_helpers.data.preprocessing import prepare
from brats_helpers.lessons.compare_cohorts import distances
from brats_helpers.phantoms.kinds import LOOKS
from brats_helpers.phantoms.patient import some_phantoms

SPACING_MM, PHANTOMS = 2.0, 40


def main(folder: Path) -> None:
    """Print a table of distances for each kind of phantom, and the mean over the tumor's compartments."""
    cases = [case for case in find_cases(folder) if case.reference]
    patients = [prepare(read_case(case), SPACING_MM) for case in tqdm(cases, unit="patient")]
    for kind in LOOKS:
        table = distances(patients, some_phantoms(kind, PHANTOMS, SPACING_MM))
        print(f"\n{kind:<10}" + "".join(f"{title:>7}" for title in table["healthy"]))
        for name, row in table.items():
            print(f"{name:<10}" + "".join(f"{value:7.2f}" for value in row.values()))
        print("mean over the tumor: "
              f"{np.mean([list(row.values()) for name, row in table.items() if name != 'healthy']):.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
