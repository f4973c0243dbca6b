# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Report of a sweep
#
# Every run of notebook 05 in one table, its learning curves, and the runs compared patient by patient.

# %% tags=["parameters"]
work: str = ""  # the folder of `python -m brats_helpers sweep`

# %%
import json
from pathlib import Path

import numpy as np

from brats_helpers.evaluation import bootstrap_ci
from brats_helpers.lessons import bars, curves, use_style

use_style()
rows = json.loads((Path(work) / "sweep.json").read_text())
good = [row for row in rows if "metrics" in row]
print(f"{len(good)} of {len(rows)} runs finished")
for row in rows:
    if "error" in row:
        print(f"  {row['name']}: {row['error'].splitlines()[0]}")

# %% [markdown]
# ## Dice of each run

# %%
from IPython.display import Markdown

names = list(rows[0]["parameters"])
lines = [
    f"| {' | '.join(names)} | patients | WT | TC | ET | minutes |",
    "|---" * (len(names) + 5) + "|",
]
for row in good:
    scores = [f"{row['metrics']['dice'][region]:.3f}" for region in ("WT", "TC", "ET")]
    cells = [*row["parameters"].values(), row["metrics"]["cases"], *scores]
    lines.append(f"| {' | '.join(map(str, cells))} | {row['metrics']['train_seconds'] / 60:.1f} |")
Markdown("\n".join(lines))

# %%
mean = {row["name"]: float(np.mean(list(row["metrics"]["dice"].values()))) for row in good}
bars(mean, "mean Dice of the three regions")

# %% [markdown]
# ## Learning curves

# %%
from brats_helpers.basics import describe_device
from brats_helpers.evaluation import read_checkpoint

device, places = describe_device(), Path(work) / "points"
last = {row["name"]: places / row["name"] / "checkpoints" / "last.pt" for row in good}
history = {name: read_checkpoint(path, device)["history"] for name, path in last.items()}
loss = {name: ([r["epoch"] for r in h], [r["loss"] for r in h]) for name, h in history.items()}
curves({"loss on training patches": loss}, "epoch")

# %% [markdown]
# ## Compared in pairs
#
# Against the run with the highest mean: the difference of the mean Dice of each patient that both were judged on, with
# its 95% bootstrap interval. An interval that holds 0 says that these patients do not tell the two apart. (The best of
# many runs is also the luckiest: a winner of a large grid needs new patients.)


# %%
def per_patient(row: dict) -> dict[str, float]:
    """Mean Dice over the regions, by patient."""
    regions = ("WT", "TC", "ET")
    return {
        r["name"]: np.mean([r[n]["dice"] for n in regions]) for r in row["metrics"]["per_case"]
    }


best = max(good, key=lambda row: mean[row["name"]], default=None)
for row in good:
    if row is not best:
        ours, theirs = per_patient(row), per_patient(best)
        both = sorted(set(ours) & set(theirs))
        if len(both) > 1:
            middle, low, high = bootstrap_ci([ours[name] - theirs[name] for name in both])
            print(
                f"{row['name']} minus {best['name']}: {middle:+.3f} ({low:+.3f} to {high:+.3f}), {len(both)} patients"
            )

# %% [markdown]
# ## All folds together
#
# Where the runs are the folds of one cross-validation, every patient was held out once, unless the cohort has a test set:
# then all folds were judged on that.

# %%
folds = [row for row in good if "fold" in row["parameters"]]
for region in ("WT", "TC", "ET") if folds else ():
    values = [r[region]["dice"] for row in folds for r in row["metrics"]["per_case"]]
    which = folds[0]["metrics"]["set"]
    print(
        f"{region}: {np.mean(values):.3f} over {len(values)} {which} patients of {len(folds)} runs"
    )
