"""Writes the results as JSON, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brats_helpers.basics.files import atomic_path, read_json, write_json

from .timing import Result


def write(results: Sequence[Result], machine: dict, folder: Path) -> str:
    """Write results.json, results.md and results.png into `folder`; returns the table."""
    write_json(folder / "results.json",
               {"machine": machine, "items": [r.as_dict() for r in results]})
    text = table(results, machine)
    with atomic_path(folder / "results.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    draw(results, machine, folder / "results.png")
    return text


def load(path: Path) -> tuple[list[Result], dict]:
    """Read results.json: the results and the machine."""
    stored = read_json(path, "python -m benchmarks")
    results = [Result(row["item"], row[f"ours_{row['unit']}"], row["peers"], row["equal"],
                      row["unit"], row["goals"]) for row in stored["items"]]
    return results, stored["machine"]


def table(results: Sequence[Result], machine: dict) -> str:
    """Return Markdown with a row for each item and peer."""
    lines = [", ".join(str(value) for value in machine.values()), "",
             "| item | peer | peer's | ours | ratio | aimed at |", "|---|---|--:|--:|--:|--:|"]
    for r in results:
        for name, value in r.peers.items():
            goal = f"{r.goals[name]:.3g}" if name in r.goals else ""
            lines.append(f"| {r.item} | {name} | {value:.4g} {r.unit} | {r.ours:.4g} {r.unit} | "
                         f"{r.ratio[name]:.2f} | {goal} |")
    return "\n".join([*lines, "", "What was compared before it was timed:", "",
                      *(f"- {r.item}: {r.equal}." for r in results), ""])


def draw(results: Sequence[Result], machine: dict, path: Path) -> None:
    """Draw the ratios on a logarithmic axis: right of 1 the peer costs more."""
    import matplotlib.pyplot as plt

    from brats_helpers.lessons.plots import INK, use_style
    use_style()
    rows = [(f"{r.item}: {name}", ratio, r.goals.get(name)) for r in results
            for name, ratio in r.ratio.items()]
    figure, ax = plt.subplots(figsize=(7, 0.28 * len(rows) + 1))
    for height, (_, ratio, goal) in enumerate(rows):
        ax.plot([1, ratio], [height, height], color="#0072B2" if ratio >= 1 else "#D55E00", lw=2)
        ax.plot(ratio, height, "o", color="#0072B2" if ratio >= 1 else "#D55E00")
        ax.text(ratio * 1.08, height, f"{ratio:.1f}", va="center", fontsize=8)
        if goal:
            ax.plot(goal, height, "|", color=INK, ms=10)
    ax.axvline(1, color=INK, lw=0.8)
    ax.set(xscale="log", yticks=range(len(rows)), yticklabels=[row[0] for row in rows],
           xlabel="peer's cost / ours (strokes: what we aimed at)",
           title=f"{machine['processor']}, {machine['data']}")
    ax.invert_yaxis()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    plt.close(figure)
