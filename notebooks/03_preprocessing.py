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
# Four scans become one file for training, and we check that nothing was lost.
#
# **03 of 05** | back: [02 Extraction](02_extraction.ipynb) | next: [04 Architecture](04_architecture.ipynb)
#
# | | |
# |---|---|
# | reads | `config.json`, `patients.json`, `splits.json` and the patients' files |
# | writes | `preprocessed/<patient>.b2nd`, `preprocessed/dataset.json`, `nnunet/Dataset021_BraTS/` |
# | takes | 1 minute on two CPU cores (quick preset, [measured](../docs/costs.md)); about 50 minutes to read and to do the exercises |

# %% [markdown]
# ## By the end you can
#
# - **turn** four scans into one array with a known orientation;
# - **crop** to the brain, and say what that saves;
# - **repair** a patient whose files are wrong;
# - **normalize** intensities that have no unit, without destroying the brain's mask;
# - **verify** that the stored file holds what the scans hold;
# - **export** a cohort to nnU-Net and MONAI.
#
# You need notebooks 01 and 02, and slices in NumPy.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
work: str = ""  # folder that notebooks 01 and 02 wrote to; empty: the usual place on this machine
jobs: int = -1  # processes; -1: one per core

# %%
# On Colab only: clone the repository. (`python -m brats_helpers address` writes its address here.) `start`, below, installs
# what Colab lacks, and changes no package of Colab.
import os
from subprocess import run

on_kaggle = "KAGGLE_KERNEL_RUN_TYPE" in os.environ  # its image is built on Colab's
if "COLAB_RELEASE_TAG" in os.environ and not on_kaggle and not os.path.isdir("/content/repository"):
    address = ""
    run(["git", "clone", "--quiet", "--depth=1", address, "/content/repository"], check=True)

# %%
# Find the package in a parent folder, on Colab or among Kaggle's inputs. Then print the machine.
import sys
from pathlib import Path

folders = [*(Path.cwd() / "here").parents, *Path("/content").glob("*"), *Path("/kaggle/input").glob("*")]
sys.path[:0] = [str(p) for p in folders if (p / "brats_helpers").is_dir()][:1]
from brats_helpers.lessons import start

work, device = start(work)

# %%
import numpy as np

from brats_helpers.basics import Config, write_json
from brats_helpers.data import file_state, read_case, read_cohort
from brats_helpers.lessons import series_map

config, cohort = Config.load(work / "config.json"), read_cohort(work)
cases, synthetic = cohort.cases, cohort.synthetic
print({key: f"{len(found)} patients" for key, found in cases.items()})
series_map(3)

# %% [markdown]
# <details><summary>For teachers</summary>
#
# Slow down at the foreground channel. Let the class look at the two masks for a minute before anyone says what is wrong.
# Common misconceptions: the z-score covers the whole volume; normalized data must be stored; "lossless" means "large".
# Exercise 4 shows what practitioners do on a normal day.
# </details>

# %% [markdown]
# ## 1. Stack and reorient
#
# NIfTI counts (x, y, z), and its first index runs fastest in memory. NumPy and torch are quickest when the *last* index
# does. So we reverse the axes once, to (z, y, x), which deep learning calls (D, H, W). We also *reorient* every scan to
# **LPS**, whatever orientation its affine gives, so that each index always grows in the same direction.
#
# **Question.** After that, which of x, y and z is the first axis of the array? Toward which side of the patient does each
# index grow?
#
# <details><summary>Answer</summary>
#
# z is first and x is last. z grows upward, y to the back, x to the patient's left.
# </details>

# %%
from brats_helpers.data import to_lps

patient = read_case(next(case for case in cases["training"] if case.reference))
images = np.stack([to_lps(image, patient.affine) for image in patient.images])
labels = to_lps(patient.reference, patient.affine)
print("before:", patient.images.shape, patient.orientation)

# %% [markdown]
# ### Exercise 1: the new shape
#
# The four scans, reoriented and stacked, are `images`. Without looking: what is its shape?
#
# <details><summary>Hint</summary>
#
# The scan's shape is printed above, after the 4. The order of the three is reversed.
# </details>

# %% tags=["exercise"]
from brats_helpers.lessons import checks

x, y, z = patient.images.shape[1:]  # solution
shape = (4, z, y, x)  # solution
checks.check_shape(shape, patient.images)

# %% [markdown]
# Is the front still at the front? Here are three slices of the reoriented array through the tumor, one per axis. Look for
# the cerebellum, the rounded part at the bottom of the sagittal slice: it belongs at the back (P).

# %%
from brats_helpers.data import slice_with_most_tumor
from brats_helpers.lessons import pictures

d, h, w = (slice_with_most_tumor(labels, axis) for axis in range(3))
cuts = {"axial": images[0, d], "coronal": images[0, ::-1, h], "sagittal": images[0, ::-1, :, w]}
pictures(cuts, synthetic)

# %% [markdown]
# **What if we ignore the affine?** Here is the same patient, saved the way other software might: its first index grows to
# the patient's *right*, and the affine says so. `to_lps` returns the same array as before. Read as a bare array, the
# patient is mirrored, and nothing complains. The third picture has the letters that its reader believes, and they are
# wrong:

# %%
mirrored, last = patient.images[:, ::-1], patient.images.shape[1] - 1
to_the_right = patient.affine @ [[-1, 0, 0, last], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]  # x runs the other way
bare = mirrored[0].T  # as if there were no affine
turned = to_lps(mirrored[0], to_the_right)
assert np.array_equal(turned, images[0])
views = {"scan": images[0, d], "affine read": turned[d], "affine ignored": bare[d]}
pictures(views, synthetic, plane="axial")

# %%
from brats_helpers.evaluation import dice

wrong = dice(labels[:, :, ::-1] > 0, labels > 0)
print(f"Dice of a perfect segmentation that was mirrored on the way: {wrong:.2f}")

# %% [markdown]
# ## 2. Crop to the brain
#
# Most of a BraTS volume is 0, because scalp and skull were removed (Baid et al. 2021) and the air around the head was set
# to 0. To find the smallest box around the brain, we ask of every plane whether it contains brain. **Question.** What
# share of the voxels is left?

# %%
from brats_helpers.data import bounding_box, brain_mask
from brats_helpers.lessons import show_source

show_source(brain_mask, bounding_box)

# %%
brain = brain_mask(images)
box = bounding_box(brain)
inside = tuple(slice(*edge) for edge in box)
cropped, cropped_labels = images[:, *inside], labels[inside]
share = cropped[0].size / images[0].size
print(f"box {box}: {share:.0%} of all voxels; the brain alone: {brain.mean():.0%}")
assert cropped.any(0).sum() == images.any(0).sum() and cropped_labels.sum() == labels.sum()

# %% [markdown]
# <details><summary>Answer</summary>
#
# Read the first percentage above: less than a third on a phantom. The second percentage is smaller, because the corners
# of the box hold no brain.
# </details>
#
# Here is the same slice before and after:

# %%
views = {"whole scan": images[0, d], "cropped": cropped[0, d - box[0][0]]}
pictures(views, synthetic, plane="axial")

# %% [markdown]
# ### Exercise 2: first and last
#
# Write the core of `bounding_box` in one dimension. Given a line of True and False, return the first index that is True
# and one past the last, so that `line[first:stop]` holds them all. There may be gaps.
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
# Intensities have no unit (notebook 02). So we measure each modality in its own standard deviations from its own mean.
# This is the **z-score**. It covers the brain alone, because the background would drag the mean down. The tumor counts as
# brain, so a large one moves the mean a little. By hand: take five voxels, 0, 0, 100, 200 and 300, of which the first two
# are background. The mean of the brain is 200 and its standard deviation is 81.6, so the brain becomes -1.22, 0 and 1.22.
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
# The brain voxel of 200 is now 0, the same as the background. So the network gets a fifth channel, the **foreground**,
# that says where the brain is. This is simple if you do it in the right order. Here is the module's version:

# %%
from brats_helpers.data import normalize, statistics

show_source(normalize)

# %%
mean, std = statistics(cropped, brain_mask(cropped))
scored = normalize(cropped, mean, std)
within = scored[4] == 1
assert np.allclose(scored[:4, within].mean(1), 0, atol=1e-4)
assert np.allclose(scored[:4, within].std(1), 1, atol=1e-3)
print(f"five channels {scored.shape}: mean 0 and standard deviation 1 in the brain, 0 outside")

# %% [markdown]
# Compare these with the histograms of notebook 02. All four contrasts now have the same unit:

# %%
from brats_helpers.lessons import histograms

brain_only = np.where(within, scored[:4], 0).transpose(0, 3, 2, 1)
histograms(brain_only, cropped_labels.T, "standard deviations", synthetic=synthetic)

# %% [markdown]
# The z-score moves and stretches each histogram as a whole. It cannot correct histograms of a different *shape*, which
# other scanners produce. Methods that match landmarks of the histogram try that (Nyúl and Udupa 1999). The z-score is
# what nnU-Net, the best-known segmentation framework, uses for MRI (Isensee et al. 2021). It can also be undone.

# %% [markdown]
# ### What published code gets wrong
#
# NVIDIA's
# [preprocessing](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/data_preprocessing/preprocessor.py)
# computes the foreground channel *after* the z-score, as "every channel above 0". **Question.** What does that mask show?

# %%
theirs = (scored[:4] > 0).all(axis=0)
z = slice_with_most_tumor(cropped_labels, 0)
masks = {"brain, found before": scored[4, z], '"above 0", found after': theirs[z]}
print(f'"above 0 in every channel" covers {theirs.sum() / within.sum():.1%} of the brain')
pictures({"FLAIR, z-scored": scored[0, z]} | masks, synthetic, plane="axial")

# %% [markdown]
# <details><summary>Answer</summary>
#
# It shows voxels that are brighter than average in every modality, which is no anatomical region at all. A large part of
# the brain lies below its mean. The network then trains with a fifth channel that no longer means what its name says. The
# percentage above belongs to this patient. Phantoms are simpler than real scans, so on real patients it differs.
# </details>
#
# Before its preprocessing, NVIDIA's
# [notebook](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/notebooks/BraTS21.ipynb)
# applies `abs(int16(x))` to the voxels, which turns a negative or overflowing intensity into a plausible one.
# **Question.** What does 40,000 become?

# %%
measured = np.array([-5.0, 300.0, 40000.0])
print(measured, "becomes", np.abs(measured.astype(np.int64).astype(np.int16)))

# %% [markdown]
# <details><summary>Answer</summary>
#
# 25,536. A 16-bit integer ends at 32,767, so 40,000 wraps around to -25,536, and `abs` removes the sign. Likewise -5
# becomes 5.
# </details>
#
# Our module stores integers as 16-bit integers if they fit and everything else as floating point. It refuses NaN ("not a
# number") and names the file.
#
# ## 4. Store
#
# The last exercise of notebook 01 showed that at 1 mm the cohort in float32 takes 86 GB. At the 2 mm of the quick preset,
# 1,251 phantoms take about a tenth of that: an eighth of the voxels, and their box is smaller as well. But floats are not
# needed. The published files hold integers, and we keep *those*, compressed without loss: five arrays in one file, the
# four modalities and the reference. We do not store the z-score or the foreground channel. The device that trains
# computes both from each *patch* (a cube cut out of a scan; training reads one at a time), with a mean and a standard
# deviation that are stored as metadata.
#
# If `spacing_mm` is larger than the scan's voxels, we merge voxels into larger ones (*downsampling*). Doubling the edge
# leaves an eighth of the voxels, which lets the series run on a laptop. Details smaller than the new voxel are lost. The
# quick preset works at 2 mm. Its phantoms are made with voxels of 2 mm, so nothing is merged here, but real scans of 1 mm
# are. ([Benchmarks](../benchmarks/README.md) has the sizes at 1 mm next to those of other tools.)

# %%
from brats_helpers.data import load_prepared, prepare, save_prepared
from brats_helpers.lessons import bars

prepared = prepare(patient, config.spacing_mm)
path = work / "preprocessed" / "example.b2nd"
save_prepared(prepared, path)
voxels, stored = prepared.volume.size, path.stat().st_size
case = cohort.by_name[patient.name]
raw = sum(file_state(case, scan)[0] for scan in (*case.images, case.reference))
path.unlink()
sizes = {"raw .nii.gz": raw, "float32": voxels * 4, "int16": voxels * 2, "int16, LZ4": stored}
notes = [f"{n / 1e6:.2f} MB; times 1,251: {1.251 * n / 1e6:.1f} GB" for n in sizes.values()]
gray, red, orange, green = "#999999", "#D55E00", "#E69F00", "#009E73"
megabytes = {name: n / 1e6 for name, n in sizes.items()}
bars(megabytes, "MB for one patient of this cohort", "", (gray, red, orange, green), notes=notes)

# %% [markdown]
# Compressed, a patient takes about a seventh of the space of the floats. The `.nii.gz` files are about as small, but a
# gzip file must be decompressed from its start to reach a patch. Our array is stored in compressed blocks (by the library
# Blosc2, with the fast codec LZ4), so that a patch can be read without decompressing the rest. We prepare the whole
# cohort:

# %%
import time

from brats_helpers.data import open_volume, preprocess_cohort, read_patch

everyone = cases["training"] + cases["test"]
metas = preprocess_cohort(everyone, work / "preprocessed", config.spacing_mm, jobs)
files = {meta.name: work / "preprocessed" / f"{meta.name}.b2nd" for meta in metas}
total = sum(file.stat().st_size for file in files.values())
print(f"{len(files)} patients, {total / 1e6:.1f} MB, {total / 1e6 / len(files):.2f} MB each")

# %% [markdown]
# We read one patch from inside one of these files and time it:

# %%
volume, meta = open_volume(files[patient.name])
patch = np.empty((5, 32, 32, 32), volume.dtype)
begin = time.perf_counter()
read_patch(volume, meta, (10, 10, 10), patch)
took = 1000 * (time.perf_counter() - begin)
print(f"stored {volume.shape} as {volume.dtype}; a patch {patch.shape} in {took:.1f} ms")

# %% [markdown]
# <details><summary>For engineers: why is a block eight rows of one modality, through all slices?</summary>
#
# A block is decompressed as a whole. Larger blocks read more than the patch needs, and less of it is still in the
# processor's cache when we copy the patch's part. With blocks that are small cubes, less is decompressed needlessly, but
# they cut the rows of the patch into short pieces. Copying those can take longer than decompressing them. Smaller blocks
# also compress worse. We measured it: see `benchmarks/README.md`.
# </details>

# %% [markdown]
# ### There and back
#
# A prediction has to return to the scan's own grid. `restore` undoes the crop, the reorientation and, if the scan was
# downsampled, the change of voxel size. We try it twice: with the patient as stored, and with a phantom whose voxels of
# 1 mm we downsample to 2 mm. **Question.** Which of the two comes back exactly, and what does downsampling cost the
# other?

# %%
from brats_helpers.data import restore
from brats_helpers.phantoms import make_patient

fine = make_patient(0, 7, 1.0)  # a phantom, whatever the source
for name, p, stored in (("as stored", patient, prepared), ("downsampled", fine, prepare(fine, 2.0))):
    back = restore(stored.volume[4:], stored.meta)[0]
    assert back.shape == p.reference.shape
    assert max(stored.meta.downsampling) > 1 or (back == p.reference).all()
    print(f"{name:<11} Dice with the reference, whole tumor: {dice(back > 0, p.reference > 0):.4f}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Read the first Dice: in the quick preset the stored voxels are the scan's own, and every label comes back. The second
# Dice is the score of a mask of this phantom that is perfect at 2 mm. What is missing to 1 is the price of 2 mm. Smaller
# regions lose more.
# </details>
#
# The voxels that differ lie at the border of the tumor and between its parts:

# %%
at = slice_with_most_tumor(fine.reference)
pair = {"reference": fine.reference[..., at].T, "there and back": back[..., at].T.astype(np.uint8)}
differs = (pair["reference"] != pair["there and back"]).astype(float)
pictures(pair | {"differs": differs}, synthetic=True, plane="axial")

# %% [markdown]
# ## 5. Quality assurance
#
# Do not trust: test. We read a sample of patients again from the raw files and compare them with the stored ones. If the
# voxels are the scan's own, we compare voxel by voxel. If they were downsampled, we compare the outlines of the brain.
# Then we break one patient on purpose to see whether the test notices.

# %%
from tqdm import tqdm

from brats_helpers.data import verify_prepared

picked = np.random.default_rng(config.seed).permutation(len(everyone))[:6]
sample = [everyone[i] for i in picked]
wrong = {case.name: verify_prepared(case, files[case.name]) for case in tqdm(sample, "verify")}
assert not any(wrong.values()), wrong
coarser = max(prepared.meta.downsampling) > 1
verdict = "the outlines of the brain agree" if coarser else "not one voxel differs"
print(f"{len(wrong)} patients compared with their scans: {verdict}")

shifted = load_prepared(files[sample[0].name])
shifted.volume = np.roll(shifted.volume, 6, axis=1)  # the brain moves up by six voxels
save_prepared(shifted, work / "preprocessed" / "shifted.b2nd")
print("shifted on purpose:", *verify_prepared(sample[0], work / "preprocessed" / "shifted.b2nd"), sep="\n  ")
(work / "preprocessed" / "shifted.b2nd").unlink()

# %% [markdown]
# Next we look for patients who are unlike the others: an unusually small or large brain, or a modality with an odd
# *spread* (the coefficient of variation: its standard deviation divided by its mean). A *robust z-score* is the distance
# from the median in units of the median absolute deviation, scaled to match a standard deviation (Leys et al. 2013).
# Beyond 5, a limit that we chose, a patient deserves a look. To show that this check works, we add one made-up patient
# whose T1CE has three times the usual spread. **Question.** Does anybody else stand out?

# %%
features = {"brain's box": [np.prod([b - a for a, b in m.bounding_box]) for m in metas]}
for i, name in enumerate(("FLAIR", "T1", "T1CE", "T2")):
    features[f"spread of {name}"] = [m.std[i] / m.mean[i] for m in metas]
shown_names = [m.name for m in metas] + ["made up"]
for name, values in features.items():
    typical = np.median(values)
    values.append(3 * typical if name == "spread of T1CE" else typical)
robust = {}
for name, values in features.items():
    center = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - center)) or 1.0
    robust[name] = (np.array(values) - center) / spread
odd = [(shown_names[i], name) for name, z in robust.items() for i in np.flatnonzero(abs(z) > 5)]
print(f"{len(odd)} outlier(s)", *odd, sep="\n  ")

# %% [markdown]
# <details><summary>Answer</summary>
#
# The list above names everybody who does. With the phantoms of the quick preset, it names only the made-up patient.
# </details>
#
# Here are all patients at a glance, one dot each per column. The made-up patient is the highest dot of T1CE:

# %%
import matplotlib.pyplot as plt

from brats_helpers.lessons import finish

figure, ax = plt.subplots(figsize=(7, 2.2))
for place, z in enumerate(robust.values()):
    ax.scatter(place + np.random.default_rng(0).uniform(-0.2, 0.2, len(z)), z, s=12, alpha=0.6)
ax.set(xticks=range(5), xticklabels=list(robust), ylabel="robust z-score")
finish(figure, synthetic, alt="Robust z-scores of all patients, by feature")

# %% [markdown]
# ### Exercise 4: repair three patients
#
# Practitioners often spend more time on this than on networks. Three copies of a patient were damaged. In the first, the
# labels are as they are on disk. In the second, the background of T1 is not 0. In the third, FLAIR and T2 are swapped.
# Repair each. `broken` maps the fault to (images, labels), and images have the order FLAIR, T1, T1CE, T2.
#
# <details><summary>Hint</summary>
#
# `np.where(condition, a, b)` replaces values. Fancy indexing with a list, as in `images[[...]]`, reorders volumes. The
# background is where all *other* contrasts are 0.
# </details>

# %% tags=["exercise"]
from brats_helpers.lessons import investigations

whole = make_patient(0, 7, 2.0)  # a phantom, whatever the source
broken = investigations.broken_patients(whole)
images_1, labels_1 = broken["labels 0, 1, 2, 4"]
images_2, labels_2 = broken["T1's background is not 0"]
images_3, labels_3 = broken["FLAIR and T2 are swapped"]
labels_1 = np.where(labels_1 == 4, 3, labels_1)  # solution
images_2 = images_2 * (images_2[[0, 2, 3]] != 0).any(0)  # solution
images_3 = images_3[[3, 1, 2, 0]]  # solution
repaired = dict(zip(broken, ((images_1, labels_1), (images_2, labels_2), (images_3, labels_3))))
investigations.check_repairs(repaired, whole)

# %% [markdown]
# ## 6. For other tools
#
# We write the same cohort in the formats of nnU-Net v2 and MONAI. The images are listed where they are, not copied. The
# references are written again with 3 for ET, because nnU-Net needs [consecutive
# labels](https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md). WT, TC and ET are declared as
# regions, because they overlap. (The *Decathlon* is a public set of ten segmentation tasks. MONAI reads a list in its
# format, so we write one. nnU-Net gets all training patients and our split; MONAI's list has a section for training and
# one for validation.)

# %%
import json

from monai.data import load_decathlon_datalist

from brats_helpers.data import exportable, write_nnunet

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
# One more file records what is in the folder and which scans its contents came from.

# %%
index = {key: [case.name for case in found] for key, found in cases.items()}
index |= {"spacing_mm": config.spacing_mm, "content_hashes": {m.name: m.content_hash for m in metas}}
write_json(work / "preprocessed" / "dataset.json", index)
assert all(file.is_file() for file in files.values())
print(f"wrote {len(files)} files of {total / 1e6:.1f} MB in all, and dataset.json")
print("next: 04_architecture needs some of these patients, 05_training_evaluation all of them")

# %% [markdown]
# ## Recap
#
# - One array per patient, (channel, z, y, x) in LPS, cropped to the brain.
# - First the brain's mask, then the z-score.
# - Keep the integers of the files, compressed without loss. Do not store what a device can compute.
# - A stored file may be wrong. Compare a sample with the raw files, and break one to test your test.
#
# **What surprised us:** a perfect mask scores near 0 if one step ignores the affine, and a published "brain mask" covers
# hardly any of our phantom's brain (real scans differ).
#
# **What a radiologist would look for that our tests cannot see:** motion, susceptibility artifacts from metal or blood,
# and a scan taken too early or too late after the injection. Our tests look at positions and at the spread of a whole
# brain, which such faults hardly change.
#
# | term | meaning |
# |---|---|
# | channel | one of the arrays that a network reads together: four contrasts and the brain's mask |
# | z-score | distance from the mean in standard deviations |
# | foreground | here: the brain, as opposed to everything that was set to 0 |
# | lossless | what is read back is what was written, to the last bit |
# | content hash | a few characters that change when a file does |
# | Blosc2, LZ4 | a library for compressed arrays, and the fast codec that we use with it |
#
# ## When it goes wrong
#
# - *"has one value in all of the brain"*: a modality is constant, so the file is damaged.
# - *The disk fills up*: the budget in notebook 01 says how much you need.
# - *A score near 0 for a mask that looks right*: some step ignored the affine (section 1 has the picture).
# - *Stopped in the middle*: run it again; finished patients are kept.
# - *"its checksum is not that of its content"*: the file changed on disk; run this notebook again.
#
# ## Read on
#
# Isensee et al. 2021, *nnU-Net*, https://doi.org/10.1038/s41592-020-01008-z. Futrega et al. 2021, *Optimized U-Net for
# brain tumor segmentation*, [arXiv:2110.03352](https://arxiv.org/abs/2110.03352). Blosc2, https://www.blosc.org. Nyúl and
# Udupa 1999, *On standardizing the MR image intensity scale*, Magnetic Resonance in Medicine 42. Baid et al. 2021,
# [arXiv:2107.02314](https://arxiv.org/abs/2107.02314). Leys et al. 2013, *Detecting outliers: do not use standard
# deviation around the mean, use absolute deviation around the median*, https://doi.org/10.1016/j.jesp.2013.03.013.
#
# **Next:** [04 Architecture](04_architecture.ipynb) builds the network.
