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
# The network learns, and is judged on patients that nothing has seen before.
#
# **05 of 05** | back: [04 Architecture](04_architecture.ipynb)
#
# | | |
# |---|---|
# | reads | `config.json`, `patients.json`, `splits.json`, `preprocessed/` |
# | writes | `checkpoints/last.pt`, `checkpoints/best.pt`, `predictions/<patient>.nii.gz`, `metrics.json` |
# | takes | 6 minutes on two CPU cores (quick preset, measured: [README](../README.md#results)); not timed on a GPU yet; to read and to do the exercises 1 hour, an estimate |

# %% [markdown]
# ## By the end you can
#
# - **augment** volumes and check that the labels moved along;
# - **train** with mixed precision, warm-up and cosine, and resume where it was stopped;
# - **segment** a whole brain from overlapping windows and mirrored views;
# - **judge** a segmentation with Dice, HD95 and an interval, and say what they hide.
#
# You need notebooks 03 and 04. A GPU is welcome, not needed.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
work: str = ""  # folder that notebooks 01 to 04 wrote to; empty: the usual place on this machine
seed: int = None  # of initial weights, patches and augmentation; None: as in notebook 01
pretrain: int = None  # phantoms to make, and learn from first; None: 120 for fewer than 40 real patients, else none
fold: int = None  # -1: the 80/20 split; 0 to 4: that fold of the cross-validation is held out; None: the preset's
network: str = None  # "unet", or another as "module:Class", from 5 to 3 channels: notebook 04, section 7
epochs: int = None  # None: the preset's, as for all below
steps: int = None  # optimizer steps an epoch
batch: int = None  # patches a step
patch: int = None  # voxels an edge
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
# On Colab alone: fetch the repository that this notebook is from, and what is missing there; its torch stays.
import os
from subprocess import run

if "COLAB_RELEASE_TAG" in os.environ and not os.path.isdir("/content/repository"):
    address = ""
    run(["git", "clone", "--quiet", "--depth=1", address, "/content/repository"], check=True)
    run(["pip", "install", "--quiet", "-r", "/content/repository/requirements.txt"], check=True)

# %%
# Find the module, above this notebook or among what was fetched or given; say which machine this is.
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
from brats_helpers.training.stages import for_few_patients

config = Config.load(work / "config.json")
asked = {name: globals().get(name) for name in vars(config)}  # the parameters above, by name
config = for_all_gpus(config.with_(**asked), device, processes if batch is None else 1)
cohort = read_cohort(work)
given = [name for name, value in asked.items() if value is not None]
config = for_few_patients(config, len(cohort.training_names(config)), cohort.synthetic, given)
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
# Start the training cell before the lesson begins. Ask for a guess of every number before it is shown, and write the
# guesses down. Misconceptions to expect: that the loss and Dice must move together, that the best checkpoint's validation
# score is a result, that overlapping windows are there for speed, that a mean over patients describes a patient.
# </details>
#
# ## 1. What can be done without a network?
#
# Edema is bright on FLAIR (notebook 01). So: everything brighter than a threshold, the largest connected piece. The threshold is
# chosen on (at most sixteen of) the training patients. **Question.** What Dice will the whole tumor get?

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

figure, ax = plt.subplots(figsize=(6, 2.4))
ax.plot(thresholds, scores.T, color="#BBBBBB", lw=0.8)
ax.plot(thresholds, scores.mean(0), color="#0072B2", lw=2)
ax.set(xlabel="threshold on z-scored FLAIR", ylabel="Dice of WT; blue: mean", ylim=(0, 1))
plt.show()

# %% [markdown]
# Each gray line is a patient, and each has its best threshold somewhere else. What mars it in the phantoms are things that
# mar it in patients, too: shading of the coil (Sled et al. 1998), gray matter nearly as bright as edema, a core that may be
# dark; in patients also changes of the white matter by age or treatment. A network has to do better, and a
# threshold says nothing on TC and ET.
#
# ## 2. Augmentation
#
# Patients are never enough. A flipped, turned, stretched or noisier patient is still a patient, so each patch is changed at
# random and hardly ever shown twice. Zoom, flips, noise, blur, brightness and contrast are NVIDIA's (Futrega et al.
# 2021), rotation and gamma nnU-Net's (Isensee et al. 2021), deformation and shift ours. One at a time, near the strongest
# that is drawn (the deformation half as strong again):

# %%
from brats_helpers.training import augmentation as augment
from brats_helpers.lessons.plots import compare_slices, draw_slice, finish, slice_with_most_tumor

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
# The label moves along, by the nearest voxel: labels are names, not quantities, and the mean of 1 (necrosis) and 3 (enhancing
# tumor) would be 2, edema. Intensities are changed in the image alone, each contrast by itself: another scanner
# changes one without the others.

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
# **Question.** A head is never upside down in a scanner. Why flip it from top to bottom all the same?
#
# <details><summary>Answer</summary>
#
# Contrast at the tumor's edge depends little on direction, and that is what has to be learnt from few patients. But the flip
# makes anatomy that does not exist, and takes away what the network could know of place; for organs that are told apart by
# their place, such as a left and a right kidney, it can do harm. Whether it helps has to be measured; winning entries have
# used it (Futrega et al. 2021).
# </details>
#
# Augmentation is one way to keep a network from learning its patients by heart (**regularization**). Weight decay, which
# pulls all weights toward 0, and the running average of the weights (section 4) are two more.

# %% [markdown]
# ## 3. The schedule
#
# The learning rate rises for a few steps, while the averages inside Adam are still empty (Liu et al. 2020), and then falls
# along half a cosine (Loshchilov and Hutter 2017). **Text and code differ:** NVIDIA's text says cosine with 250 steps of
# warm-up. Its [code](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/nnunet/nn_unet.py)
# as published now has no warm-up, and moves along a cosine of period 4,096 once an *epoch*. Both, drawn from their formulas:

# %%
from brats_helpers.training.step import learning_rate as rate

total = config.epochs * config.steps
theirs = 8e-5 + 2.2e-4 * 0.5 * (1 + np.cos(np.pi * np.arange(150) / 4096))  # 3e-4 down to 8e-5
ours = {"this run": {"": (range(total), [rate(step, config) for step in range(total)])}}
copied = {f"theirs, after 150 epochs still {theirs[-1]:.2e}": {"": (range(150), theirs)}}
curves(ours | copied, "step (left), epoch (right)", "learning rate")

# %% [markdown]
# ### Exercise 1: half way
#
# What is the learning rate half way between the end of the warm-up and the last step? The peak is
# `config.learning_rate`.
#
# <details><summary>Hint</summary>
#
# The cosine's half wave goes from 1 to 0 as (1 + cos x) / 2, for x from 0 to π. Which value has it at π/2?
# </details>

# %% tags=["exercise"]
from brats_helpers.lessons import checks

half_way = config.learning_rate / 2  # solution
checks.check_half_rate(half_way, config)

# %% [markdown]
# ## 4. Training
#
# One step is short enough to read:

# %%
from brats_helpers.training.step import train_step
from brats_helpers.lessons.viewers import show_source

show_source(train_step)

# %% [markdown]
# Everything random is a function of the seed and the patch's number: which patient, which corner, which augmentation. So
# a run that is killed goes on from `last.pt` and ends with the same weights, to the last bit on a CPU
# ([tested](../tests/training/test_loop.py)). Beside the weights
# themselves a running average of them is kept, which is what is validated and used.
#
# Of several GPUs each has a process and its share of every batch; Dice's sums and the gradients are added up.
#
# Three curves follow, an epoch a point. **Question.** Is the loss still falling at the end? Is the validation Dice still
# rising?

# %%
from brats_helpers.lessons.plots import learning_curves
from brats_helpers.lessons.viewers import Dashboard

history = train_here(config, work, processes, on_epoch=Dashboard(), device=device)

assert history[-1]["epoch"] == config.epochs
learning_curves(history)

# %% [markdown]
# If the loss falls and the validation Dice does not rise, the network is learning its patients by heart: **overfitting**.
# The loss is not Dice: it contains the cross-entropy and three resolutions, and it is measured on augmented patches.
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
    images, target = prepare_batch(item, config.seed, device)
    augmented = time.perf_counter()
    with device.autocast():
        loss = deep_supervision_loss(state.model(images), target)
    loss.item()  # waits for a GPU to be done
    forward = time.perf_counter()
    loss.backward()
    ticks.append((begin, read, augmented, forward, time.perf_counter()))

spent = 1000 * np.median(np.diff(ticks), axis=0)
bars(dict(zip(("read", "augment", "forward", "backward"), spent)), "ms of a step", "ms")

# %% [markdown]
# On a CPU the network itself takes most of it. A faster device shortens the last three bars and not the first, and may end up
# waiting for its patches. So the loader does as little as it can: it decompresses blocks and sends the files' integers, half
# of the bytes that z-scores in fp32 would have, and the device does the rest.
#
# ### A loss that is no number
#
# One damaged patient is enough: here the z-score divides by a deviation of 0.

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
# Without the check in `train_step`, this one step would have made every weight NaN. With `on_nan="stop"` training ends with
# the names; with `"halve"` it goes on without the batch, and more carefully.
#
# ## 5. From patches to a brain
#
# The network sees a window; a brain is larger. Windows overlap by half, and each voxel's probability is an average in
# which the middle of a window counts more than its edge, where context is missing. **Question.** What do you see in the
# sum of the weights if all windows counted the same?

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
# The result is divided by this sum, so its height does not matter. A step does: with equal weights the probability can jump
# where a window ends, which leaves a seam. With Gaussian weights each window fades in and out.
#
# ### Exercise 2: a second opinion
#
# A network is not symmetric: it answers differently to a mirrored volume. Write a function that asks it twice, for `x`
# and for `x` mirrored along its last axis, and returns the mean of the two answers, voxel by voxel.
#
# <details><summary>Hint</summary>
#
# `x.flip(-1)` is the mirror image. The answer to it is mirrored, too.
# </details>


# %% tags=["exercise"]
def second_opinion(network, x: torch.Tensor) -> torch.Tensor:
    """The mean of the answers to x and to its mirror image."""
    return (network(x) + network(x.flip(-1)).flip(-1)) / 2  # solution


checks.check_mirror_average(second_opinion)

# %% [markdown]
# Mirrored or not along each of three axes, that makes eight views; with `tta` all eight are averaged, otherwise four. Three
# thresholds make labels of the probabilities. Then a rule for small pieces: a piece of enhancing tumor of less than 16 mm³
# in which the network was not sure (below 0.9 on average) becomes necrosis, because one false voxel costs a patient
# without ET the whole score. **Text and code differ** here, too. NVIDIA's text (Futrega et al. 2021) averages probabilities,
# uses thresholds of 0.45, 0.4 and 0.4, pieces of 16 voxels, windows that overlap by half and Gaussian weights; its
# [code](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/nnunet/nn_unet.py) averages
# logits, its [notebook](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/notebooks/BraTS21.ipynb)
# uses 0.5 and 8 voxels, and a command with the defaults, an overlap of 0.25 and equal weights. We follow the text, with mm³ in
# the place of voxels:

# %%
from brats_helpers.evaluation import prediction as inference
from brats_helpers.evaluation.postprocessing import postprocess

show_source(postprocess)

# %% [markdown]
# ### Exercise 3: a chain of thresholds
#
# Write its first half: below 0.45 for WT is background (0); else below 0.4 for TC is edema (2); else below 0.4 for ET is
# necrosis (1); all the rest is enhancing tumor (3).
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
# Only now does the network meet the test patients, once, with the checkpoint that the *validation* patients have chosen. Every
# score is computed on the scan's own grid. A cohort without a test set of its own is judged on its validation patients;
# then the last checkpoint is taken, because the best one was chosen on just them.
#
# In the table, *IoU* is what two masks share, divided by what is in either. *Sensitivity* is the share of the tumor that was
# found, *specificity* the share of the rest that was left alone, both counted by voxels, not by patients; specificity is near
# 1 for almost any mask, because nearly all voxels are background.

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
# The interval is a **bootstrap**: the patients are drawn again and again with replacement, and the middle 95 % of the means
# are kept. It says how much the mean could differ for *other patients of this kind*, not for other hospitals, nor for another
# seed. And two networks whose intervals overlap may still differ: on the same patients it is the *differences* that are to be
# resampled. Network against threshold, and below it every patient as a dot:

# %%
flair, truth = scored_flair(judged_names)
alone = threshold_baseline(flair, truth, [best_threshold])[:, 0]
gain = [row["WT"]["dice"] - score for row, score in zip(rows, alone)]
if len(gain) > 1:
    print("network minus threshold, WT: {:.3f} ({:.3f} to {:.3f})".format(*bootstrap_ci(gain)))
dice_boxplot(rows, synthetic=synthetic)

# %% [markdown]
# **Dice** counts voxels, **HD95** measures how far apart the surfaces are (the 95th percentile, in mm). A small false
# island far away hardly changes the first and ruins the second. And where a patient has no ET, Dice is 1 if the network
# agrees and 0 if it marks a single voxel. HD95 has no value there; by BraTS's convention it is then 0, or else 373 mm, the
# diagonal of its volume, √(240² + 240² + 155²): one such patient among ten adds 37 mm to the mean. Look for such patients
# before you read one.
#
# ### Exercise 4: HD95
#
# `there` holds, for each voxel of the prediction's surface, the distance to the reference's surface, `back` the other
# way. HD95 is the 95th percentile of each, and the larger of the two. Write it.
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
# ### Small is hard
#
# Each region of each patient, its size against its Dice. A border of one voxel is nearly all of a small tumor.

# %%
from brats_helpers.basics.constants import REGION_COLORS

figure, ax = plt.subplots(figsize=(4.6, 3))
for name, color in REGION_COLORS.items():
    ml = [row[name]["reference_ml"] + 0.01 for row in rows]
    scores = [row[name]["dice"] for row in rows]
    ax.scatter(ml, scores, s=18, alpha=0.7, color=color, label=name)
ax.set(xscale="log", xlabel="volume in the reference (ml; 0.01: none)", ylabel="Dice")
ax.legend()
finish(figure, synthetic)

# %% [markdown]
# A patient may have more than one tumor, and then Dice hardly sees the small ones. Since 2023 BraTS ranks **lesion by
# lesion** ([its code](https://github.com/rachitsaluja/BraTS-2023-Metrics)): each counts as much as the others, one that is
# missed counts 0, and so does one that is not there. (A *lesion* here is a connected piece of the mask; close pieces are
# one, tiny ones left out.)

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
# ### The worst patient, and the median
#
# A mean is not a patient. Look at the worst first.

# %%
from brats_helpers.lessons.plots import three_planes, upright
from brats_helpers.data.preprocessing import lps_spacing

order = sorted(rows, key=lambda row: np.mean([row[name]["dice"] for name in ("WT", "TC", "ET")]))


def show(row: dict, title: str):
    """Reference and prediction of one patient in three planes."""
    patient, mask = read_prediction(cases[row["name"]], work)
    volumes = (patient.images[0], patient.reference, mask)
    image, truth, guess = (upright(volume, patient.affine) for volume in volumes)
    dice = ", ".join(f"{name} {row[name]['dice']:.3f}" for name in ("WT", "TC", "ET"))
    views = {"reference": truth, "prediction": guess}
    spacing = lps_spacing(patient.spacing, patient.affine)
    return three_planes(image, views, spacing, f"{title}: {row['name']}, Dice {dice}", synthetic)


show(order[0], "worst")

# %% [markdown]
# About half are better:

# %% tags=["readme"]
show(order[len(order) // 2], "median")

# %% [markdown]
# ### Does it know when it is unsure?
#
# A probability of 0.8 should be right four times in five. If it is, the network is **calibrated**. The median patient's
# voxels, sorted by what the network said, against how often it was so:

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
# Below the diagonal the network gives tumor too high a probability, above it too low a one. Networks trained with Dice are known
# to be badly calibrated (Mehrtash et al. 2020), and one patient's curve is rough: do not read such a value as the
# probability of a diagnosis. The right panel says how much the threshold matters.

# %% [markdown]
# ## 7. From phantoms to patients
#
# Other patients come from other scanners: **domain shift**. Here are up to eight of the patients judged above, their
# z-scores by compartment, beside phantoms of another kind, and above each panel how far the two are apart (Wasserstein's
# distance, in deviations). Given real patients, it shows what phantoms lack.
#
# A checkpoint keeps what its patients looked like, and `predict` warns of others: printed is how many figures of each phantom's
# brain lie far outside; its tumor may be unlike without that. **Question.** You have four patients. Start from phantoms, or from nothing?
#
# <details><summary>Answer</summary>
#
# From phantoms, kept in half the patches, as here with fewer than 40 real patients: [measured](../benchmarks/real_cohort.md).
# </details>

# %%
from brats_helpers.lessons import plots
from brats_helpers.data.storage import open_volume
from brats_helpers.phantoms.patient import some_phantoms
from brats_helpers.evaluation import domain_shift as shift

others = some_phantoms("wide" if synthetic else "phantom", 4, config.spacing_mm)
seen = shift.ranges([open_volume(prepared[n])[1].fingerprint for n in learnt])
print("unlike:", [len(shift.outside_ranges(p.meta.fingerprint, seen)) for p in others])
judged = [load(prepared[name]) for name in judged_names[:8]]
plots.two_cohorts(judged, others, ("judged above", "other phantoms"), synthetic)

# %% [markdown]
# ## 8. Play
#
# Every patient, the worst first; the threshold, and what it costs; each transform of the augmentation with a slider of
# its own. They want a running kernel. The last viewer does not: choose *prediction* above it and compare.

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
# The masks are NIfTI files with BraTS's labels and with the geometry of the scan, ready for any viewer. Beside the checkpoint
# goes a **model card**: what it was trained on, how it was judged, and what it must not be used for.

# %%
from IPython.display import Markdown

from brats_helpers.evaluation.scoring import verify_masks, write_model_card

verify_masks(chosen, work)
print(f"{len(chosen)} masks in {work / 'predictions'}: labels 0, 1, 2, 4, the scans' geometry")
card = work / "checkpoints" / "MODEL_CARD.md"
Markdown(write_model_card(card, metrics, config, len(learnt), synthetic, device))

# %% [markdown]
# To segment a patient without a reference (`last.pt` for your own cohort; without `--tta`, four mirrored views, half of the work):
#
# `python -m brats_helpers predict CASE_FOLDER --checkpoint runs/quick/checkpoints/best.pt --out masks --tta`
#
# For research and teaching; not for diagnosis.
#
# ## Recap
#
# - Augmentation moves image and label together; intensities change in the image alone.
# - Training is resumable because its randomness is a function of the seed and the patch's number.
# - A test set is used once. What has chosen a checkpoint does not judge it.
# - Means hide patients: look at the worst, at the interval, at the empty regions.
#
# | term | meaning |
# |---|---|
# | augmentation | random changes that leave a patient a patient |
# | warm-up, cosine | how the learning rate rises and falls |
# | checkpoint | the weights in a file, with all that is needed to go on |
# | domain shift | other patients than those that were learnt from |
# | HD95 | 95th percentile of the distances between two surfaces, in mm |
# | bootstrap | drawing the same patients again and again, to see how much a mean varies |
# | calibration | whether a probability means what it says |
#
# **What published code gets wrong.** NVIDIA's [metric](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/nnunet/metrics.py)
# computes the Dice of WT, TC and ET and stores region i at place i - 1, so that D1, D2, D3 of its
# [log](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/notebooks/BraTS21.ipynb)
# are TC, ET and WT. Read so, its fold 0 after 30 epochs has WT 92.88 %, TC 90.69 %, ET 85.50 %, on real patients, and not to
# be compared with this run.
#
# ## When it goes wrong
#
# - *Out of memory*: `checkpointing=True`, then `batch=1`; notebook 04 measures what each saves.
# - *"the loss became nan"*: look at the patients that are named; then a lower `learning_rate`, or `on_nan="halve"` (section 4).
# - *The loss falls and Dice does not rise*: overfitting; more patients, more augmentation.
#
# ## Read on
#
# Futrega et al. 2021, [arXiv:2110.03352](https://arxiv.org/abs/2110.03352). Isensee et al. 2021,
# https://doi.org/10.1038/s41592-020-01008-z. Maier-Hein et al. 2024, *Metrics reloaded*,
# https://doi.org/10.1038/s41592-023-02151-z. Izmailov et al. 2018, *Averaging weights leads to wider optima*,
# [arXiv:1803.05407](https://arxiv.org/abs/1803.05407). Mehrtash et al. 2020, *Confidence calibration and predictive
# uncertainty estimation for deep medical image segmentation*, https://doi.org/10.1109/TMI.2020.3006437. Liu et al. 2020, *On the
# variance of the adaptive learning rate and beyond*, [arXiv:1908.03265](https://arxiv.org/abs/1908.03265). Loshchilov and
# Hutter 2017, *SGDR*, [arXiv:1608.03983](https://arxiv.org/abs/1608.03983). Sled et al. 1998, *A nonparametric method for
# automatic correction of intensity nonuniformity in MRI data*, https://doi.org/10.1109/42.668698.
