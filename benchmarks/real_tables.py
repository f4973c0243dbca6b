"""Makes the tables and the picture of real_cohort.md from the stored scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brats_helpers.basics.constants import REGIONS
from brats_helpers.basics.files import atomic_path
from brats_helpers.evaluation.metrics import bootstrap_ci

SYSTEMS = ("ours", "ours-without-phantoms", "nnunet-small", "nnunet")
SHOWN = (*SYSTEMS, "ours-a-third-kept")  # the last as of commit 5e6be1f; it is not run any more
MEASURES = ("dice", "hd95_mm", "lesion_dice")
Scores = dict[tuple, dict[str, np.ndarray]]  # (seed, system) -> patient -> (measure, region)


def scores_by_system(results: Sequence[dict]) -> Scores:
    """Collect the scores of the unseen patients, sorted by seed and system.

    With several seeds, the key ("all", system) has each patient's mean over them: the same patients
    with another seed are not more patients.
    """
    found: Scores = {}
    for result in sorted(results, key=lambda r: (r["seed"], SHOWN.index(r["system"]))):
        for name, row in result["patients"].items():
            found.setdefault((result["seed"], result["system"]), {})[name] = np.array(
                [[row[region][measure] for region in REGIONS] for measure in MEASURES])
    seeds = sorted({seed for seed, _ in found})
    for system in SYSTEMS if len(seeds) > 1 else ():
        several = [found.get((seed, system), {}) for seed in seeds]
        if names := set.intersection(*map(set, several)):
            found["all", system] = {name: np.mean([one[name] for one in several], axis=0)
                                    for name in names}
    return found


def patients_table(found: Scores) -> str:
    """Return Markdown with Dice of WT, TC and ET for each unseen patient, system and seed."""
    keys = [key for key in found if key[0] != "all"]
    heads = " | ".join(f"{system}, seed {seed}" for seed, system in keys)
    lines = [f"| patient | {heads} |", "|---" * (len(keys) + 1) + "|"]
    for name in sorted(set().union(*found.values())):
        cells = [_three(found[key][name][0], 2) if name in found[key] else "" for key in keys]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def means_table(found: Scores) -> str:
    """Return Markdown with each system's means next to ours on the patients that both segmented."""
    lines = ["| seed | system | patients | Dice | mean | ours on the same | ours above it (95% "
             "interval) | HD95, mm | lesion-wise Dice |", "|--:|---|--:|--:|--:|--:|---|--:|--:|"]
    for (seed, system), mine in found.items():
        beside = found.get((seed, "ours"), {})
        both = sorted(mine.keys() & beside.keys())
        if not both:
            continue
        rows, ours = (np.array([one[name] for name in both]) for one in (mine, beside))
        dices, distances, lesions = rows.mean(0)
        gains = ours[:, 0].mean(1) - rows[:, 0].mean(1)
        gain = "{:+.3f} ({:+.3f} to {:+.3f})".format(*bootstrap_ci(gains))
        lines.append(f"| {seed} | {system} | {len(both)} | {_three(dices)} | {dices.mean():.3f} "
                     f"| {_three(ours[:, 0].mean(0))} | {'' if system == 'ours' else gain} "
                     f"| {_three(distances, 1)} | {_three(lesions)} |")
    return "\n".join(lines)


def verdicts(found: Scores) -> str:
    """Return a Markdown list: how far ours is above nnunet-small, and which goals that misses."""
    lines = []
    for (seed, system), mine in found.items():
        theirs = found.get((seed, "nnunet-small"), {})
        if not system.startswith("ours") or mine.keys() != theirs.keys():
            continue
        names = sorted(mine)
        gains = np.array([mine[name][0] - theirs[name][0] for name in names])  # (patients, regions)
        gain, low, high = bootstrap_ci(gains.mean(1))
        missed = [goal for goal, reached in (
            ("a mean at least 0.03 above", gain >= 0.03), ("an interval above 0", low > 0),
            ("no region more than 0.01 below", gains.mean(0).min() >= -0.01)) if not reached]
        behind = [f"{-each:.3f} in {name}" for name, each in zip(names, gains.mean(1), strict=True)
                  if each < 0]
        who = "All seeds, each patient counted once" if seed == "all" else f"Seed {seed}"
        lines.append(
            f"- {who}, {system}: {gain:.3f} above ({low:.3f} to {high:.3f}), ahead in "
            f"{np.sum(gains.mean(1) > 0)} of {len(names)} patients"
            + (f", behind by {' and '.join(behind)}" if behind else "")
            + (f". Missed: {'; '.join(missed)}." if missed else ". All goals reached."))
    return "\n".join(lines)


def by_patients(results: Sequence[dict]) -> str:
    """Return Markdown with mean Dice, with and without phantoms, by the number of patients.

    Averages the folds and seeds for which every one of these trainings exists, so that rows
    compare. Returns "" if there are none.
    """
    systems = SYSTEMS[:2]
    found: dict[tuple, dict] = {}  # (patients, system) -> (seed, fold) -> Dice of WT, TC, ET
    for result in results:
        if result["system"] in systems:
            dices = [[row[region]["dice"] for region in REGIONS]
                     for row in result["patients"].values()]
            trainings_of = found.setdefault((result["learnt"], result["system"]), {})
            trainings_of[result["seed"], result["fold"]] = np.mean(dices, 0)
    numbers = sorted({learnt for learnt, system in found if system == systems[1]})
    shared = [set(found.get((n, system), {})) for n in numbers for system in systems]
    everywhere = set.intersection(*shared) if shared else set()
    if not everywhere:
        return ""
    lines = ["| patients learnt from | " + " | ".join(systems) + " |", "|--:|---|---|"]
    for n in numbers:
        means = [np.mean([found[n, system][key] for key in everywhere], 0) for system in systems]
        cells = " | ".join(f"{_three(mean)}: {mean.mean():.3f}" for mean in means)
        lines.append(f"| {n} | {cells} |")
    return "\n".join(lines)


def trainings(results: Sequence[dict]) -> str:
    """Return Markdown with minutes, steps and both ends of the learning curve of each system."""
    lines = ["| seed | system | minutes | steps on phantoms | on patients | mean Dice where the "
             "curve begins | where it ends |", "|--:|---|---|---|---|--:|--:|"]
    keys = {(r["seed"], r["system"]) for r in results}
    for seed, name in sorted(keys, key=lambda key: (key[0], SHOWN.index(key[1]))):
        mine = [r for r in results if (r["seed"], r["system"]) == (seed, name)]
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
    """Draw mean Dice of the unseen patients against minutes, a thin line for each training."""
    import matplotlib.pyplot as plt

    from brats_helpers.lessons.plots import LINES, use_style
    use_style()
    figure, ax = plt.subplots(figsize=(6.4, 3))
    shown = [name for name in SYSTEMS if any(r["system"] == name for r in results)]
    for color, name in zip(LINES, shown, strict=False):
        for number, result in enumerate(r for r in results if r["system"] == name):
            minutes, *dices = np.array(result["curve"]).T
            ax.plot(minutes, np.mean(dices, 0), "o-", color=color, lw=1, ms=3,
                    label=None if number else name)
    ax.set(xlabel="minutes, preparation included", ylabel="mean Dice, unseen patients", ylim=(0, 1),
           xlim=(0, None))
    ax.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    plt.close(figure)
