"""Measures the curve from 0 to 8 labeled patients, starting from the network in the box.

    python -m benchmarks.few_patients FOLDER [FOLDER ...] --learn 4 --draw 0
    python -m benchmarks.few_patients FOLDER [FOLDER ...] --learn 4 --draw 0 --system nnunet-small

Trains on patients drawn by `--draw`, as notebook 05 does with few patients, and scores the patients
that were not drawn, as `predict` segments them. `nnunet-small` then learns from the same patients
in as many minutes. The scores go to benchmarks/few_patients.json, from which docs/zero_shot.md and
the picture beside it are made.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from brats_helpers.basics.config import preset
from brats_helpers.basics.constants import REGIONS
from brats_helpers.basics.device import describe_device
from brats_helpers.basics.errors import BratsError
from brats_helpers.basics.files import atomic_path, read_json, write_json
from brats_helpers.data.cases import Case, find_cases
from brats_helpers.data.pipeline import preprocess_cohort
from brats_helpers.evaluation.ensemble import load_ensemble
from brats_helpers.evaluation.metrics import bootstrap_ci
from brats_helpers.evaluation.pretrained import WEIGHTS
from brats_helpers.training.loop import train
from brats_helpers.training.work_folder import for_few_patients

from . import zero_shot

STORED = Path(__file__).with_name("few_patients.json")
OURS, PEER = "ours", "nnunet-small"
START = "483989804d0b90a5"  # tag of zero_shot.BOX, where all draws start
TITLES = {OURS: "from the network in the box", PEER: "nnU-Net v2, small, same minutes"}


def draw(cases: Sequence[Case], number: int, seed: int) -> list[Case]:
    """Draw patients to learn from."""
    chosen = np.random.default_rng(seed).permutation(len(cases))[:number]
    return [cases[n] for n in sorted(chosen)]


def measure_ours(learnt: Sequence[Case], others: Sequence[Case], seed: int) -> dict:
    """Train as notebook 05 does; returns minutes, steps and each other patient's Dice."""
    device = describe_device()
    config = for_few_patients(preset("quick").with_(seed=seed), len(learnt), False)
    with tempfile.TemporaryDirectory() as temporary:
        folder, begun = Path(temporary), time.monotonic()
        preprocess_cohort(learnt, folder / "preprocessed", config.spacing_mm)
        files = sorted((folder / "preprocessed").glob("*.b2nd"))
        train(config, files, [], folder / "c", device=device, start=WEIGHTS)
        minutes = (time.monotonic() - begun) / 60
        rows = zero_shot.score(load_ensemble([folder / "c" / "last.pt"], False), others, sets=1)
    return {"minutes": round(minutes, 1), "steps": config.epochs * config.steps,
            "scores": {name: row["dice"] for name, row in rows.items()}}


def measure_peer(learnt: Sequence[Case], others: Sequence[Case], seed: int,
                 minutes: float) -> dict:
    """Train nnU-Net v2 with its own program for as many minutes; it predicts as it does by default.

    So it averages eight mirrored views, ours two, and each makes labels by its own rule.
    """
    from .real_cohort import coarse_case, scores
    from .real_systems import EPOCHS, NnUNet, read_training
    config = preset("quick")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        coarse = {case.name: coarse_case(case, folder / "cases", config.spacing_mm)
                  for case in (*learnt, *others)}
        system = NnUNet(folder / "nnunet", config.filters, config.patch, config.batch)
        system.train([coarse[case.name] for case in learnt], minutes, seed)
        last = folder / "nnunet" / "snapshots" / f"{EPOCHS - 1:02d}.pt"
        rows = {case.name: scores(system, case, coarse[case.name], last)
                for case in tqdm(others, unit="patient")}
        training = read_training(folder / "nnunet")
    return {"minutes": round(training["minutes"], 1), "steps": training["steps"], "scores": {
        name: [round(row[region]["dice"], 4) for region in REGIONS] for name, row in rows.items()}}


def by_number(results: Sequence[Mapping]) -> dict[tuple[str, int], list[dict]]:
    """Group the draws' scores by system and number of patients."""
    found = defaultdict(list)
    for result in results:
        found[result["system"], len(result["learnt"])].append(result["scores"])
    return dict(sorted(found.items(), key=lambda item: (item[0][1], item[0][0] != OURS)))


def gains(draws: Sequence[Mapping], box: Mapping[str, dict]) -> list[float]:
    """Return each patient's gain in mean Dice over the box, averaged over the draws: no repeats."""
    found = defaultdict(list)
    for scores in draws:
        for name, dice in scores.items():
            found[name].append(np.mean(dice) - np.mean(box[name]["dice"]))
    return [float(np.mean(values)) for values in found.values()]


def table(results: Sequence[Mapping], box: Mapping[str, dict]) -> str:
    """Return Markdown: Dice of the patients not learned from, and what learning changed."""
    lines = ["| patients learned from | network | draws | " + " | ".join(REGIONS)
             + " | mean | mean of each draw | change (95% interval) |",
             "|--:|---|--:|--:|--:|--:|--:|---|---|"]
    whole = np.mean([row["dice"] for row in box.values()], axis=0)
    cells = " | ".join(f"{value:.3f}" for value in (*whole, whole.mean()))
    lines.append(f"| 0 | {zero_shot.BOX} | | {cells} | | |")
    for (system, number), draws in by_number(results).items():
        means = np.array([np.mean(list(scores.values()), axis=0) for scores in draws])
        cells = " | ".join(f"{value:.3f}" for value in (*means.mean(0), means.mean()))
        each = ", ".join(f"{value:.3f}" for value in means.mean(1))
        gain = "{:+.3f} ({:+.3f} to {:+.3f})".format(*bootstrap_ci(gains(draws, box)))
        lines.append(f"| {number} | {TITLES[system]} | {len(draws)} | {cells} | {each} | {gain} |")
    return "\n".join(lines)


def plot(results: Sequence[Mapping], box: Mapping[str, dict], path: Path) -> None:
    """Draw the change in mean Dice on the same patients: a line of means, a dot for each draw."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=1, label=zero_shot.BOX)
    for system, color in ((OURS, "#1f77b4"), (PEER, "#8c6d46")):
        points = {n: [np.mean(gains([scores], box)) for scores in draws]
                  for (name, n), draws in by_number(results).items() if name == system}
        axes.plot(list(points), [np.mean(each) for each in points.values()], color=color,
                  label=TITLES[system])
        for number, values in points.items():
            axes.scatter([number] * len(values), values, color=color, s=18, zorder=3)
    axes.set(xlabel="labeled patients learned from", ylabel="change of mean Dice",
             xlim=(-0.3, 8.3), xticks=[0, 1, 2, 4, 8])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.9))  # between the lines
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main() -> None:
    """Measure one system on one draw, store it, and draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_patients", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--learn", type=int, default=4, choices=(1, 2, 4, 8),
                        help="number of patients")
    parser.add_argument("--draw", type=int, default=0, help="seed of the draw and the training")
    parser.add_argument("--system", choices=TITLES, default=OURS)
    options = parser.parse_args()
    if load_ensemble(None, False).tag != START:
        raise BratsError("the network in the box is no longer the one that the stored draws start "
                         "from. Delete few_patients.json, then set START.")
    cases = [case for folder in options.folders for case in find_cases(folder) if case.reference]
    learnt = draw(cases, options.learn, options.draw)
    others = [case for case in cases if case not in learnt]
    if options.system == OURS:
        found = measure_ours(learnt, others, options.draw)
    else:
        same = [r for r in read_json(STORED, "this benchmark") if r["system"] == OURS
                and (len(r["learnt"]), r["draw"]) == (options.learn, options.draw)]
        if not same:
            raise BratsError("measure ours on this draw first: nnU-Net gets as many minutes.")
        found = measure_peer(learnt, others, options.draw, same[0]["minutes"])
    found = {"system": options.system, "learnt": [case.name for case in learnt],
             "draw": options.draw} | found
    store(found)
    print(np.round(np.mean(list(found["scores"].values()), axis=0), 3))


def store(found: dict) -> None:
    """Put a result into the file, in the place of an earlier one of the same draw, and draw all."""
    def key(result: Mapping) -> tuple:
        return len(result["learnt"]), result["draw"], result["system"]
    stored = read_json(STORED, "this benchmark") if STORED.is_file() else []
    stored = sorted([*(r for r in stored if key(r) != key(found)), found], key=key)
    write_json(STORED, stored)
    plot(stored, read_json(zero_shot.STORED, "zero_shot")[zero_shot.BOX],
         STORED.with_suffix(".png"))


if __name__ == "__main__":
    main()
