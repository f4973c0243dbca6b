"""Writes the tables of the Markdown pages from the stored results: `python -m benchmarks.pages`.

A table is between `<!-- table: NAME -->` and `<!-- end -->`. With --check nothing is written,
and the exit status is 1 if a page is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from brats_helpers.basics.files import atomic_path, read_json

from . import costs, few_patients, gpu, limit, report, whole_brain, zero_shot
from . import real_tables as real

HERE = Path(__file__).resolve().parent
RESULTS = ("results", "plain_cpu/results")  # with bf16, and without
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Our code, the library that could replace it, and the item and peer that compare them.
OURS = (("Blosc2 files and `read_patch`", "nnU-Net's store and loader", "patch", "nnU-Net"),
        ("the same", "nnU-Net's store", "storage", "nnU-Net"),
        ("the same", "MONAI's `CacheDataset`", "patch", "MONAI CacheDataset"),
        ("`data/preprocessing`", "MONAI's transforms", "preprocess", "MONAI"),
        ("`training/augmentation`", "MONAI's transforms", "augment", "MONAI"),
        ("`network/unet`", "MONAI's `DynUNet`", "train-step", "MONAI equal precision"),
        ("`norm.Folded`", "torch's batch norm", "train-step", "ours, torch's batch norm"),
        ("`evaluation/sliding_window`", "MONAI's inferer", "infer, 8 views", "MONAI"),
        ("`evaluation/metrics`", "MONAI's metrics", "metrics", "MONAI"),
        ("the same", "DeepMind's surface-distance", "metrics", "surface-distance"),
        ("`data/archive`", "`tarfile` and nibabel", "extract", "tarfile + nibabel"))


def _stored(name: str) -> dict:
    return read_json(HERE / f"{name}.json", "the benchmark")


def ours_or_library() -> str:
    """Return the table of what our code gains over the library that could replace it."""
    machines = [{item["item"]: item for item in _stored(name)["items"]} for name in RESULTS]
    lines = ["| ours | library | gain with bf16 | without | measured as |", "|---|---|---|---|---|"]
    for ours, library, item, peer in OURS:
        found = [results[item] for results in machines]
        gain = "1/{:.1f} of the space" if found[0]["unit"] == "MB" else "{:.1f} times as fast"
        gains = " | ".join(gain.format(result["ratio"][peer]) for result in found)
        lines.append(f"| {ours} | {library} | {gains} | {item} |")
    return "\n".join(lines)


def missed() -> str:
    """List the goals that a machine missed, as Markdown."""
    lines = []
    for name in RESULTS:
        results, machine = report.load(HERE / f"{name}.json")
        short = [f"{r.item} against {peer} {r.ratio[peer]:.2f} (goal {goal:.3g})" for r in results
                 for peer, goal in r.goals.items() if r.ratio[peer] < goal]
        lines.append(f"- {machine['processor']}, {machine['precision'].removeprefix('torch.')}: "
                     f"{'; '.join(short) or 'none'}.")
    return "\n".join(lines)


def tables() -> dict[str, Callable[[], str]]:
    """Return the tables by name."""
    everything, earlier = (_stored(name)["results"]
                           for name in ("real_cohort", "real_cohort_earlier"))
    now = [result for result in everything if result["learnt"] == 8]
    found: dict[str, Callable[[], str]] = {
        "costs": costs.table, "ours": ours_or_library, "missed": missed,
        "limit": lambda: limit.sentence(_stored("limit")),
        "whole_brain": lambda: whole_brain.table(_stored("whole_brain")),
        "gpu": lambda: gpu.goals(_stored("gpu_nvidia_h200")),
        "by_patients": lambda: real.by_patients(everything)}
    shot = _stored("zero_shot")
    box = shot[zero_shot.BOX]
    found |= {"zero_summary": lambda: zero_shot.summary_table(shot),
              "zero_ablation": lambda: zero_shot.ablation_table(shot),
              "zero_round_trip": lambda: zero_shot.round_trip_table(shot),
              "zero_sets": lambda: zero_shot.sets_table(box),
              "zero_warning": lambda: zero_shot.warning_text(box),
              "few_patients": lambda: few_patients.table(
                  _stored("few_patients"), shot[zero_shot.BOX])}
    for name, results in (("now", now), ("earlier", earlier)):
        scores = real.scores_by_system(results)
        found |= {f"{name}_patients": lambda scores=scores: real.patients_table(scores),
                  f"{name}_means": lambda scores=scores: real.means_table(scores),
                  f"{name}_verdicts": lambda scores=scores: real.verdicts(scores),
                  f"{name}_trainings": lambda results=results: real.trainings(results)}
    return found


def pages() -> dict[Path, str]:
    """Return each page that holds a stored result, as it should be."""
    made, known = {}, tables()
    for path in [HERE.parent / "README.md", *sorted(HERE.parent.glob("docs/*.md")),
                 *sorted(HERE.glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        if MARK.search(text):
            made[path] = MARK.sub(lambda m: f"{m[1]}\n{known[m[2]]()}\n\n{m[3]}", text)
    for name in RESULTS:
        made[HERE / f"{name}.md"] = report.table(*report.load(HERE / f"{name}.json"))
    made[HERE / "gpu_nvidia_h200.md"] = gpu.table(_stored("gpu_nvidia_h200"))
    return made


def main() -> int:
    """Write the pages, or only compare them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    check = parser.parse_args().check
    old = {path: text for path, text in pages().items()
           if path.read_text(encoding="utf-8") != text}
    for path, text in old.items():
        print(f"{path} is out of date: run python -m benchmarks.pages" if check
              else f"wrote {path}")
        if not check:
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return int(bool(old and check))


if __name__ == "__main__":
    sys.exit(main())
