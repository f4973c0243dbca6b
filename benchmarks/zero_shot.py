"""Scores a network on labeled patients that it has not seen, with every set of contrasts.

    python -m benchmarks.zero_shot FOLDER...    # the network in the box, with its refiner
    python -m benchmarks.zero_shot FOLDER... --checkpoint best.pt --name plain --sets 1
    python -m benchmarks.zero_shot FOLDER... --round-trip 2    # the references, on voxels of 2 mm

All scores go to benchmarks/zero_shot.json, from which the tables of docs/zero_shot.md are made.
With --store, the refiner's first file takes over the table of contrast sets and the threshold of
the expected Dice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from brats_helpers.basics.constants import MODALITIES, REGIONS
from brats_helpers.basics.device import describe_device
from brats_helpers.basics.files import read_json, write_json
from brats_helpers.data.cases import Case, Patient, find_cases, read_case
from brats_helpers.data.preprocessing import prepare, restore
from brats_helpers.evaluation.checkpoints import (
    config_of,
    read_checkpoint,
    write_safetensors,
)
from brats_helpers.evaluation.ensemble import Ensemble, load_ensemble
from brats_helpers.evaluation.metrics import bootstrap_ci, dice, regions
from brats_helpers.evaluation.prediction import segment
from brats_helpers.evaluation.pretrained import REFINER_WEIGHTS
from brats_helpers.evaluation.trust import expected_dice

STORED = Path(__file__).with_name("zero_shot.json")
SETS = [names for n in range(4, 0, -1) for names in combinations(MODALITIES, n)]  # all four first
ALL = " ".join(MODALITIES)
BOX = "the network in the box, with its refiner"
ALONE = "the network in the box, without its refiner"
EARLIER = "an earlier network in the box (420 phantoms, 4,000 steps)"
ROUND_TRIP = "round trip: "  # prefix of the references' scores with themselves
ABLATION = "ablation: "  # prefix of the names of networks in the ablation
FAILED = 0.6  # a mask with a lower WT Dice should have been warned of
FALSE_ALARMS = 0.2  # at most, of the other masks


def with_only(patient: Patient, names: Iterable[str]) -> Patient:
    """Take modalities away from a patient, as if they had not been scanned."""
    there = np.isin(MODALITIES, list(names))
    return replace(patient, images=patient.images * there[:, None, None, None])


def score(ensemble: Ensemble, cases: Iterable[Case], sets: int) -> dict[str, dict]:
    """Return each patient's Dice of WT, TC and ET with all modalities and by set of them.

    Masks and expected Dice are those of `predict`.
    """
    found = {}
    for case in tqdm(cases, unit="patient"):
        patient = read_case(case)
        by_set = {" ".join(names): _as_predicted(ensemble, with_only(patient, names))
                  for names in SETS[:sets]}
        found[case.name] = {"dice": by_set[ALL][:3], "expected": by_set[ALL][3], "sets": by_set}
    return found


def _as_predicted(ensemble: Ensemble, patient: Patient) -> list[float]:
    """Return Dice of WT, TC, ET and the expected Dice of the mask that `predict` would write."""
    labels, probabilities = segment(ensemble.models, patient, ensemble.config, ensemble.tta,
                                    ensemble.device, refiner=ensemble.refiner)
    return [round(float(value), 4) for value in (
        *(dice(mask, truth) for mask, truth in
          zip(regions(labels), regions(patient.reference), strict=True)),
        expected_dice(probabilities[0], labels > 0))]


def round_trip(cases: Iterable[Case], spacing_mm: float) -> dict[str, dict]:
    """Return the Dice of each reference with itself, resampled to voxels of that size and back."""
    found = {}
    for case in tqdm(cases, unit="patient"):
        patient = read_case(case)
        prepared = prepare(patient, spacing_mm)
        back = restore(np.float32(regions(prepared.reference)), prepared.meta)
        found[case.name] = {"dice": [round(dice(mask >= 0.5, truth), 4) for mask, truth in
                                     zip(back, regions(patient.reference), strict=True)]}
    return found


def means(rows: Mapping[str, dict], names: str = ALL) -> np.ndarray:
    """Return the mean Dice of WT, TC and ET with a set of contrasts: (3,)."""
    return np.mean([row["sets"][names][:3] for row in rows.values()], axis=0)


def threshold(expected: np.ndarray, failed: np.ndarray) -> float:
    """Choose the expected Dice below which to warn: most failures found, few false alarms."""
    if failed.all():
        return 1.0
    candidates = np.concatenate([[0], np.unique(expected) + 1e-6])
    allowed = [c for c in candidates if (expected < c)[~failed].mean() <= FALSE_ALARMS]
    return float(max(allowed, key=lambda c: ((expected < c)[failed].sum(), -c)))


def leave_one_out(rows: Mapping[str, dict]) -> tuple[float, int, int, int, int]:
    """Judge the warning: the threshold, failures and how many it finds, others and false alarms.

    With four contrasts hardly any mask fails, so the masks of all contrast sets count. All masks of
    a patient are judged with the threshold that the other patients give.
    """
    scores = np.array([[row["sets"][" ".join(names)] for names in SETS] for row in rows.values()])
    failed, expected = scores[..., 0] < FAILED, scores[..., 3]
    flagged = np.zeros_like(failed)
    for n in range(len(rows)):
        others = np.arange(len(rows)) != n
        flagged[n] = expected[n] < threshold(expected[others].ravel(), failed[others].ravel())
    return (threshold(expected.ravel(), failed.ravel()), int(failed.sum()),
            int((failed & flagged).sum()), int((~failed).sum()), int((~failed & flagged).sum()))


def summary_table(results: Mapping[str, dict]) -> str:
    """Return a row for each network: mean Dice with 95% intervals over all patients."""
    lines = ["| network | patients | " + " | ".join(REGIONS) + " |", "|---|--:|---|---|---|"]
    box = results.get(BOX, {})
    parts = {f"{BOX}, BraTS {year}": {name: row for name, row in box.items() if mark in name}
             for year, mark in ((2021, "BraTS2021"), (2018, "Brats18"))}
    for name, rows in ({BOX: box} | parts | dict(results)).items():
        if len(rows) < 2 or name == EARLIER or name.startswith((ABLATION, ROUND_TRIP)):
            continue
        columns = np.array([row["dice"] for row in rows.values()]).T
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*bootstrap_ci(column)) for column in columns]
        lines.append(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def round_trip_table(results: Mapping[str, dict]) -> str:
    """Return a row for each voxel size: mean Dice of the references with themselves."""
    lines = ["| voxels | " + " | ".join(REGIONS) + " |", "|---|--:|--:|--:|"]
    for name, rows in results.items():
        if name.startswith(ROUND_TRIP):
            cells = np.mean([row["dice"] for row in rows.values()], axis=0)
            lines.append(f"| {name.removeprefix(ROUND_TRIP)} | "
                         + " | ".join(f"{value:.3f}" for value in cells) + " |")
    return "\n".join(lines)


def ablation_table(results: Mapping[str, dict]) -> str:
    """Return a row for each network of the ablation: mean Dice, and what its change brought."""
    lines = ["| network | " + " | ".join(REGIONS) + " | mean | change (95% interval) |",
             "|---|--:|--:|--:|--:|---|"]
    for name in (EARLIER, ALONE, BOX, *(name for name in results if name.startswith(ABLATION))):
        if rows := results.get(name):
            mine, first = (np.array([found[patient]["dice"] for patient in rows])
                           for found in (rows, results[EARLIER]))
            change = "{:+.3f} ({:+.3f} to {:+.3f})".format(*bootstrap_ci((mine - first).mean(1)))
            cells = " | ".join(f"{value:.3f}" for value in (*mine.mean(0), mine.mean()))
            lines.append(f"| {name.removeprefix(ABLATION)} | {cells} | "
                         f"{'' if name == EARLIER else change} |")
    return "\n".join(lines)


def sets_table(rows: Mapping[str, dict]) -> str:
    """Return the mean Dice with every set of contrasts, and what it loses against all four."""
    whole = means(rows).mean()
    lines = ["| contrasts | " + " | ".join(REGIONS) + " | mean | against all four |",
             "|---|--:|--:|--:|--:|--:|"]
    for names in map(" ".join, SETS):
        row = means(rows, names)
        cells = " | ".join(f"{value:.2f}" for value in (*row, row.mean()))
        lines.append(f"| {names} | {cells} | {row.mean() - whole:+.2f} |")
    return "\n".join(lines)


def warning_text(rows: Mapping[str, dict]) -> str:
    """Return how often the warning of an unsure network is right."""
    least, failures, found, fine, alarms = leave_one_out(rows)
    worst = min(row["dice"][0] for row in rows.values())
    warned = sum(row["expected"] < least for row in rows.values())
    return (f"Below an expected Dice of {least:.2f}, `predict` warns. With all four contrasts, the "
            f"lowest WT Dice was {worst:.2f}, and `predict` warned about {warned} of the "
            f"{len(rows)} masks. We tested the warning over all contrast sets. For each patient, "
            f"the other patients set the threshold. It found {found} of the {failures} masks with "
            f"a WT Dice under {FAILED}. Of the {fine} other masks, it flagged {alarms}.")


def _keep(rows: Mapping[str, dict]) -> None:
    results = read_json(STORED, "this benchmark") if STORED.is_file() else {}
    write_json(STORED, results | rows)


def main() -> None:
    """Score, store, and give the network in the box its own figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zero_shot", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="instead of the network in the box")
    parser.add_argument("--refiner", type=int, choices=(1, 2),
                        help="use only this network of the refiner")
    parser.add_argument("--name", default=BOX)
    parser.add_argument("--sets", type=int, default=len(SETS), help="of contrasts, all four first")
    parser.add_argument("--round-trip", type=float, metavar="MM",
                        help="score the references themselves, on voxels of this size")
    parser.add_argument("--store", action="store_true",
                        help="write the figures into the refiner's first file")
    options = parser.parse_args()
    changed = options.checkpoint or options.refiner or options.sets < len(SETS)
    if changed and (options.store or options.name == BOX):
        parser.error("--checkpoint, --refiner and --sets need --name and exclude --store")
    cases = [case for folder in options.folders for case in find_cases(folder) if case.reference]
    if options.round_trip:
        name = f"{ROUND_TRIP}{options.round_trip:g} mm"
        _keep({name: round_trip(cases, options.round_trip)})
        return
    checkpoints = [options.checkpoint] if options.checkpoint else None
    ensemble = load_ensemble(checkpoints, tta=False)
    if options.refiner:
        one = [ensemble.refiner.models[options.refiner - 1]]
        ensemble = replace(ensemble, refiner=replace(ensemble.refiner, models=one))
    rows = score(ensemble, cases, options.sets)
    _keep({options.name: rows})
    print(summary_table({options.name: rows}))
    if options.store:
        path = REFINER_WEIGHTS[0]
        content = read_checkpoint(path, describe_device())
        by_modalities = {names: [round(float(v), 3) for v in means(rows, names)]
                         for names in map(" ".join, SETS)}
        trust = {"least_dice": leave_one_out(rows)[0]}
        kept = {name: content[name] for name in ("average", "seen", "step")}
        write_safetensors(path, config_of(content, path),
                          kept | {"by_modalities": by_modalities, "trust": trust})
        print(sets_table(rows), warning_text(rows), sep="\n\n")


if __name__ == "__main__":
    main()
