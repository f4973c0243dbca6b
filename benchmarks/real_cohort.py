"""Compares this project with nnU-Net v2 on a few real patients and a budget of minutes.

    python -m benchmarks.real_cohort FOLDER_OF_PATIENTS --minutes 20

In each of five folds both learn from the same patients on the same machine for the same wall-clock
minutes, preprocessing included. Both segment the same unseen patients, at 1 mm on a GPU and at 2 mm
on a CPU. The same code scores them on the scans' own grid. With `--at-once 2` two trainings run
side by side, each on half of the cores. What `--work` already holds is not repeated. Nothing that
shows a patient is written next to the scores.
"""

from __future__ import annotations

import argparse
import datetime
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from brats_helpers.basics.constants import MODALITIES, REGIONS
from brats_helpers.basics.device import describe_device
from brats_helpers.basics.errors import BratsError
from brats_helpers.basics.files import atomic_path, read_json, write_json
from brats_helpers.data.cases import Case, find_cases, read_case, write_mask
from brats_helpers.data.preprocessing import downsample, downsample_labels, rescale
from brats_helpers.data.splits import make_splits
from brats_helpers.evaluation.metrics import dice, lesion_wise, regions, score_case

from .real_systems import EPOCHS, NnUNet, Ours, cores, real_settings
from .real_tables import (
    SYSTEMS,
    by_patients,
    draw,
    means_table,
    patients_table,
    scores_by_system,
    trainings,
    verdicts,
)

HERE = Path(__file__).resolve().parent
CURVE = (0, 1, 3, 7, 11, 15, 19)  # snapshots that the learning curve is drawn from, with few views


def labeled_cases(folder: Path) -> list[Case]:
    """Return the labeled patients; raises BratsError for fewer than ten (five folds of two)."""
    cases = sorted((case for case in find_cases(folder) if case.reference),
                   key=lambda case: case.name)
    if len(cases) < 10:
        raise BratsError(f"{folder} holds {len(cases)} labeled patients: five folds need ten.")
    return cases


def folds(cases: Sequence[Case]) -> list[list[str]]:
    """Return five lists of held-out patients, each with small and large tumors."""
    volumes = [float((read_case(case).reference > 0).sum()) for case in cases]
    return make_splits([case.name for case in cases], volumes, seed=0)["folds"]


def coarse_case(case: Case, folder: Path, spacing_mm: float) -> Case:
    """Write the patient resampled to `spacing_mm`; returns the case itself at 1 mm."""
    patient = read_case(case)
    factor = [spacing_mm / s for s in patient.spacing]
    if max(factor) <= 1:
        return case
    affine = patient.affine @ np.diag([*factor, 1.0])
    affine[:3, 3] += patient.affine[:3, :3] @ ((np.array(factor) - 1) / 2)
    for name, image in zip(MODALITIES, downsample(patient.images, factor), strict=True):
        with atomic_path(folder / case.name / f"{case.name}_{name}.nii.gz") as temporary:
            nib.save(nib.Nifti1Image(image, affine), temporary)
    write_mask(folder / case.name / f"{case.name}_seg.nii.gz",
               downsample_labels(patient.reference, factor), affine)
    return find_cases(folder / case.name)[0]


def scores(system: Ours | NnUNet, original: Case, seen: Case, snapshot: Path,
           views: bool = True) -> dict:
    """Return Dice, HD95 and lesion-wise Dice by region, on the original grid."""
    patient = read_case(original)
    probabilities = system.probabilities(seen, snapshot, views)
    factor = [a / b for a, b in zip(patient.images.shape[1:], probabilities.shape[1:], strict=True)]
    if max(factor) > 1.01:  # the coarse grid may reach past the end of the fine one
        whole = rescale(probabilities, [float(round(f)) for f in factor])
        probabilities = whole[:, *(slice(n) for n in patient.images.shape[1:])]
    labels = system.labels(probabilities, patient.spacing)
    if not views:
        pairs = zip(REGIONS, regions(labels), regions(patient.reference), strict=True)
        return {name: dice(a, b) for name, a, b in pairs}
    rows = score_case(labels, patient.reference, patient.spacing)
    for name, a, b in zip(REGIONS, regions(labels), regions(patient.reference), strict=True):
        rows[name]["lesion_dice"] = lesion_wise(a, b, patient.spacing)["dice"]
    return rows


def build(name: str, folder: Path, spacing_mm: float) -> Ours | NnUNet:
    """Return a system that keeps everything in `folder`."""
    config = real_settings(spacing_mm)
    filters = None if name == "nnunet" else config.filters
    if name.startswith("ours"):
        return Ours(folder, config, phantoms=name == "ours")
    return NnUNet(folder, filters, config.patch, config.batch)


def run_one(options: argparse.Namespace, system_name: str, fold: int) -> None:
    """Train one system on one fold and score it; `result.json` marks it as finished."""
    kind = (f"{options.minutes:g}min-{options.spacing:g}mm-{options.patients or 'all'}-"
            f"{cores()}cores")
    place = options.work / f"seed{options.seed}" / f"fold{fold}" / kind / system_name
    cases = labeled_cases(options.folder)
    held_out = folds(cases)[fold]
    coarse = {case.name: coarse_case(case, options.work / "cases", options.spacing)
              for case in cases}
    system = build(system_name, place, options.spacing)
    learnt = [case for name, case in coarse.items() if name not in held_out][:options.patients]
    # from the start: what was cut off has used up its minutes
    if not (place / "training.json").is_file():
        shutil.rmtree(place, ignore_errors=True)
        system.train(learnt, options.minutes, options.seed)
    training = read_json(place / "training.json", "the training")
    unseen = [case for case in cases if case.name in held_out]
    final = {case.name: scores(system, case, coarse[case.name],
                               place / "snapshots" / f"{EPOCHS - 1:02d}.pt")
             for case in tqdm(unseen, desc="score", unit="patient")}
    curve = []
    for number in CURVE:
        found = [scores(system, case, coarse[case.name], place / "snapshots" / f"{number:02d}.pt",
                        False) for case in unseen]
        curve.append([training["snapshots"][number],
                      *(float(np.mean([row[name] for row in found])) for name in REGIONS)])
    device = describe_device()
    write_json(place / "result.json",
               {"system": system_name, "fold": fold, "seed": options.seed,
                "minutes": options.minutes, "spacing_mm": options.spacing, "learnt": len(learnt),
                "cores": cores(), "training": {k: v for k, v in training.items()
                                               if k != "snapshots"}, "curve": curve,
                "patients": final, "machine": f"{device.name}, {cores()} of {os.cpu_count()} cores",
                "date": datetime.date.today().isoformat()})


def gather(options: argparse.Namespace) -> dict[tuple, dict]:
    """Return the results stored in the file and in the work folder, by `key_of`."""
    earlier = read_json(options.out, "this benchmark")["results"] if options.out.is_file() else []
    here = [read_json(path, "a training")
            for path in sorted(options.work.glob("seed*/fold*/*/*/result.json"))]
    return {key_of(r): r for r in [*earlier, *here]}


def key_of(result: dict) -> tuple:
    """Return what identifies a result; the same is not measured twice."""
    return tuple(result[name] for name in ("system", "fold", "seed", "minutes", "spacing_mm",
                                           "cores", "learnt"))


def shares_of_cores(number: int) -> queue.Queue:
    """Return this process's cores in equal parts.

    Raises BratsError if there are too few, or none can be chosen (outside Linux).
    """
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    if number > len(mine):
        raise BratsError(f"--at-once {number}: there are {len(mine)} cores that a training could "
                         "be given alone.")
    shares: queue.Queue = queue.Queue()
    for first in range(number):
        shares.put(mine[first::number][:len(mine) // number])
    return shares


def keep_to_a_share(shares: queue.Queue) -> None:
    """Give this thread, and each process that it starts, the next share of the cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, shares.get())


def run_apart(options: argparse.Namespace, name: str, fold: int) -> None:
    """Run one training and its scores in their own process."""
    subprocess.run([sys.executable, "-m", "benchmarks.real_cohort", str(options.folder), "--one",
                    "--systems", name, "--folds", str(fold), "--minutes", str(options.minutes),
                    "--seed", str(options.seed), "--work", str(options.work), "--spacing",
                    str(options.spacing), *(["--patients", str(options.patients)]
                                            if options.patients else [])], check=True)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_cohort",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="labeled patients in BraTS's layout")
    parser.add_argument("--minutes", type=float, default=20,
                        help="wall-clock budget of a training (20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patients", type=int,
                        help="to learn from in each fold, at most (all but the fold)")
    parser.add_argument("--spacing", type=float, help="mm; 1 on a GPU, 2 without")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(5)),
                        help="0: the fixed list for quick looks")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=[SYSTEMS[0], *SYSTEMS[2:]])
    parser.add_argument("--at-once", type=int, default=1,
                        help="trainings side by side, which share the cores (1; Linux)")
    parser.add_argument("--work", type=Path, default=Path("runs/real"),
                        help="folder for everything (runs/real)")
    parser.add_argument("--out", type=Path, default=HERE / "real_cohort.json",
                        help="where the scores go")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.spacing = options.spacing or (1.0 if torch.cuda.is_available() else 2.0)
    options.work = options.work.absolute()
    return options


def main() -> int:
    """Run what is missing, write real_cohort.json and print the tables."""
    options = read_options()
    if options.one:
        run_one(options, options.systems[0], options.folds[0])
        return 0
    cases = labeled_cases(options.folder)
    learnt = [len(cases) - len(fold) for fold in folds(cases)]
    learnt = [min(options.patients or n, n) for n in learnt]
    shares, each = shares_of_cores(options.at_once), cores() // options.at_once
    results = gather(options)
    missing = [(name, fold) for fold in options.folds for name in options.systems
               if (name, fold, options.seed, options.minutes, options.spacing, each,
                   learnt[fold]) not in results]
    with ThreadPoolExecutor(options.at_once, initializer=keep_to_a_share,
                            initargs=(shares,)) as pool:
        for _ in tqdm(pool.map(lambda one: run_apart(options, *one), missing), total=len(missing),
                      desc="trainings"):
            results = gather(options)
            write_json(options.out, {"results": list(results.values())})
    alike = [result for key, result in results.items()
             if key[3:6] == (options.minutes, options.spacing, each)]
    shown = [result for result in alike if result["learnt"] in learnt]
    draw(shown, options.out.with_suffix(".png"))
    found = scores_by_system(shown)
    print(patients_table(found), means_table(found), verdicts(found), trainings(shown),
          by_patients(alike), sep="\n\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BratsError as error:
        sys.exit(f"ERROR: {error}")
