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
# # 03 Preprocessing
#
# From four scans to one small file that a network can be fed from, and the proof that it holds what the scans hold.
#
# **03 of 05** | back: [02 Extraction](02_extraction.ipynb) | next: [04 Architecture](04_architecture.ipynb)
#
# | | |
# |---|---|
# | reads | `config.json`, `patients.json`, `splits.json` and the patients' files |
# | writes | `preprocessed/<patient>.b2nd`, `preprocessed/dataset.json`, `nnunet/Dataset021_BraTS/` |
# | takes | 1 minute on two CPU cores (quick preset, measured: [README](../README.md#results)); not timed on a GPU yet; to read and to do the exercises 50 minutes, an estimate |

# %% [markdown]
# ## By the end you can
#
# - **turn** four scans into one array, in an orientation that you know;
# - **crop** to the brain, and say what that saves;
# - **normalize** intensities that have no unit, without destroying the brain's mask;
# - **verify** that what was stored is what was in the scans;
# - **export** a cohort to nnU-Net and MONAI.
#
# You need notebooks 01 and 02, and NumPy's slices.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
work: str = ""  # folder that notebooks 01 and 02 wrote to; empty: the usual place on this machine
jobs: int = -1  # processes; -1: one a core

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

from brats_helpers.data.cases import file_state, read_case
from brats_helpers.data.cohort import read_cohort
from brats_helpers.basics.config import Config
from brats_helpers.basics.files import write_json
from brats_helpers.lessons.plots import series_map

config, cohort = Config.load(work / "config.json"), read_cohort(work)
cases, synthetic = cohort.cases, cohort.synthetic
print({key: f"{len(found)} patients" for key, found in cases.items()})
series_map(3)

# %% [markdown]
# <details><summary>For teachers</summary>
#
# The place to slow down is the foreground channel: let the class look at the two masks for a minute before anyone says
# what is wrong. Misconceptions to expect: that the z-score is taken over the whole volume, that normalized data must be
# stored, that "lossless" means "large". Exercise 4 is the one that prepares notebook 05.
# </details>

# %% [markdown]
# ## 1. Stack and turn
#
# NIfTI counts (x, y, z) and its first index runs fastest in memory; NumPy and torch are quickest when the *last* one
# does. So the array is turned once, to (z, y, x), which deep learning calls (D, H, W). And it is turned to **LPS**
# whatever its affine says, so that a front is always a front.
#
# **Question.** After that, which of x, y and z is the array's first axis, and toward which side of the patient does each
# index grow?
#
# <details><summary>Answer</summary>
#
# z is first, x is last. z grows upwards, y to the back, x to the patient's left.
# </details>

# %%
from brats_helpers.data.preprocessing import to_lps

patient = read_case(next(case for case in cases["training"] if case.reference))
images = np.stack([to_lps(image, patient.affine) for image in patient.images])
labels = to_lps(patient.reference, patient.affine)
print("before:", patient.images.shape, patient.orientation)

# %% [markdown]
# ### Exercise 1: the new shape
#
# The four scans, turned and stacked, are `images`. Without looking: what is its shape?
#
# <details><summary>Hint</summary>
#
# The scan's shape is printed above, after the 4. The turn reverses the order of the three.
# </details>

# %% tags=["exercise"]
from brats_helpers.lessons import checks

shape = (4, *patient.images.shape[:0:-1])  # solution
checks.check_shape(shape, patient.images)

# %% [markdown]
# Is front still front? Three slices through the middle of the turned array, one for each of its axes:

# %%
from brats_helpers.lessons.plots import pictures

d, h, w = (n // 2 for n in images.shape[1:])
cuts = {"along z (head)": images[0, d], "along y (front)": images[0, ::-1, h]}
pictures(cuts | {"along x (side)": images[0, ::-1, :, w]}, synthetic)

# %% [markdown]
# **What if the affine is ignored?** The same patient, saved as other software may save him: x grows to the *right*, and
# the affine says so. Read with `to_lps` he is as before. Read as a bare array he is mirrored, and nothing complains:

# %%
mirrored, to_the_right = patient.images[:, ::-1], patient.affine.copy()
to_the_right[0] *= -1  # x runs the other way, and the affine says so
bare = mirrored[0].T  # as if there were no affine
turned = to_lps(mirrored[0], to_the_right)
assert np.array_equal(turned, images[0])
z = int((labels > 0).sum((1, 2)).argmax())
views = {"scan": images[0, z], "affine read": turned[z], "affine ignored": bare[z]}
pictures(views, synthetic)

# %%
from brats_helpers.evaluation.metrics import dice

wrong = dice(labels[:, :, ::-1] > 0, labels > 0)
print(f"Dice of a perfect segmentation that was mirrored on the way: {wrong:.2f}")

# %% [markdown]
# ## 2. Crop to the brain
#
# Most of a BraTS volume is 0: everything outside the brain, air, scalp and skull, was removed (Baid et al. 2021). The smallest box around the brain is found from its projections: is
# there anything in this plane? **Question.** What share of the voxels is left?

# %%
from brats_helpers.data.preprocessing import bounding_box, brain_mask
from brats_helpers.lessons.viewers import show_source

show_source(brain_mask, bounding_box)

# %%
brain = brain_mask(images)
box = bounding_box(brain)
inside = tuple(slice(*edge) for edge in box)
cropped, cropped_labels = images[:, *inside], labels[inside]
share = cropped[0].size / images[0].size
print(f"box {box}: {share:.0%} of the voxels, {brain.mean():.0%} are brain")
assert cropped.any(0).sum() == images.any(0).sum() and cropped_labels.sum() == labels.sum()

# %% [markdown]
# The same slice, before and after:

# %%
middle = images.shape[1] // 2
views = {"whole scan": images[0, middle], "cropped": cropped[0, middle - box[0][0]]}
pictures(views, synthetic)

# %% [markdown]
# ### Exercise 2: first and last
#
# The core of `bounding_box`, in one dimension: given a line of True and False, return the first index that is True, and
# one past the last, so that `line[first:stop]` holds all of them. There may be gaps.
#
# <details><summary>Hint</summary>
#
# `np.flatnonzero(line)` gives the indices of all True.
# </details>


# %% tags=["exercise"]
def first_and_stop(line: np.ndarray) -> tuple[int, int]:
    """Where the True begin, and one past where they end."""
    where = np.flatnonzero(line)  # solution
    return where[0], where[-1] + 1  # solution


checks.check_first_and_last(first_and_stop)

# %% [markdown]
# ## 3. Normalize
#
# Intensities have no unit (notebook 02), so each modality is measured in its own standard deviations from its own mean:
# the **z-score**, over the brain alone, because the background would drag the mean down. By hand: of five voxels, two of them
# background, 0, 0, 100, 200 and 300, the mean of the brain is 200 and its deviation 81.6; so the brain becomes -1.22, 0 and 1.22.
#
# ### Exercise 3: the z-score
#
# Write it: subtract the brain's mean, divide by the brain's standard deviation, and leave everything else at 0.
#
# <details><summary>Hint</summary>
#
# `image[brain]` are the brain's voxels. `np.where(brain, something, 0)` keeps the background at 0.
# </details>


# %% tags=["exercise"]
def zscore(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Deviations from the brain's mean, 0 outside of it."""
    inside = image[brain]  # solution
    return np.where(brain, (image - inside.mean()) / inside.std(), 0)  # solution


checks.check_zscore(zscore)

# %% [markdown]
# The brain voxel of 200 now has the number 0, the same as the background. So the network is given a fifth
# channel that says where the brain is. That is simple, if it is done in the right order. Here is the module's version:

# %%
from brats_helpers.data.preprocessing import normalize, statistics

show_source(normalize)

# %%
mean, std = statistics(cropped, brain_mask(cropped))
scored = normalize(cropped, mean, std)
within = scored[4] == 1
assert np.allclose(scored[:4, within].mean(1), 0, atol=1e-4)
assert np.allclose(scored[:4, within].std(1), 1, atol=1e-3)
print(f"five channels {scored.shape}: mean 0 and deviation 1 in the brain, 0 outside")

# %% [markdown]
# Compare these with the histograms of notebook 02: all four now share one axis.

# %%
from brats_helpers.lessons.plots import histograms

brain_only = np.where(within, scored[:4], 0).transpose(0, 3, 2, 1)
histograms(brain_only, cropped_labels.T, "standard deviations", synthetic=synthetic)

# %% [markdown]
# The z-score moves and stretches each histogram as a whole. It cannot know that two scanners draw the same tissue with
# different *shapes* of curve; methods that match landmarks of the histogram try that (Nyúl and Udupa 1999). The z-score is what
# nnU-Net uses for MRI (Isensee et al. 2021), and it has the virtue that it can be undone.

# %% [markdown]
# ### What published code gets wrong
#
# NVIDIA's [preprocessing](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/data_preprocessing/preprocessor.py)
# makes the foreground channel *after* the z-score, as "every channel above 0". **Question.** What does that mask show?

# %%
theirs = (scored[:4] > 0).all(axis=0)
z = scored.shape[1] // 2
masks = {"brain, found before": scored[4, z], '"above 0", found after': theirs[z]}
print(f'"above 0 in every channel" holds {theirs.sum() / within.sum():.1%} of the brain')
pictures({"FLAIR, z-scored": scored[0, z]} | masks, synthetic)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Voxels that are brighter than average in every modality, which is no anatomical region at all. A large part of the
# brain is below its mean. The network then learns with a fifth channel that says something else than its name. (The same
# function normalizes once more afterwards.)
# </details>
#
# Before that, its [notebook](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/notebooks/BraTS21.ipynb)
# takes `abs(int16(x))` of the voxels, so that a negative or an overflowing intensity becomes a plausible one. **Question.** What does it make of 40,000?

# %%
measured = np.array([-5.0, 300.0, 40000.0])
print(measured, "becomes", np.abs(measured.astype(np.int64).astype(np.int16)))

# %% [markdown]
# This module keeps integers that fit as integers, anything else as floating point, and refuses NaN by name.
#
# ## 4. Store
#
# Exercise 4 of notebook 01 counted: as float32 the cohort does not fit where only 20 GB are kept. But the published files
# hold integers, so we keep *those*, compressed without loss: five arrays in one file, the four modalities and the
# reference. The z-score and the network's fifth channel, the brain's mask, are not stored; the device that trains
# computes them from each patch, with the mean and deviation that travel along as metadata.
#
# One step more, where `spacing_mm` is larger than the scan's voxels, as in the quick preset: voxels are merged into larger
# ones. Doubling the edge leaves an eighth of the voxels, which is what lets it run on a laptop; what is smaller than the
# new voxel is lost. ([Benchmarks](../benchmarks/README.md) has the sizes at 1 mm, beside other tools'.)

# %%
from brats_helpers.lessons.plots import bars
from brats_helpers.data.preprocessing import prepare
from brats_helpers.data.storage import save

prepared = prepare(patient, config.spacing_mm)
path = work / "preprocessed" / "example.b2nd"
save(prepared, path)
voxels, stored = prepared.volume.size, path.stat().st_size
case = cohort.by_name[patient.name]
raw = sum(file_state(case, scan)[0] for scan in case.images)
path.unlink()
sizes = {"raw .nii.gz": raw, "float32": voxels * 4, "int16": voxels * 2, "int16, LZ4": stored}
notes = [f"{n / 1e6:.1f} MB; times 1,251: {1.251 * n / 1e6:.1f} GB" for n in sizes.values()]
gray, red, orange, green = "#999999", "#D55E00", "#E69F00", "#009E73"
megabytes = {name: n / 1e6 for name, n in sizes.items()}
bars(megabytes, "MB for one patient of this cohort", "", (gray, red, orange, green), notes=notes)

# %% [markdown]
# The array is stored in blocks, so that a training patch is read without decompressing the rest:

# %%
import time

from brats_helpers.data.storage import open_volume, read_patch
from brats_helpers.data.pipeline import preprocess_cohort

everyone = cases["training"] + cases["test"]
metas = preprocess_cohort(everyone, work / "preprocessed", config.spacing_mm, jobs)
files = {meta.name: work / "preprocessed" / f"{meta.name}.b2nd" for meta in metas}
total = sum(file.stat().st_size for file in files.values())
print(f"{len(files)} patients, {total / 1e6:.1f} MB, {total / 1e6 / len(files):.2f} MB each")

# %% [markdown]
# A patch out of the middle of one of these files, decompressed as it is read:

# %%
volume, meta = open_volume(files[patient.name])
patch = np.empty((5, 32, 32, 32), volume.dtype)
begin = time.perf_counter()
read_patch(volume, meta, (10, 10, 10), patch)
took = 1000 * (time.perf_counter() - begin)
print(f"stored {volume.shape} as {volume.dtype}; a patch {patch.shape} in {took:.1f} ms")

# %% [markdown]
# **Question.** A block is eight rows of one modality, through all slices. What would be lost with larger ones, and what with
# small cubes?
#
# <details><summary>Answer</summary>
#
# A block is decompressed as a whole, so with larger ones more is read than the patch needs, and less of it is still in the
# processor's cache when the patch's part is copied. Of cubes fewer are touched, but a patch's rows are then cut into short
# pieces, and copying the pieces can take longer than decompressing them. And the less there is in a block, the less of it
# repeats itself. That is to be measured, not argued: `benchmarks/README.md` says what came out.
# </details>

# %% [markdown]
# ### There and back
#
# A prediction has to return to the scan's own grid. `restore` undoes the crop, the turn and, where a scan finer than
# `spacing_mm` was coarsened, the change of voxel size. On the reference itself the way there and back must be
# the identity, or close to it after coarsening.
#
# ### Exercise 4: paste it back
#
# The first of these: put a cropped array back where its box says, in an array of zeros of the full shape.
#
# <details><summary>Hint</summary>
#
# `tuple(slice(*edge) for edge in box)` is an index that can be assigned to.
# </details>


# %% tags=["exercise"]
def paste(part: np.ndarray, box: tuple, shape: tuple) -> np.ndarray:
    """`part` at the place of `box`, zeros around it."""
    whole = np.zeros(shape, part.dtype)  # solution
    whole[tuple(slice(*edge) for edge in box)] = part  # solution
    return whole  # solution


checks.check_paste(paste)

# %% [markdown]
# The module's version does all three steps back:

# %%
from brats_helpers.data.preprocessing import restore

back = restore(prepared.volume[4:], prepared.meta)[0]
same = dice(back > 0, patient.reference > 0)
print(f"shape {back.shape}; Dice with the reference, whole tumor: {same:.4f}")
assert back.shape == patient.reference.shape
assert max(prepared.meta.downsampling) > 1 or (back == patient.reference).all()

# %% [markdown]
# Where they differ, if they do, is at the border, by less than a coarse voxel:

# %%
at = int((patient.reference > 0).sum((0, 1)).argmax())
pair = {"reference": patient.reference[:, :, at].T, "there and back": back[:, :, at].T}
differs = (pair["reference"] != pair["there and back"]).astype(float)
pictures(pair | {"differs": differs}, synthetic)

# %% [markdown]
# ## 5. Quality assurance
#
# Trust is a test. A sample of patients is read again from the raw files and compared with what was stored: voxel by
# voxel where the voxels are the scan's own, and by the place of brain and tumor where they were made coarser.

# %%
from tqdm import tqdm

from brats_helpers.data.pipeline import verify_prepared

picked = np.random.default_rng(config.seed).permutation(len(everyone))[:6]
sample = [everyone[i] for i in picked]
wrong = {case.name: verify_prepared(case, files[case.name]) for case in tqdm(sample, "verify")}
assert not any(wrong.values()), wrong
coarser = max(prepared.meta.downsampling) > 1
verdict = "brain and labels lie where they should" if coarser else "not one voxel differs"
print(f"{len(wrong)} patients compared with their scans: {verdict}")

# %% [markdown]
# And a look for patients who are unlike the others: a brain that is too small, a modality whose contrast is odd. A
# robust z-score is the distance from the median in units of the median absolute deviation (Leys et al. 2013). Above 5, a limit
# that we chose, it is worth a look. It is not an error.

# %%
features = {"brain's box": [np.prod([b - a for a, b in m.bounding_box]) for m in metas]}
for i, name in enumerate(("FLAIR", "T1", "T1CE", "T2")):
    features[f"contrast of {name}"] = [m.std[i] / m.mean[i] for m in metas]
robust = {}
for name, values in features.items():
    center = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - center)) or 1.0
    robust[name] = (np.array(values) - center) / spread
odd = [(metas[i].name, name) for name, z in robust.items() for i in np.flatnonzero(abs(z) > 5)]
print(f"{len(odd)} outlier(s)", *odd, sep="\n  ")

# %% [markdown]
# All of them at a glance, a dot a patient:

# %%
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(7, 2.2))
for place, z in enumerate(robust.values()):
    ax.scatter(place + np.random.default_rng(0).uniform(-0.2, 0.2, len(z)), z, s=12, alpha=0.6)
ax.set(xticks=range(5), xticklabels=list(robust), ylabel="robust z-score")
plt.show()

# %% [markdown]
# ## 6. For other tools
#
# The same cohort as nnU-Net v2 and MONAI read it. The images are listed where they are and not copied; the references
# are written once more with 3 for ET, because nnU-Net wants
# [consecutive labels](https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md). Regions that overlap are given as such.

# %%
import json

from monai.data import load_decathlon_datalist

from brats_helpers.data.formats import exportable, write_nnunet

chosen = [case for case in cases["training"] if exportable(case)]
if chosen:  # 4D files are in the Decathlon's format already, and a tar is not read by others
    root = write_nnunet(chosen, cohort.splits, work / "nnunet", synthetic)
    description = json.loads((root / "dataset.json").read_text())
    for key in ("channel_names", "labels", "numTraining"):
        print(f"{key:<14}", description.get(key))
    listed = load_decathlon_datalist(str(root / "dataset_msd.json"), True, "training")
    print(f"MONAI reads {len(listed)} training patients of {len(listed[0]['image'])} images")

# %% [markdown]
# ## 7. Save and verify
#
# One more file says what is in the folder, and from which scans it was made.

# %%
index = {key: [case.name for case in found] for key, found in cases.items()}
index |= {"spacing_mm": config.spacing_mm, "content_hashes": {m.name: m.content_hash for m in metas}}
write_json(work / "preprocessed" / "dataset.json", index)
assert all(file.is_file() for file in files.values())
print(f"wrote {len(files)} files of {total / 1e6:.1f} MB in all, and dataset.json")
print("next: 04_architecture needs one patient of them, 05_training_evaluation all")

# %% [markdown]
# ## Recap
#
# - One array a patient, (channel, z, y, x) in LPS, cropped to the brain.
# - The brain's mask comes first, then the z-score.
# - The files' integers are kept, compressed without loss; what a device can compute is not stored.
# - Stored is not the same as right: a sample was compared with the raw files.
#
# | term | meaning |
# |---|---|
# | channel | one of the arrays that a network reads together: four contrasts and the brain's mask |
# | z-score | distance from the mean in standard deviations |
# | foreground | here: the brain, as opposed to everything that was set to 0 |
# | lossless | what is read back is what was written, to the last bit |
# | content hash | a few characters that change when a file does |
#
# ## When it goes wrong
#
# - *"has one value in all of the brain"*: a modality is constant, so the file is damaged.
# - *A disk that fills up*: notebook 01's budget says what is needed.
# - *A score near 0 for a mask that looks right*: some step has ignored the affine (section 1, with its picture).
# - *Stopped in the middle*: run it again, finished patients are kept.
# - *"its checksum is not that of its content"*: the disk has lost a bit; run this notebook again.
#
# ## Read on
#
# Isensee et al. 2021, *nnU-Net*, https://doi.org/10.1038/s41592-020-01008-z. Futrega et al. 2021, *Optimized U-Net for
# brain tumor segmentation*, [arXiv:2110.03352](https://arxiv.org/abs/2110.03352). Blosc2, https://www.blosc.org.
# Nyúl and Udupa 1999, *On standardizing the MR image intensity scale*, Magnetic Resonance in Medicine 42. Baid et al. 2021,
# [arXiv:2107.02314](https://arxiv.org/abs/2107.02314). Leys et al. 2013, *Detecting outliers: do not use standard deviation
# around the mean, use absolute deviation around the median*, https://doi.org/10.1016/j.jesp.2013.03.013.
#
# **Next:** [04 Architecture](04_architecture.ipynb) builds the network.
