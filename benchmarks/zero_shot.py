"""Scores a network on labeled patients that it has not seen, with every set of contrasts.

    python -m benchmarks.zero_shot FOLDER [FOLDER ...]                  # the network in the box
    python -m benchmarks.zero_shot FOLDER --checkpoint best.pt --name plain     # another one

All scores go to benchmarks/zero_shot.json, from which the tables of docs/zero_shot.md are made.
With --store, the file of the network in the box takes over the table of contrast sets and the
threshold of the expected Dice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from torch import nn
from tqdm import tqdm

from brats_helpers.basics.config import Config
from brats_helpers.basics.constants import MODALITIES, REGIONS
from brats_helpers.basics.device import Device, describe_device
from brats_helpers.basics.files import read_json, write_json
from brats_helpers.data.cases import Case, find_cases, read_case
from brats_helpers.data.preprocessing import Prepared, network_input, prepare
from brats_helpers.evaluation.checkpoints import (
    config_of,
    network_of,
    read_checkpoint,
    write_safetensors,
)
from brats_helpers.evaluation.metrics import bootstrap_ci, dice, regions
from brats_helpers.evaluation.postprocessing import postprocess
from brats_helpers.evaluation.pretrained import WEIGHTS
from brats_helpers.evaluation.sliding_window import predict_prepared, sliding_window_inference
from brats_helpers.evaluation.trust import expected_dice

STORED = Path(__file__).with_name("zero_shot.json")
SETS = [names for n in range(4, 0, -1) for names in combinations(MODALITIES, n)]  # all four first
ALL = " ".join(MODALITIES)
BOX = "the network in the box"
ABLATION = "ablation: "  # prefix of the names of networks in the ablation
FAILED = 0.6  # a mask with a lower WT Dice should have been warned of
FALSE_ALARMS = 0.2  # at most, of the other masks


def with_only(prepared: Prepared, names: Iterable[str]) -> Prepared:
    """Take modalities away from a prepared patient, as if they had not been scanned."""
    volume, mean, std = prepared.volume.copy(), list(prepared.meta.mean), list(prepared.meta.std)
    for n, name in enumerate(MODALITIES):
        if name not in names:
            volume[n], mean[n], std[n] = 0, 0.0, 1.0
    return Prepared(volume, replace(prepared.meta, mean=tuple(mean), std=tuple(std)))


def score(checkpoint: Path, cases: Iterable[Case], device: Device, sets: int) -> dict[str, dict]:
    """Return each patient's Dice of WT, TC and ET, by contrast set too, and the expected Dice.

    The mask of all four contrasts is made as `predict` makes it, on the scan's grid. The sets are
    compared with each other on the network's grid, from one view each, which is much faster.
    """
    model, config = network_of(read_checkpoint(checkpoint, device), checkpoint, device)
    found = {}
    for case in tqdm(cases, unit="patient"):
        patient = read_case(case)
        prepared, reference = prepare(patient, config.spacing_mm), regions(patient.reference)
        probabilities = predict_prepared([model], prepared, config.patch, config.overlap, False,
                                         device)
        masks = regions(postprocess(probabilities, patient.spacing))
        found[case.name] = {
            "dice": [round(dice(a, b), 4) for a, b in zip(masks, reference, strict=True)],
            "expected": round(expected_dice(probabilities[0], masks[0]), 4),
            "sets": {" ".join(names): _one_view(model, with_only(prepared, names), config, device)
                     for names in SETS[:sets]}}
    return found


def _one_view(model: nn.Module, prepared: Prepared, config: Config, device: Device) -> list[float]:
    """Return Dice of WT, TC, ET and the expected Dice on the network's grid, from one view."""
    image = network_input(prepared, device)
    found = sliding_window_inference(model, image, config.patch, config.overlap, device=device)
    found = (found * image[4]).cpu().numpy()
    return [round(float(value), 4) for value in (
        *(dice(mask, truth) for mask, truth in
          zip(found > 0.5, regions(prepared.reference), strict=True)),
        expected_dice(found[0], found[0] > 0.5))]


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
        if len(rows) < 2 or name.startswith(ABLATION):
            continue
        columns = np.array([row["dice"] for row in rows.values()]).T
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*bootstrap_ci(column)) for column in columns]
        lines.append(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ablation_table(results: Mapping[str, dict]) -> str:
    """Return a row for each network of the ablation: mean Dice, and how far the box is above it."""
    lines = ["| network | " + " | ".join(REGIONS) + " | mean | the box above it (95% interval) |",
             "|---|--:|--:|--:|--:|---|"]
    for name, rows in results.items():
        if name == BOX or name.startswith(ABLATION):
            mine = np.array([row["dice"] for row in rows.values()])
            box = np.array([results[BOX][patient]["dice"] for patient in rows])
            gain = "{:+.3f} ({:+.3f} to {:+.3f})".format(*bootstrap_ci((box - mine).mean(1)))
            cells = " | ".join(f"{value:.3f}" for value in (*mine.mean(0), mine.mean()))
            lines.append(f"| {name.removeprefix(ABLATION)} | {cells} | "
                         f"{'' if name == BOX else gain} |")
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
    return (f"Below an expected Dice of {least:.2f}, `predict` warns. With all four contrasts, the "
            f"lowest WT Dice was {worst:.2f}, so failures had to come from fewer contrasts. Judged "
            f"by leaving one patient out at a time, over all contrast sets, the warning found "
            f"{found} of the {failures} masks with a WT Dice under {FAILED}, and {alarms} of the "
            f"{fine} others were false alarms.")


def main() -> None:
    """Score, store, and give the network in the box its own figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zero_shot", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS)
    parser.add_argument("--name", default=BOX)
    parser.add_argument("--sets", type=int, default=len(SETS), help="of contrasts, all four first")
    parser.add_argument("--store", action="store_true",
                        help="write the figures into the file of the network in the box")
    options = parser.parse_args()
    device = describe_device()
    cases = [case for folder in options.folders for case in find_cases(folder) if case.reference]
    rows = score(options.checkpoint, cases, device, options.sets)
    results = read_json(STORED, "this benchmark") if STORED.is_file() else {}
    write_json(STORED, results | {options.name: rows})
    print(summary_table({options.name: rows}))
    if options.store:
        content = read_checkpoint(WEIGHTS, device)
        by_modalities = {names: [round(float(v), 3) for v in means(rows, names)]
                         for names in map(" ".join, SETS)}
        trust = {"least_dice": leave_one_out(rows)[0]}
        kept = {name: content[name] for name in ("average", "seen", "step")}
        write_safetensors(WEIGHTS, config_of(content, WEIGHTS),
                          kept | {"by_modalities": by_modalities, "trust": trust})
        print(sets_table(rows), warning_text(rows), sep="\n\n")


if __name__ == "__main__":
    main()
