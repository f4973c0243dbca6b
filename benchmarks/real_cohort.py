"""A few real patients, a budget of minutes: this project beside nnU-Net v2, five folds of a small cohort.

    python -m benchmarks.real_cohort FOLDER_OF_PATIENTS --minutes 20

In each fold both learn from the same patients on the same machine for the same wall-clock minutes, preprocessing included,
and segment the same unseen patients, at 1 mm on a GPU and at 2 mm on a CPU. One piece of code scores them on the scans' own
grid. With `--at-once 2` two trainings run side by side, each on half of the cores. What is done already in `--work` is not
done again. Nothing that shows a patient is written beside the scores.
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
from brats_helpers.data.preprocessing import coarsen, coarsen_labels, rescale
from brats_helpers.data.splits import make_splits
from brats_helpers.evaluation.metrics import bootstrap_ci, dice, lesion_wise, regions, score_case

from .real_systems import EPOCHS, NnUNet, Ours, cores, real_settings

HERE = Path(__file__).resolve().parent
SYSTEMS = ("ours", "ours-without-phantoms", "nnunet-small", "nnunet")
SHOWN = (*SYSTEMS, "ours-a-third-kept")  # as it was at commit 5e6be1f, which is not run any more
MEASURES = ("dice", "hd95_mm", "lesion_dice")
CURVE = (0, 1, 3, 7, 11, 15, 19)  # snapshots that the learning curve is drawn from, with few views


def labeled_cases(folder: Path) -> list[Case]:
    """The patients with a reference; BratsError for fewer than ten, which five folds of two need."""
    cases = sorted((case for case in find_cases(folder) if case.reference),
                   key=lambda case: case.name)
    if len(cases) < 10:
        raise BratsError(f"{folder} holds {len(cases)} labeled patients: five folds need ten.")
    return cases


def folds(cases: Sequence[Case]) -> list[list[str]]:
    """Five lists of patients to be held out, each with small and large tumors; the same for the same patients."""
    volumes = [float((read_case(case).reference > 0).sum()) for case in cases]
    return make_splits([case.name for case in cases], volumes, seed=0)["folds"]


def coarse_case(case: Case, folder: Path, spacing_mm: float) -> Case:
    """The patient as a scanner with voxels of `spacing_mm` would have stored him, in BraTS's names; itself at 1 mm."""
    patient = read_case(case)
    factor = [spacing_mm / s for s in patient.spacing]
    if max(factor) <= 1:
        return case
    affine = patient.affine @ np.diag([*factor, 1.0])
    affine[:3, 3] += patient.affine[:3, :3] @ ((np.array(factor) - 1) / 2)
    for name, image in zip(MODALITIES, coarsen(patient.images, factor), strict=True):
        with atomic_path(folder / case.name / f"{case.name}_{name}.nii.gz") as temporary:
            nib.save(nib.Nifti1Image(image, affine), temporary)
    write_mask(folder / case.name / f"{case.name}_seg.nii.gz",
               coarsen_labels(patient.reference, factor), affine)
    return find_cases(folder / case.name)[0]


def scores(system: Ours | NnUNet, original: Case, seen: Case, snapshot: Path,
           views: bool = True) -> dict:
    """Dice, HD95 and lesion-wise Dice by region, on the original grid, of what a snapshot makes of a patient."""
    patient = read_case(original)
    probabilities = system.probabilities(seen, snapshot, views)
    factor = [a / b for a, b in zip(patient.images.shape[1:], probabilities.shape[1:], strict=True)]
    if max(factor) > 1.01:  # the coarse grid may reach past the end of the fine one
        whole = rescale(probabilities, [float(round(f)) for f in factor])
        probabilities = whole[:, *(slice(n) for n in patient.images.shape[1:])]
    labels = system.labels(probabilities, patient.spacing)
    if not views:
        return {name: dice(a, b) for name, a, b in zip(REGIONS, regions(labels),
                                                       regions(patient.reference), strict=True)}
    rows = score_case(labels, patient.reference, patient.spacing)
    for name, a, b in zip(REGIONS, regions(labels), regions(patient.reference), strict=True):
        rows[name]["lesion_dice"] = lesion_wise(a, b, patient.spacing)["dice"]
    return rows


def build(name: str, folder: Path, spacing_mm: float) -> Ours | NnUNet:
    """A system, which keeps everything in `folder`."""
    config = real_settings(spacing_mm)
    filters = None if name == "nnunet" else config.filters
    if name.startswith("ours"):
        return Ours(folder, config, phantoms=name == "ours")
    return NnUNet(folder, filters, config.patch, config.batch)


def run_one(options: argparse.Namespace, system_name: str, fold: int) -> None:
    """Train one system on one fold and score it; `result.json` in its folder is the sign that all is done."""
    kind = f"{options.minutes:g}min-{options.spacing:g}mm-{options.patients or 'all'}-{cores()}cores"
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


def table(results: Sequence[dict]) -> str:
    """Markdown: Dice of each unseen patient, and each system's means beside ours on the patients that both segmented.

    A row of means for each seed, and one of each patient's mean over the seeds: the same patients again are no more patients.
    """
    found: dict[tuple, dict] = {}  # (seed, system) -> patient -> (measure, region)
    for result in results:
        for name, row in result["patients"].items():
            found.setdefault((result["seed"], result["system"]), {})[name] = np.array(
                [[row[region][measure] for region in REGIONS] for measure in MEASURES])
    present = sorted(found, key=lambda key: (key[0], SHOWN.index(key[1])))
    lines = ["| patient | " + " | ".join(f"{system}, seed {seed}"
                                         for seed, system in present) + " |",
             "|---" * (len(present) + 1) + "|"]
    for name in sorted(set().union(*found.values())):
        cells = [_three(found[key][name][0], 2) if name in found[key] else "" for key in present]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    seeds = sorted({seed for seed, _ in found})
    for system in SYSTEMS if len(seeds) > 1 else ():
        several = [found.get((seed, system), {}) for seed in seeds]
        if names := set.intersection(*map(set, several)):
            found["all", system] = {name: np.mean([one[name] for one in several], axis=0)
                                    for name in names}
            present.append(("all", system))
    lines += ["",
              "| seed | system | patients | Dice | mean | ours on the same | ours above it (95 % "
              "interval) | HD95, mm " "| lesion-wise Dice |",
              "|--:|---|--:|--:|--:|--:|---|--:|--:|"]
    for seed, system in present:
        mine, beside = found[seed, system], found.get((seed, "ours"), {})
        both = sorted(mine.keys() & beside.keys())
        if not both:
            continue
        rows, ours = (np.array([one[name] for name in both]) for one in (mine, beside))
        dices, distances, lesions = rows.mean(0)
        gains = ours[:, 0].mean(1) - rows[:, 0].mean(1)
        gain = "" if system == "ours" else "{:+.3f} ({:+.3f} to {:+.3f})".format(
            *bootstrap_ci(gains))
        lines.append(f"| {seed} | {system} | {len(both)} | {_three(dices)} | {dices.mean():.3f} "
                     f"| {_three(ours[:, 0].mean(0))} | {gain} | {_three(distances, 1)} | "
                     f"{_three(lesions)} |")
    return "\n".join(lines)


def by_patients(results: Sequence[dict]) -> str:
    """Markdown: mean Dice with and without phantoms first, for each number of patients learnt from.

    Means over the folds and seeds in which every one of these trainings was made, so that rows compare.
    """
    systems = SYSTEMS[:2]
    found: dict[tuple, dict] = {}  # (learnt, system) -> (seed, fold) -> Dice of WT, TC, ET
    for result in results:
        if result["system"] in systems:
            found.setdefault((result["learnt"], result["system"]), {})[result["seed"],
                                                                       result["fold"]] = np.mean(
                                                                           [[row[region]["dice"]
                                                                             for region in REGIONS]
                                                                            for row in result[
                                                                                "patients"].values()],
                                                                           0)
    numbers = sorted({learnt for learnt, system in found if system == systems[1]})
    shared = [set(found.get((n, system), {})) for n in numbers for system in systems]
    everywhere = set.intersection(*shared) if shared else set()
    if not everywhere:
        return ""
    lines = ["| patients learnt from | " + " | ".join(systems) + " |", "|--:|---|---|"]
    for n in numbers:
        means = [np.mean([found[n, system][key] for key in everywhere], 0) for system in systems]
        lines.append(f"| {n} | " + " | ".join(f"{_three(mean)}: {mean.mean():.3f}"
                                              for mean in means) + " |")
    return "\n".join(lines)


def trainings(results: Sequence[dict]) -> str:
    """Markdown: minutes and steps of each system's trainings, and where its curve begins and ends, a mean over them."""
    lines = ["| seed | system | minutes | steps on phantoms | on patients | mean Dice where the "
             "curve begins | where it ends " "|", "|--:|---|---|---|---|--:|--:|"]
    for seed, name in sorted({(r["seed"], r["system"]) for r in results},
                             key=lambda key: (key[0], SHOWN.index(key[1]))):
        mine = [result for result in results if (result["seed"], result["system"]) == (seed, name)]
        spans = []
        for key, form in (("minutes", ".1f"), ("steps_on_phantoms", "d"), ("steps", "d")):
            values = [r["training"][key] for r in mine if r["training"].get(key)]
            spans.append(f"{min(values):{form}} to {max(values):{form}}" if values else "")
        ends = [np.mean([r["curve"][at][1:] for r in mine]) for at in (0, -1)]
        lines.append(f"| {seed} | {name} | {' | '.join(spans)} | {ends[0]:.3f} | {ends[1]:.3f} |")
    return "\n".join(lines)


def _three(values: np.ndarray, digits: int = 3) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def draw(results: Sequence[dict], path: Path) -> None:
    """Mean Dice of the unseen patients against minutes, a thin line a fold, where all regions count the same."""
    import matplotlib.pyplot as plt

    from brats_helpers.lessons.plots import LINES, use_style
    use_style()
    figure, ax = plt.subplots(figsize=(6.4, 3))
    for color, name in zip(LINES,
                           [name for name in SYSTEMS if any(r["system"] == name for r in results)],
                           strict=False):
        for number, result in enumerate(r for r in results if r["system"] == name):
            minutes, *dices = np.array(result["curve"]).T
            ax.plot(minutes, np.mean(dices, 0), "o-", color=color, lw=1, ms=3, label=name
                    if not number else None)
    ax.set(xlabel="minutes, preparation included", ylabel="mean Dice, unseen patients", ylim=(0, 1),
           xlim=(0, None))
    ax.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    plt.close(figure)


def gather(options: argparse.Namespace) -> dict[tuple, dict]:
    """All results by system, fold, seed and minutes: those of earlier days in the file, and those of this work folder."""
    earlier = read_json(options.out, "this benchmark")["results"] if options.out.is_file() else []
    here = [read_json(path, "a training")
            for path in sorted(options.work.glob("seed*/fold*/*/*/result.json"))]
    return {key_of(r): r for r in [*earlier, *here]}


def key_of(result: dict) -> tuple:
    """What a result is of; the same is not measured twice."""
    return tuple(result[name] for name in ("system", "fold", "seed", "minutes", "spacing_mm",
                                           "cores", "learnt"))


def shares_of_cores(number: int) -> queue.Queue:
    """This process's cores in equal parts; BratsError where there are too few, or none can be chosen (outside Linux)."""
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    if number > len(mine):
        raise BratsError(f"--at-once {number}: there are {len(mine)} cores that a training could "
                         "be given alone.")
    shares: queue.Queue = queue.Queue()
    for first in range(number):
        shares.put(mine[first::number][:len(mine) // number])
    return shares


def keep_to_a_share(shares: queue.Queue) -> None:
    """This thread, and each process that it starts, uses the next share of the cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, shares.get())


def run_apart(options: argparse.Namespace, name: str, fold: int) -> None:
    """One training and its scores in a process of their own."""
    subprocess.run([sys.executable, "-m", "benchmarks.real_cohort", str(options.folder), "--one",
                    "--systems", name, "--folds", str(fold), "--minutes", str(options.minutes),
                    "--seed", str(options.seed), "--work", str(options.work), "--spacing",
                    str(options.spacing), *(["--patients", str(options.patients)]
                                            if options.patients else [])], check=True)


def main() -> int:
    """Run what is not done, each training in a process of its own; then write real_cohort.json and print the table."""
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
    print(f"{table(shown)}\n\n{trainings(shown)}\n\n{by_patients(alike)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BratsError as error:
        sys.exit(f"ERROR: {error}")
