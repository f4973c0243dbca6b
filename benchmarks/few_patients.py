"""Measures what a few labeled patients add to the network in the box.

    python -m benchmarks.few_patients FOLDER [FOLDER ...] --learn 4 --draw 0

Trains from the network in the box on patients drawn by `--draw`, with the learning rate that
notebook 05 chooses and fewer steps, and scores the patients that were not drawn. The scores are
added to benchmarks/few_patients.json, from which the table of docs/zero_shot.md is made.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from brats_helpers.basics.config import preset
from brats_helpers.basics.constants import REGIONS
from brats_helpers.basics.device import describe_device
from brats_helpers.basics.files import read_json, write_json
from brats_helpers.data.cases import Case, find_cases
from brats_helpers.data.pipeline import preprocess_cohort
from brats_helpers.evaluation.metrics import bootstrap_ci
from brats_helpers.evaluation.pretrained import WEIGHTS
from brats_helpers.training.loop import train
from brats_helpers.training.stages import for_few_patients

from . import zero_shot

STORED = Path(__file__).with_name("few_patients.json")


def draw(cases: Sequence[Case], number: int, seed: int) -> list[Case]:
    """Draw patients to learn from."""
    chosen = np.random.default_rng(seed).permutation(len(cases))[:number]
    return [cases[n] for n in sorted(chosen)]


def measure(folders: Iterable[Path], number: int, seed: int, steps: int) -> dict:
    """Train on the patients drawn; returns their names, and all others' scores after and before."""
    device = describe_device()
    cases = [case for folder in folders for case in find_cases(folder) if case.reference]
    learnt = draw(cases, number, seed)
    config = for_few_patients(preset("quick").with_(seed=seed), number, False).with_(
        epochs=1, steps=steps, warmup=min(30, steps // 4), ema=0.98)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        preprocess_cohort(learnt, folder / "preprocessed", config.spacing_mm)
        files = sorted((folder / "preprocessed").glob("*.b2nd"))
        history = train(config, files, [], folder / "c", device=device, start=WEIGHTS)
        others = [case for case in cases if case not in learnt]
        rows, before = (zero_shot.score(path, others, device, 0)
                        for path in (folder / "c" / "last.pt", WEIGHTS))
    return {"learnt": [case.name for case in learnt], "draw": seed, "steps": steps,
            "minutes": round(history[-1]["seconds"] / 60, 1), "scores": rows, "before": before}


def table(results: Sequence[Mapping]) -> str:
    """Return Markdown: Dice of the patients not learned from, after and before learning."""
    lines = ["| patients learned from | draw | tested on | " + " | ".join(REGIONS)
             + " | mean | gain (95% interval) |", "|--:|--:|--:|--:|--:|--:|--:|---|"]
    for result in results:
        after = np.array([row["dice"] for row in result["scores"].values()])
        earlier = np.array([result["before"][name]["dice"] for name in result["scores"]])
        gain = "{:+.3f} ({:+.3f} to {:+.3f})".format(*bootstrap_ci((after - earlier).mean(1)))
        cells = " | ".join(f"{value:.3f}" for value in (*after.mean(0), after.mean()))
        lines.append(f"| {len(result['learnt'])} | {result['draw']} | {len(after)} | {cells} | "
                     f"{gain} |")
    return "\n".join(lines)


def main() -> None:
    """Measure one draw, and store it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_patients", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--learn", type=int, default=4, help="number of patients")
    parser.add_argument("--draw", type=int, default=0, help="seed of the draw and the training")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    found = measure(options.folders, options.learn, options.draw, options.steps)
    stored = read_json(STORED, "this benchmark") if STORED.is_file() else []
    kept = [r for r in stored if (len(r["learnt"]), r["draw"]) != (options.learn, options.draw)]
    write_json(STORED, sorted([*kept, found], key=lambda r: (len(r["learnt"]), r["draw"])))
    print(np.round(np.mean([row["dice"] for row in found["scores"].values()], axis=0), 3))


if __name__ == "__main__":
    main()
