# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 Training and evaluation
#
# We train the network, test it on patients held back until now, and then show it patients that look different.
#
# **05 of 05** | back: [04 Architecture](04_architecture.ipynb)
#
# | | |
# |---|---|
# | reads | `config.json`, `patients.json`, `splits.json`, `preprocessed/` |
# | writes | `checkpoints/last.pt`, `checkpoints/best.pt`, `predictions/<patient>.nii.gz`, `metrics.json` |
# | takes | 9 minutes on two CPU cores (quick preset, [measured](../docs/costs.md)); about 1 hour to read and to do the exercises |

# %% [markdown]
# ## By the end you can
#
# - **augment** volumes and check that the labels move with them;
# - **train** with warm-up and cosine, and resume after a stop;
# - **segment** a whole brain from windows and mirrored copies;
# - **judge** a segmentation with Dice, HD95 and an interval;
# - **diagnose** a bad mask, and **improve** a network on strangers without cheating.
#
# You need notebook 03's files and notebook 04's ideas. A GPU helps but is not necessary.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
work: str = ""  # folder that notebooks 01 to 04 wrote to; empty: the usual place on this machine
seed: int = None  # of initial weights, patches and augmentation; None: as in notebook 01
pretrained: bool = None  # start from the network in the box; None: with fewer than 40 real patients
fold: int = None  # -1: the 80/20 split; 0 to 4: that fold of the cross-validation is held out; None: the preset's
network: str = None  # "unet", or another as "module:Class", from 5 to 3 channels: notebook 04, section 7
epochs: int = None  # None: the preset's, as for all below
steps: int = None  # optimizer steps per epoch
batch: int = None  # patches per step
patch: int = None  # voxels per edge
learning_rate: float = None  # the peak, after the warm-up
warmup: int = None  # steps in which the learning rate rises
weight_decay: float = None  # of AdamW
on_nan: str = None  # a loss that is no number: "stop", or "halve" the rate and leave the batch out
ema: float = None  # decay of the weights' running average; 0: no average
checkpointing: bool = None  # recompute activations in the backward pass: less memory, more time
tensorboard: bool = None  # True: write losses, Dice, rates and pictures for TensorBoard into checkpoints/tensorboard
processes: int = None  # training processes; None: one for each GPU
tta: bool = None  # True: average the final predictions over all 8 mirrored views; False: over 4

# %%
# On Colab only: clone the repository. `start`, below, installs what Colab lacks and changes no package of Colab.
import os
from subprocess import run

on_kaggle = "KAGGLE_KERNEL_RUN_TYPE" in os.environ  # whose image is built on Colab's
if "COLAB_RELEASE_TAG" in os.environ and not on_kaggle and not os.path.isdir("/content/repository"):
    address = ""
    run(["git", "clone", "--quiet", "--depth=1", address, "/content/repository"], check=True)

# %%
# Find the package in a parent folder, on Colab or among Kaggle's inputs. Then print the machine.
import sys
from pathlib import Path

folders = [*(Path.cwd() / "here").parents, *Path("/content").glob("*"), *Path("/kaggle/input").glob("*")]
sys.path[:0] = [str(p) for p in folders if (p / "brats_helpers").is_dir()][:1]
from brats_helpers.lessons.session import start

work, device = start(work)

# %%
import numpy as np
import torch

from brats_helpers.data.cohort import read_cohort
from brats_helpers.basics.config import Config
from brats_helpers.training.launch import for_all_gpus, train_here
from brats_helpers.lessons.plots import bars, curves, dice_boxplot, series_map
from brats_helpers.data.pipeline import prepared_files
from brats_helpers.training.stages import for_cohort

config = Config.load(work / "config.json")
asked = {name: globals().get(name) for name in vars(config)}  # the parameters above, by name
config = for_all_gpus(config.with_(**asked), device, processes if batch is None else 1)
cohort = read_cohort(work)
given = [name for name, value in asked.items() if value is not None]
config = for_cohort(config, cohort, given)
config.preset, config.epochs, config.steps, config.batch, config.patch

# %%
cases, synthetic = cohort.by_name, cohort.synthetic
learnt, held_out, test_names = cohort.training_names(config), cohort.held_out(config), cohort.test_names
judged_names = test_names or held_out  # who the last section scores
labeled = [cases[name] for name in {*learnt, *held_out, *judged_names}]
prepared = prepared_files(labeled, work / "preprocessed", config.spacing_mm)
assert not set(learnt) & set(held_out) and not set(test_names) & set(learnt + held_out)
print(
    f"{len(learnt)} to learn from, {len(held_out)} to validate on, {len(test_names)} for the test"
)
series_map(5)

# %% [markdown]
# <details><summary>For teachers</summary>
#
# Start the training cell before the lesson. Ask for a guess before every number, and write the guesses down. Common
# misconceptions: the loss and Dice must move together; the best checkpoint's validation score is a result.
# </details>
#
# ## 1. How far do we get without a network?
#
# Edema is bright on FLAIR. So we mark every voxel above a threshold, chosen on sixteen training patients, and keep the
# largest connected piece. **Question.** What Dice will the whole tumor get?

# %%
from brats_helpers.evaluation.metrics import threshold_baseline
from brats_helpers.data.storage import load
from brats_helpers.data.preprocessing import normalize


def scored_flair(names: list[str]) -> tuple[list, list]:
    """Z-scored FLAIR and the reference of these patients."""
    found = [load(prepared[name]) for name in names]
    z = [normalize(p.volume[:4], p.meta.mean, p.meta.std)[0] for p in found]
    return z, [p.volume[4] for p in found]


thresholds = np.linspace(0.2, 3, 15)
scores = threshold_baseline(*scored_flair(learnt[:16]), thresholds)
best_threshold = thresholds[scores.mean(0).argmax()]
baseline = threshold_baseline(*scored_flair(judged_names), [best_threshold]).mean()
print(f"threshold {best_threshold:.1f}: WT Dice {baseline:.3f} on the patients judged below")

# %%
import matplotlib.pyplot as plt

from brats_helpers.lessons.plots import finish

figure, ax = plt.subplots(figsize=(6, 2.4))
ax.plot(thresholds, scores.T, color="#BBBBBB", lw=0.8)
ax.plot(thresholds, scores.mean(0), color="#0072B2", lw=2)
ax.set(xlabel="threshold on z-scored FLAIR", ylabel="Dice of WT; blue: mean", ylim=(0, 1))
finish(figure, synthetic, alt="Dice of WT against the threshold: a line for each patient, and their mean")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Read the line printed above the picture. With seed 0 it is about 0.61, and lower with other seeds ([results](../docs/results.md)).
# </details>
#
# Each gray line is one patient, and the lines peak at different thresholds. Where a line drops to 0 and rises again, the
# largest piece was healthy tissue; a slightly higher threshold cuts it apart. At the right end, too little of the tumor
# is bright enough. In phantoms and in patients, shading by the receiver coil (Sled et al. 1998), bright gray matter and
# dark cores mislead the rule. Many older patients also have bright spots in the white matter that are no tumor.
#
# ## 2. Augmentation
#
# There are never enough patients. A flipped or noisier patient is still a patient, so we change each patch at random. Most
# changes come from NVIDIA (Futrega et al. 2021), rotation and gamma from nnU-Net (Isensee et al. 2021). First, changes of
# shape:

# %%
from brats_helpers.data.preprocessing import slice_with_most_tumor
from brats_helpers.training import augmentation as augment
from brats_helpers.lessons.plots import compare_slices, draw_slice

generator, example = torch.Generator().manual_seed(1), load(prepared[held_out[0]])
z = normalize(example.volume[:4], example.meta.mean, example.meta.std)
image, label = torch.from_numpy(z), torch.from_numpy(example.volume[4:])
spatial = {"original": (image, label), "flip": (image.flip(3), label.flip(3))}
moved = {"rotation": (1.0, [0, 0, 25], 0.0), "zoom": (1.4, None, 0.0), "elastic": (1.0, None, 6.0)}
for name, how in moved.items():
    grid = augment.sampling_grid(image.shape[1:], *how, generator)
    spatial[name] = augment.resample(image, label, grid)
figure, axes = plt.subplots(1, 5, figsize=(9.6, 2.3))
for ax, (name, views) in zip(axes, spatial.items()):
    view, marks = (volume[0].numpy().T for volume in views)
    draw_slice(ax, view, "axial", slice_with_most_tumor(marks), labels=marks, letters=False)
    ax.set_title(name)
finish(figure, synthetic, legend=True)

# %% [markdown]
# The label moves with the image, but it takes the value of the nearest voxel. Labels are names: the mean of 1 (necrotic and
# non-enhancing core) and 3 (enhancing tumor) would be 2, edema. Changes of intensity touch the image alone. (A z-score has
# its mean at 0, so "brightness 1.3" looks like more contrast.) Where a tumor does not enhance, its whole core is label 1.

# %%
brain = image[4:]
changed = {
    "original": image[:4],
    "noise": augment.add_noise(image[:4], 0.33, generator),
    "blur": augment.blur(image[:4], 1.2),
    "brightness 1.3": image[:4] * 1.3,
    "contrast 0.65": augment.change_contrast(image[:4], 0.65),
    "gamma 1.5": augment.change_gamma(image[:4], 1.5),
}
shown = {name: (x * brain)[0].numpy().T for name, x in changed.items()}
at = slice_with_most_tumor(example.volume[4].T)
compare_slices(shown, index=at, shared_window=True, synthetic=synthetic, columns=6)

# %% [markdown]
# **Question.** A head is never upside down in a scanner. Why do we still flip it from top to bottom?
#
# <details><summary>Answer</summary>
#
# The edge of a tumor looks much the same in every direction, and we have few patients. But if only position
# tells two organs apart, such as the left and the right kidney, a flip does harm.
# </details>
#
# Augmentation keeps a network from memorizing its patients. Methods with that aim are called **regularization**.

# %% [markdown]
# ## 3. The schedule
#
# *Adam* scales the step of each weight by running averages of its gradients. The learning rate rises for a few steps,
# while these averages are still empty (Liu et al. 2020). Then it falls along half a cosine (Loshchilov and Hutter 2017).
# **Text and code differ.** NVIDIA's paper describes 250 steps of warm-up. Its
# [code](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/nnunet/nn_unet.py) has
# none, and half a cosine over 4,096 steps, with one step per *epoch* (its pass through all patients; ours is a fixed
# number of steps). **Question.** How far has that rate fallen after all 150 epochs?

# %%
from brats_helpers.training.step import learning_rate as rate

total = config.epochs * config.steps
theirs = 8e-5 + 2.2e-4 * 0.5 * (1 + np.cos(np.pi * np.arange(150) / 4096))  # 3e-4 down to 8e-5
ours = [rate(step, config) / config.learning_rate for step in range(total)]
lines = {"this run": (np.linspace(0, 1, total), ours), "NVIDIA's code": (np.linspace(0, 1, 150), theirs / theirs[0])}
print(f"NVIDIA's code: {theirs[0]:.2e} at the start, {theirs[-1]:.2e} after 150 epochs")
curves({"": lines}, "fraction of the training run", "learning rate / peak")

# %% [markdown]
# <details><summary>Answer</summary>
#
# By less than 1 %. Such a schedule is practically a constant rate.
# </details>

# %% [markdown]
# ## 4. Training
#
# One step fits on a slide: set the learning rate, forward, loss, backward, *clip* the gradient (shorten it if it is too
# long), step, and update the **EMA**, a running average of the weights. The EMA is what we validate and save.

# %%
from brats_helpers.training.step import plain_train_step, train_step
from brats_helpers.lessons.viewers import show_source

show_source(plain_train_step)

# %% [markdown]
# The series trains with this version of the same step. **Question.** Which four things does it add?

# %%
show_source(train_step)

# %% [markdown]
# <details><summary>Answer</summary>
#
# 16-bit numbers with loss scaling, several GPUs, the preparation of the next batch while a GPU works, and a decision about a
# loss that is not a number.
# </details>

# %% [markdown]
# Everything random is a function of the seed and the patch's number. So a run that is killed resumes from `last.pt` and ends
# with the same weights, to the last bit on a CPU ([tested](../tests/training/test_loop.py)).
#
# The next cell trains. Three panels follow, with one point per epoch for the loss and the learning rate, and Dice after
# every second epoch. **Question.** Is the loss still falling at the end? Is the validation Dice still rising?

# %%
from brats_helpers.lessons.plots import learning_curves
from brats_helpers.lessons.viewers import Dashboard

history = train_here(config, work, processes, on_epoch=Dashboard(), device=device)

assert history[-1]["epoch"] == config.epochs
learning_curves(history)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Read it from the curves. If the loss falls and the validation Dice does not rise, the network memorizes its patients:
# **overfitting**.
# </details>
#
# ### A prediction forms
#
# Here is our first patient again. The training kept the probabilities of one slice after 0, 25, 100 and all steps.
# (Training runs of up to 100 steps keep none.) **Question.** What does the network learn first?

# %%
from brats_helpers.lessons.features import draw_forming
from brats_helpers.training.forming import read_forming

companion = load(prepared[min(learnt + held_out)])
print("it learned from this patient" if companion.meta.name in learnt else "it did not learn from this patient")
draw_forming(companion, read_forming(work / "checkpoints"), synthetic)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Where the tumor is. The other steps settle the rest of the brain. (If the network learned from
# this patient, the picture is no result.)
# </details>
#
# ### Where did the time go?

# %%
import time

from brats_helpers.data.loaders import PatchDataset, batches
from brats_helpers.network.losses import deep_supervision_loss
from brats_helpers.training import new_state, prepare_batch

state = new_state(config, device)
stream = PatchDataset([prepared[n] for n in learnt], config.patch, config.oversample_foreground, config.seed)
ticks = []
for step in range(5):
    begin = time.perf_counter()
    item = next(batches(stream, config.batch, step, step + 1))
    read = time.perf_counter()
    images, target = prepare_batch(item, config, device)
    augmented = time.perf_counter()
    with device.autocast():
        loss = deep_supervision_loss(state.model(images), target)
    loss.item()  # waits for a GPU to be done
    forward = time.perf_counter()
    loss.backward()
    ticks.append((begin, read, augmented, forward, time.perf_counter()))

spent = 1000 * np.median(np.diff(ticks), axis=0)
bars(dict(zip(("read", "augment", "forward", "backward"), spent)), "ms per step", "ms")

# %% [markdown]
# On a CPU the network takes most of the time.
#
# ### A loss that is not a number
#
# One damaged patient is enough. Here we set a standard deviation to 0, so that the z-score divides by zero:

# %%
from brats_helpers.basics.errors import BratsError

item["std"] = torch.zeros_like(item["std"])
before = [p.clone() for p in state.model.parameters()]
for choice in ("stop", "halve"):
    try:
        train_step(state, item, config.with_(on_nan=choice), device)
    except BratsError as error:
        print(error)
assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters()))
print(f"weights untouched; step {state.step}; the rate is now times {state.rate_factor}")

# %% [markdown]
# Without this check, every weight would now be NaN. With `on_nan="halve"`, training drops the batch,
# halves the learning rate and goes on.
#
# ## 5. From patches to a brain
#
# A brain is larger than the network's window. So windows cover it, each overlapping the next by at least half, and each
# voxel's probability is a weighted average. **Question.** What would the sum of the weights look like if all voxels of a
# window counted the same?

# %%
from brats_helpers.evaluation.sliding_window import gaussian_weight, window_starts

edge, length = config.patch, max(config.patch, *example.volume.shape[1:])
starts = window_starts(length, edge, config.overlap)
weight = gaussian_weight(edge)[edge // 2, edge // 2].numpy()
panels = {}
for name, each in (("equal weights", np.ones(edge)), ("Gaussian weights", weight)):
    total_weight = np.zeros(length)
    for start_at in starts:
        total_weight[start_at : start_at + edge] += each
    assert total_weight.min() > 0  # every voxel is seen
    window = {"one window": (range(edge), each)}
    panels[name] = window | {"sum of all": (range(length), total_weight)}
curves(panels, "voxel along the longest axis", "weight")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Like steps (left). Where a window ends, the probability can jump, which leaves a seam. With Gaussian weights (right), each
# window fades in and out.
# </details>
#
# ### Exercise 1: a second opinion
#
# A network gives a different answer for a mirrored volume. Write a function that asks it twice, for `x` and for `x` mirrored
# along its last axis, and returns the mean of the two answers.
#
# <details><summary>Hint</summary>
#
# `x.flip(-1)` is the mirror image. The answer to it is mirrored as well.
# </details>


# %% tags=["exercise"]
from brats_helpers.lessons import checks


def second_opinion(network, x: torch.Tensor) -> torch.Tensor:
    """The mean of the answers to x and to its mirror image."""
    return (network(x) + network(x.flip(-1)).flip(-1)) / 2  # solution


checks.check_mirror_average(second_opinion)

# %% [markdown]
# Mirroring along three axes makes eight copies. Averaging over them is called **test-time augmentation** (TTA). Three
# thresholds then turn probabilities into labels, and a small, doubtful piece of enhancing tumor becomes label 1, the
# necrotic and non-enhancing core.
#
# **Text and code differ** here as well. NVIDIA's paper averages probabilities and uses thresholds of 0.45, 0.4 and 0.4, pieces
# of 16 voxels and Gaussian windows that overlap by half. Its [code](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/nnunet/nn_unet.py)
# averages logits. Its [notebook](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/notebooks/BraTS21.ipynb)
# uses 0.5, 8 voxels, an overlap of 0.25 and equal weights. We follow the paper, in mm³ instead of voxels:

# %%
from brats_helpers.evaluation import prediction as inference
from brats_helpers.evaluation.postprocessing import postprocess

show_source(postprocess)

# %% [markdown]
# ### Exercise 2: a chain of thresholds
#
# Write its first half. A voxel below 0.45 for WT is background (0). Otherwise, below 0.4 for TC, it is edema (2).
# Otherwise, below 0.4 for ET, it is the non-enhancing core (1). All the rest is enhancing tumor (3).
#
# <details><summary>Hint</summary>
#
# Nest three `np.where(condition, this, else_that)`, the whole tumor outermost.
# </details>


# %% tags=["exercise"]
def labels_from(whole: np.ndarray, core: np.ndarray, enhancing: np.ndarray) -> np.ndarray:
    """Labels 0 to 3 from the probabilities of the three regions."""
    inner = np.where(core < 0.4, 2, np.where(enhancing < 0.4, 1, 3))  # solution
    return np.where(whole < 0.45, 0, inner)  # solution


checks.check_threshold_chain(labels_from)

# %% [markdown]
# ## 6. The verdict
#
# The network meets the test patients now, and only once, with the checkpoint that the *validation* patients selected.
# (Without a test set, the validation patients judge the last checkpoint.) In the table, *IoU* is the volume that two
# masks share, divided by the volume of both together. *Sensitivity* is the share of the tumor that was found.
# *Specificity*, the share of the background that was left alone, is near 1 for almost any mask. *HD95* is a distance
# between the two surfaces, in mm.
#
# **Question.** What will the network score?

# %%
from brats_helpers.evaluation.scoring import evaluate
from brats_helpers.evaluation.metrics import bootstrap_ci, interval_text

which, checkpoint = ("test", "best.pt") if test_names else ("validation", "last.pt")
chosen = [cases[name] for name in judged_names]
path = work / "checkpoints" / checkpoint
metrics = evaluate(chosen, path, work, config, which, device, cohort.left_out)
rows = metrics["per_case"]
assert [row["name"] for row in rows] == judged_names
print(f"{metrics['cases']} {which} patients, {metrics['checkpoint']}, seed {metrics['seed']}")
print("      Dice  (95 % interval)     IoU    sens.  spec.   HD95 mm")
for name in ("WT", "TC", "ET"):
    parts = (metrics[score][name] for score in ("iou", "sensitivity", "specificity", "hd95_mm"))
    interval = interval_text(metrics["dice_ci95"][name])
    print(f"{name}   {metrics['dice'][name]:.3f}  ({interval})", *(f" {part:.3f}" for part in parts))
print(f"threshold on FLAIR, the same patients: WT {baseline:.3f}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Compare your guess with the first row, and the first row with the last. A network that does not clearly beat the threshold
# is not worth its training.
# </details>
#
# The interval is a **bootstrap**: we draw the patients again and again with replacement, and keep the middle 95 % of the
# means. It covers *other patients of this kind*, not other hospitals. To compare two methods, resample the *differences*:

# %%
flair, truth = scored_flair(judged_names)
alone = threshold_baseline(flair, truth, [best_threshold])[:, 0]
gain = [row["WT"]["dice"] - score for row, score in zip(rows, alone)]
if len(gain) > 1:
    print("network minus threshold, WT: {:.3f} ({:.3f} to {:.3f})".format(*bootstrap_ci(gain)))
dice_boxplot(rows, synthetic=synthetic)

# %% [markdown]
# **Dice** counts voxels. **HD95** measures how far apart two surfaces are (the 95th percentile, in mm). A false island
# far away changes Dice little, but it ruins HD95 once it holds more than a twentieth of the predicted surface. In our
# run, WT has a good Dice and a high HD95 for that reason. In a patient without ET, a single marked voxel makes Dice 0 and
# HD95, by the rule of BraTS, 373 mm.
#
# ### Exercise 3: HD95
#
# `there` holds the distance to the reference's surface for each voxel of the prediction's surface, and `back` holds the
# distances in the other direction. HD95 is the larger of their 95th percentiles. Write it.
#
# <details><summary>Hint</summary>
#
# `np.percentile(values, 95)`, twice.
# </details>


# %% tags=["exercise"]
def hausdorff_95(there: np.ndarray, back: np.ndarray) -> float:
    """The larger of the two directions' 95th percentiles."""
    return max(np.percentile(there, 95), np.percentile(back, 95))  # solution


checks.check_hd95(hausdorff_95)

# %% [markdown]
# ### Lesion by lesion
#
# Dice hardly notices a second, small tumor. Since 2023, BraTS scores every lesion by itself. A lesion is a connected
# piece of the mask. Pieces of the reference that lie a few voxels apart count as one ([its
# code](https://github.com/rachitsaluja/BraTS-2023-Metrics)). A missed or false one scores 0:

# %%
from brats_helpers.evaluation.scoring import read_prediction
from brats_helpers.evaluation.metrics import lesion_wise, regions


each = []
for case in chosen:
    patient, mask = read_prediction(case, work)
    et = (regions(mask)[2], regions(patient.reference)[2])
    each.append(lesion_wise(*et, patient.spacing))
mean = np.mean([scores["dice"] for scores in each])
print(f"ET: Dice {metrics['dice']['ET']:.3f}, lesion by lesion {mean:.3f}")
print({kind: sum(scores[kind] for scores in each) for kind in ("found", "missed", "false")})

# %% [markdown]
# ### The worst patient
#
# A mean is not a patient. **Question.** Before you look at the worst one (the lowest mean of the three regions): which
# region will have failed, and will the network have missed tumor or marked healthy tissue?

# %%
from brats_helpers.lessons.diagnosis import compare_masks, diagnose
from brats_helpers.lessons.plots import three_planes, upright
from brats_helpers.data.preprocessing import lps_spacing

order = sorted(rows, key=lambda row: np.mean([row[name]["dice"] for name in ("WT", "TC", "ET")]))
worst = order[0]
worst_patient, worst_mask = read_prediction(cases[worst["name"]], work)
compare_masks(worst_patient, worst_mask, synthetic=synthetic)

# %% [markdown]
# Each column is one region, zoomed. The diagnosis in words is computed from the same masks:

# %%
for line in diagnose(worst_patient, worst_mask):
    print(line)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Read the three lines above. In our run all three regions fail alike, along their borders: the whole tumor is drawn too
# small, and the core and the enhancing tumor too large.
# </details>
#
# Dice is relative to size, and a doctor may care about milliliters. Is the patient with the most *missed volume* the same
# one?

# %%
missed_ml = {row["name"]: row["WT"]["reference_ml"] * (1 - row["WT"]["sensitivity"]) for row in rows}
for name in sorted(missed_ml, key=missed_ml.get, reverse=True)[:3]:
    row = next(row for row in rows if row["name"] == name)
    print(f"{name}: {missed_ml[name]:5.1f} of {row['WT']['reference_ml']:5.1f} ml missed, Dice of WT {row['WT']['dice']:.2f}")

# %% [markdown]
# ### Exercise 4: explain it
#
# Name the region of the worst patient that scores lowest, "WT", "TC" or "ET", and the error that costs it most volume,
# "missed" or "false". `errors[region]` holds the milliliters.
#
# <details><summary>Hint</summary>
#
# `worst[region]["dice"]` is the score. Take the region with the smallest, then compare its two errors.
# </details>

# %% tags=["exercise"]
from brats_helpers.lessons import investigations

pairs = zip(("WT", "TC", "ET"), regions(worst_mask), regions(worst_patient.reference))
errors = {name: investigations.errors_of(p, r, worst_patient.spacing) for name, p, r in pairs}
lowest = min(errors, key=lambda name: worst[name]["dice"])  # solution
kind = max(("missed", "false"), key=errors[lowest].get)  # solution
explanation = (lowest, kind)  # solution
investigations.check_explanation(explanation, worst, errors)

# %% [markdown]
# Here is the patient in the middle of the ranking:

# %% tags=["readme"]
def show(row: dict, title: str):
    """Reference and prediction of one patient in three planes."""
    patient, mask = read_prediction(cases[row["name"]], work)
    volumes = (patient.images[0], patient.reference, mask)
    image, truth, guess = (upright(volume, patient.affine) for volume in volumes)
    dice = ", ".join(f"{name} {row[name]['dice']:.3f}" for name in ("WT", "TC", "ET"))
    views = {"reference": truth, "prediction": guess}
    spacing = lps_spacing(patient.spacing, patient.affine)
    return three_planes(image, views, spacing, f"{title}: {row['name']}, Dice {dice}", synthetic)


show(order[len(order) // 2], "median")

# %% [markdown]
# ### Does it know when it is unsure?
#
# A network is **calibrated** if, of all voxels to which it gives a probability of 0.8, four in five are tumor. We count how
# many voxels of the median patient are tumor at each probability. **Question.** Published networks trained with Dice loss
# are overconfident (Mehrtash et al. 2020). Is this one?

# %%
from brats_helpers.evaluation.checkpoints import load_checkpoint
from brats_helpers.evaluation.metrics import calibration, dice

model, trained = load_checkpoint(path, device)
patient, prediction = read_prediction(cases[order[len(order) // 2]["name"]], work)
said = inference.segment([model], patient, trained, False, device)[1][0]
inside = patient.images[0] != 0
points = calibration(said[inside], (patient.reference > 0)[inside])
cut = np.linspace(0.05, 0.95, 19)
by_threshold = [dice(said >= threshold, patient.reference > 0) for threshold in cut]
panels = {"share that was tumor": {"network": points, "calibrated": ((0, 1), (0, 1))}}
panels["Dice of WT"] = {"": (cut, by_threshold)}
curves(panels, "probability that it gave (left), threshold on it (right)")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Look at the left panel. Below the diagonal, the probability of tumor is too high; above it, too low. In our run the
# curve stays near the diagonal and crosses it, so this network is not clearly overconfident. This is one patient. In the
# right panel, the threshold hardly matters over a wide range, because almost all probabilities are near 0 or 1. Never
# read such a value as the probability of a diagnosis.
# </details>

# %% [markdown]
# ## 7. The fall
#
# The network beat the threshold. Now we give the *same* network four **strangers**, phantoms whose brightness, noise and
# tumors vary as they do between scanners and patients. **Question.** What Dice will the whole tumor get?

# %%
from dataclasses import replace

from brats_helpers.phantoms import make_patient

strange = "varied" if synthetic else "phantom"
made = [make_patient(9, n, config.spacing_mm, strange) for n in range(4)]
strangers = [replace(patient, name=f"stranger {n}") for n, patient in enumerate(made, 1)]
answers = [inference.segment([model], stranger, trained, False, device)[0] for stranger in strangers]
falls = np.array([
    [dice(*pair) for pair in zip(regions(answer), regions(stranger.reference))]
    for answer, stranger in zip(answers, strangers)
])
print(f"{'':<34}{'WT':>6}{'TC':>8}{'ET':>8}")
print(f"{'threshold, patients judged above':<34}{baseline:6.3f}")
print(f"{'network, patients judged above':<34}" + "  ".join(f"{metrics['dice'][n]:6.3f}" for n in metrics["dice"]))
print(f"{'network, strangers':<34}" + "  ".join(f"{score:6.3f}" for score in falls.mean(0)))

# %%
lowest = int(falls[:, 0].argmin())
compare_masks(strangers[lowest], answers[lowest], synthetic=True)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Read the last row of the table. In our run the whole tumor keeps less than half of its Dice, and the tumor core and the
# enhancing tumor keep almost nothing.
# </details>
#
# Nothing was damaged. The network met intensities and shapes that it had never seen: **domain shift**. The picture shows
# the slices with most error. The next one goes through the tumor of the same stranger. **Question.** What lies where the
# network sees tumor, and what did it miss?

# %%
volumes = (strangers[lowest].images[0], strangers[lowest].reference, answers[lowest])
image, truth, guess = (upright(volume, strangers[lowest].affine) for volume in volumes)
spacing = lps_spacing(strangers[lowest].spacing, strangers[lowest].affine)
views = {"reference": truth, "prediction": guess}
print(*diagnose(strangers[lowest], answers[lowest]), sep="\n")
three_planes(image, views, spacing, f"{strangers[lowest].name}: through its tumor", synthetic=True)

# %% [markdown]
# <details><summary>Answer</summary>
#
# In our run it missed the whole core and took it for edema. The core of this tumor hardly enhances and is gray to bright
# on FLAIR, while cores were dark in the training. It marked healthy tissue in patches, and along the surface: vessels and
# remains of the *dura*, the membrane around the brain, are bright on T1CE in the strangers, as they are in patients.
# </details>
#
# On twenty *real* patients, a network trained like this one scores 0.47 for the whole tumor
# ([measured](../docs/results.md)).
#
# ### Does anything warn us?
#
# A checkpoint stores statistics of its training patients, such as the shape of each contrast's histogram. `predict` warns if
# a scan lies far outside their range. **Question.** How many warnings do our four strangers cause?

# %%
from brats_helpers.data.storage import open_volume
from brats_helpers.data.preprocessing import prepare
from brats_helpers.evaluation import domain_shift as shift
from brats_helpers.lessons import plots

others = [prepare(stranger, config.spacing_mm) for stranger in strangers]
seen = shift.ranges([open_volume(prepared[n])[1].fingerprint for n in learnt])
for stranger, prepared_stranger, score in zip(strangers, others, falls):
    warnings = shift.outside_ranges(prepared_stranger.meta.fingerprint, seen)
    print(f"{stranger.name}: Dice of WT {score[0]:.2f}, {len(warnings)} warning(s)", *warnings[:1])

# %% [markdown]
# <details><summary>Answer</summary>
#
# "0 warning(s)" next to a low Dice is the limit of this check. The statistics are those of the whole brain. Neither a
# tumor that looks different nor thin bright vessels move them much. A silent check is no proof.
# </details>
#
# The histograms show the three pairs of contrast and compartment that differ most. The number is how far, on average,
# values have to move to turn one histogram into the other (Wasserstein's distance, in standard deviations):

# %%
judged = [load(prepared[name]) for name in judged_names[:8]]
plots.two_cohorts(judged, others, ("judged above", "strangers"), synthetic)

# %% [markdown]
# ### What brings it back
#
# More variety. The package carries a network that learned from 420 phantoms like the strangers, and from no patient: the
# **network in the box**. It does not know these four strangers either. **Question.** You have four labeled patients of
# your own. Do you start from random weights, or from these?

# %%
from brats_helpers.evaluation.pretrained import load_pretrained

box, box_config = load_pretrained(device)
boxed = np.array([
    [dice(*pair) for pair in zip(regions(inference.segment([box], stranger, box_config, False, device)[0]), regions(stranger.reference))]
    for stranger in strangers
])
for name, scores in (("network of this notebook", falls), ("network in the box", boxed)):
    print(f"{name + ', strangers':<38}" + "  ".join(f"{score:6.3f}" for score in scores.mean(0)))

# %% [markdown]
# <details><summary>Answer</summary>
#
# From these. The series does that by itself for fewer than 40 real patients. Do not expect much from four patients. The
# one time we measured this, with four picked at random, they added nothing ([what we know](../docs/zero_shot.md), and
# what the network in the box scores on real patients). In the table, ET counts little: one of the four strangers has a
# single voxel of it, which lowers both means.
# </details>
#
# ### Exercise 5: two minutes
#
# Raise the Dice of our network on strangers. The lab has three labeled strangers to learn from, three to practice on, and
# the four from above as a test. You have two minutes of computing time. A plan is a dictionary of settings. `steps`
# continues training for that many steps, `"augment": False` leaves out augmentation, `views` averages 4 or 8 mirrored
# copies, `threshold` sets the threshold of WT, and `largest` keeps only the largest piece. `lab.score(plan)` uses the
# practice patients, and `lab.score(plan, "test")` the test patients.
#
# <details><summary>Hint</summary>
#
# Score `{"steps": 40}` and `{"steps": 40, "largest": True}`, and choose. A plan that you choose on the test patients is
# tuned to them.
# </details>

# %% tags=["exercise"]
from brats_helpers.lessons.budget import Lab

lab = Lab(model, trained, device, strangers, strange)
plans = [{"steps": 40}, {"steps": 40, "augment": False}, {"steps": 40, "largest": True}]  # solution
best_plan = max(plans, key=lab.score)  # solution
investigations.check_budget(best_plan, lab, falls.mean())

# %% [markdown]
# Compare the two scores of your plan. Three practice patients are few: they may be easier than the test patients, and a
# small difference between plans may be chance. That is why you choose on them, and use the test patients only once.

# %% [markdown]
# ## 8. Play
#
# Look through every patient, the worst first. Move the threshold, then the sliders of the augmentation. (Both need a running
# kernel.) In the last viewer, choose *prediction* and compare. **Question.** Which threshold would you choose if a missed
# voxel were worse than a false one?
#
# <details><summary>Answer</summary>
#
# A lower one: the mask grows. It misses fewer tumor voxels and marks more healthy ones.
# </details>

# %%
from IPython.display import display

from brats_helpers.lessons import viewers

display(viewers.comparison_viewer(rows, lambda n: read_prediction(cases[n], work), synthetic))
display(viewers.threshold_explorer(patient, said, synthetic=synthetic))
display(viewers.augmentation_playground(example, synthetic))
viewers.slice_viewer(patient, prediction, synthetic)

# %% [markdown]
# ## 9. Save and verify
#
# The masks are NIfTI files with BraTS's labels and the geometry of the scan. A **model card** says what the network was
# trained on, how it was tested, and what it must not be used for.

# %%
from IPython.display import Markdown

from brats_helpers.evaluation.scoring import verify_masks, write_model_card

verify_masks(chosen, work)
print(f"{len(chosen)} masks in {work / 'predictions'}: labels 0, 1, 2, 4, the scans' geometry")
card = work / "checkpoints" / "MODEL_CARD.md"
Markdown(write_model_card(card, metrics, config, len(learnt), synthetic, device))

# %% [markdown]
# To segment a patient without a reference, use `best.pt`, which the validation patients selected. (If your cohort has no
# test set, the scores above are those of `last.pt`. Then use that file.)
#
# `python -m brats_helpers predict CASE_FOLDER --checkpoint runs/quick/checkpoints/best.pt --out masks --tta`
#
# For research and teaching; not for diagnosis.
#
# ## Recap
#
# - Training resumes exactly, because its randomness depends on the seed and the patch's number alone.
# - Patients used to select a checkpoint or a plan cannot judge it.
# - A mean hides individual patients. A high score describes patients like the training patients.
#
# | term | meaning |
# |---|---|
# | checkpoint | a file with the weights and everything needed to go on |
# | domain shift | new patients differ from the training patients |
# | HD95 | 95th percentile of the distances between two surfaces |
# | bootstrap | drawing patients again and again, to see how much a mean varies |
# | calibration | whether a probability means what it says |
#
# **What surprised us:** the network loses more than half of its whole-tumor Dice on strangers, and the check that should
# warn us stays silent.
#
# **What a radiologist would look for that this cannot see:** the scan before this one, the effect of treatment, and whether
# the tumor is a glioma at all.
#
# **What published code gets wrong.** NVIDIA's [metric](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/nnunet/metrics.py)
# stores the Dice of region i at place i - 1. So D1, D2 and D3 of its
# [log](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/notebooks/BraTS21.ipynb)
# are TC, ET and WT: its fold 0 after 30 epochs scores WT 92.88 %, TC 90.69 % and ET 85.50 % on real patients.
#
# ## When it goes wrong
#
# - *Out of memory*: `checkpointing=True`, then `batch=1` (notebook 04).
# - *"the loss became nan"*: look at these patients, then lower `learning_rate`.
# - *The loss falls and Dice does not rise*: use more patients or more augmentation.
#
# ## Read on
#
# Futrega et al. 2021, [*Optimized U-Net*](https://arxiv.org/abs/2110.03352). Isensee et al. 2021,
# [*nnU-Net*](https://doi.org/10.1038/s41592-020-01008-z). Maier-Hein et al. 2024,
# [*Metrics reloaded*](https://doi.org/10.1038/s41592-023-02151-z). Mehrtash et al. 2020,
# [*Calibration*](https://doi.org/10.1109/TMI.2020.3006437). Liu et al. 2020,
# [*Warm-up*](https://arxiv.org/abs/1908.03265). Loshchilov and Hutter 2017,
# [*SGDR*](https://arxiv.org/abs/1608.03983). Sled et al. 1998,
# [*Intensity nonuniformity*](https://doi.org/10.1109/42.668698).
