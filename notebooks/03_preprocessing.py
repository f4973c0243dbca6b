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
# From four scans to one small file that a network can be fed from, and the proof that it holds what the scanner measured.
#
# **03 of 05** | back: [02 Extraction](02_extraction.ipynb) | next: [04 Architecture](04_architecture.ipynb)
#
# | | |
# |---|---|
# | reads | `config.json`, `patients.json`, `splits.json` and the patients' files |
# | writes | `preprocessed/<patient>.b2nd`, `preprocessed/dataset.json`, `nnunet/Dataset021_BraTS/` |
# | takes | under a minute on two CPU cores (quick preset) |
#
# ## By the end you can
#
# - **turn** four scans into one array, in an orientation that you know;
# - **crop** to the brain, and say what that saves;
# - **normalise** intensities that have no unit, without destroying the brain's mask;
# - **verify** that what was stored is what the scanner measured;
# - **export** a cohort to nnU-Net and MONAI.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
work: str = ""  # folder that notebooks 01 and 02 wrote to; empty: the usual place on this machine
jobs: int = -1  # processes; -1: one a core

# %%
# Find the module beside the notebooks; say which machine this is.
import sys
from pathlib import Path

sys.path[:0] = [
    str(p) for p in (Path.cwd(), *Path.cwd().parents) if (p / "brats_helpers").is_dir()
][:1]
from brats_helpers.device import start

work, device = start(work)

# %%
import numpy as np

from brats_helpers.cases import read_case
from brats_helpers.cohort import read_cohort
from brats_helpers.config import Config
from brats_helpers.files import write_json

config, cohort = Config.load(work / "config.json"), read_cohort(work)
cases, synthetic = cohort.cases, cohort.synthetic
print({key: f"{len(found)} patients" for key, found in cases.items()})

# %% [markdown]
# ## 1. Stack and turn
#
# NIfTI counts (x, y, z) and its first index runs fastest in memory; NumPy and torch are quickest when the *last* one
# does. So the array is turned once, to (z, y, x), which deep learning calls (D, H, W). And it is turned to **LPS**
# whatever its affine says, so that a front is always a front.
#
# *Predict:* a scan of 240 x 240 x 155 voxels becomes which shape?

# %%
from brats_helpers.preprocessing import to_lps

patient = read_case(next(case for case in cases["training"] if case.reference))
images = np.stack([to_lps(image, patient.affine) for image in patient.images])
labels = to_lps(patient.reference, patient.affine)
print(f"{patient.images.shape} (modality, x, y, z) becomes {images.shape} (modality, z, y, x)")

# %% [markdown]
# A tiny case by hand: a volume of 2 x 3 x 4 voxels whose first index grows to the right instead of the left. After the
# turn, its first voxel is the old last one along x.

# %%
tiny = np.arange(24).reshape(2, 3, 4)
to_the_right = np.diag([1.0, -1.0, 1.0, 1.0])  # R P S
turned = to_lps(tiny, to_the_right)
assert turned.shape == (4, 3, 2) and turned[0, 0, 0] == tiny[1, 0, 0]
print("tiny[1, 0, 0] is now the first voxel:", turned[0, 0, 0])

# %% [markdown]
# ## 2. Crop to the brain
#
# Most of a BraTS volume is air that was set to 0. The smallest box around the brain is found from its projections: is
# there anything in this plane? *Predict:* what share of the voxels is left?

# %%
import inspect

from IPython.display import Code

from brats_helpers.preprocessing import brain_box, brain_mask

Code(inspect.getsource(brain_mask) + "\n\n" + inspect.getsource(brain_box), language="python")

# %%
brain = brain_mask(images)
box = brain_box(brain)
inside = tuple(slice(*edge) for edge in box)
cropped, cropped_labels = images[:, *inside], labels[inside]
print(
    f"box {box}: {cropped[0].size / images[0].size:.0%} of the voxels, {brain.mean():.0%} are brain"
)
assert cropped.any(0).sum() == images.any(0).sum() and cropped_labels.sum() == labels.sum()

# %%
import matplotlib.pyplot as plt

middle = images.shape[1] // 2
views = {"whole scan": (images[0], middle), "cropped": (cropped[0], middle - box[0][0])}
figure, axes = plt.subplots(1, 2, figsize=(6, 3))
for ax, (name, (volume, z)) in zip(axes, views.items()):
    ax.imshow(volume[z], cmap="gray")
    ax.set(title=f"{name}, {' x '.join(map(str, volume.shape))}", xticks=[], yticks=[])
    ax.text(0.02, 0.5, "R", color="white", transform=ax.transAxes)
    ax.text(0.98, 0.5, "L", color="white", transform=ax.transAxes, ha="right")
figure.supxlabel("synthetic" if synthetic else "", fontsize=8, style="italic")
plt.show()

# %% [markdown]
# ## 3. Normalise
#
# Intensities have no unit (notebook 02), so each modality is measured in its own standard deviations from its own mean:
# the **z-score**, over the brain alone, because air would drag the mean down. By hand, on five voxels of which two are
# air:

# %%
voxels = np.array([0, 0, 100, 200, 300])
mask = voxels != 0
mean, std = voxels[mask].mean(), voxels[mask].std()
print(f"mean {mean}, deviation {std:.1f}:", np.where(mask, (voxels - mean) / std, 0).round(2))

# %% [markdown]
# Look at the second brain voxel: its z-score is 0, the same number as the air's. So the network is given a fifth
# channel that says where the brain is. That is simple, if it is done in the right order. Here is the module's version:

# %%
from brats_helpers.preprocessing import normalise, statistics

Code(inspect.getsource(normalise), language="python")

# %%
mean, std = statistics(cropped, brain_mask(cropped))
scored = normalise(cropped, mean, std)
within = scored[4] == 1
assert np.allclose(scored[:4, within].mean(1), 0, atol=1e-4) and np.allclose(
    scored[:4, within].std(1), 1, atol=1e-3
)
print(f"five channels {scored.shape}: mean 0 and deviation 1 in the brain, 0 outside")

# %%
from brats_helpers.plots import histograms

histograms(
    np.where(within, scored[:4], 0).transpose(0, 3, 2, 1),
    cropped_labels.T,
    "standard deviations",
    synthetic=synthetic,
)

# %% [markdown]
# ### What published code gets wrong
#
# NVIDIA's preprocessing makes the foreground channel *after* the z-score, as "every channel above 0". *Predict:* what
# does that mask show?

# %%
from brats_helpers.plots import compare_slices
from brats_helpers.preprocessing import lps_spacing

theirs = (scored[:4] > 0).all(axis=0)
compare_slices(
    {
        "FLAIR, z-scored": scored[0].T,
        "brain, found before": scored[4].T,
        '"above 0", found after': theirs.T.astype(float),
    },
    spacing=lps_spacing(patient.spacing, patient.affine),
    labels=None,
    synthetic=synthetic,
)

# %%
print(
    f'brain: {within.sum():,} voxels; "above 0 in every channel": {theirs.sum():,}, {theirs.sum() / within.sum():.1%} of it'
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Voxels that are brighter than average in every modality, which is no anatomical region at all. A large part of the
# brain is below its mean. The network then learns with a fifth channel that says something else than its name. (It
# also normalises twice.)
# </details>
#
# The same code does `abs(int16(x))` to the voxels before, so that a negative or an overflowing intensity becomes a
# plausible one. *Predict:* what does it make of 40,000?

# %%
measured = np.array([-5.0, 300.0, 40000.0])
print(measured, "becomes", np.abs(measured.astype(np.int64).astype(np.int16)))

# %% [markdown]
# This module keeps integers that fit as integers, anything else as floating point, and refuses NaN by name.
#
# ## 4. Store
#
# A brain's box at 1 mm has about 140 x 175 x 140 voxels. In float32, times five channels, times 1,251 patients, that is
# 86 GB; Kaggle keeps 20. But the scanner measured integers, so we keep *those*, compressed without loss, all modalities
# and the reference in one file, and do the z-score on the device that trains. Mean and deviation travel along as
# metadata. (On real scans at 1 mm: 7.7 MB a patient, 9.6 GB for all. Where a cohort is coarsened, as in the quick preset,
# numbers are smaller and the proportions alike.)

# %%
from brats_helpers.preprocessing import prepare, save

prepared = prepare(patient, config.spacing_mm)
path = work / "preprocessed" / "example.b2nd"
save(prepared, path)
sizes = {
    "raw .nii.gz": sum(p.stat().st_size for p in cohort.by_name[patient.name].images),
    "float32 array": prepared.volume.size * 4,
    "int16 array": prepared.volume.size * 2,
    "int16, zstd": path.stat().st_size,
}
path.unlink()

# %%
figure, ax = plt.subplots(figsize=(6, 1.8))
bars = ax.barh(
    list(sizes),
    [size / 1e6 for size in sizes.values()],
    color=["#999999", "#D55E00", "#E69F00", "#009E73"],
)
labels_ = [
    f"{size / 1e6:.1f} MB; BraTS's 1,251: {1.251 * size / 1e6:.1f} GB" for size in sizes.values()
]
ax.bar_label(bars, labels_, padding=3)
ax.set(xlabel="MB for one patient of this cohort", xlim=(0, max(sizes.values()) / 6e5))
ax.invert_yaxis()
plt.show()

# %% [markdown]
# The array is stored in blocks, so that a training patch is read without decompressing the rest:

# %%
import time

from brats_helpers.preprocessing import open_volume, preprocess_cohort

everyone = cases["training"] + cases["test"]
metas = preprocess_cohort(everyone, work / "preprocessed", config.spacing_mm, jobs)
files = {meta.name: work / "preprocessed" / f"{meta.name}.b2nd" for meta in metas}
total = sum(file.stat().st_size for file in files.values())
print(f"{len(files)} patients, {total / 1e6:.1f} MB, {total / 1e6 / len(files):.2f} MB each")

# %%
volume, meta = open_volume(files[patient.name])
begin = time.perf_counter()
patch = volume[:, 10:42, 10:42, 10:42]
print(
    f"stored {volume.shape} as {volume.dtype}; a patch {patch.shape} in {1000 * (time.perf_counter() - begin):.1f} ms"
)

# %% [markdown]
# ### There and back
#
# A prediction has to return to the scan's own grid. `restore` undoes the crop, the turn and, where a scan finer than
# `spacing_mm` was coarsened, the change of voxel size. On the reference itself the way there and back must be
# the identity, or close to it after coarsening.

# %%
from brats_helpers.metrics import dice
from brats_helpers.preprocessing import restore

back = restore(prepared.volume[4:], prepared.meta)[0]
print(
    f"shape {back.shape}; Dice with the reference, whole tumor: {dice(back > 0, patient.reference > 0):.4f}"
)
assert back.shape == patient.reference.shape
assert max(prepared.meta.factor) > 1 or (back == patient.reference).all()

# %% [markdown]
# ## 5. Quality assurance
#
# Trust is a test. A sample of patients is read again from the raw files and compared with what was stored: voxel by
# voxel where the voxels are the scan's own, and by the place of brain and tumor where they were made coarser.

# %%
from tqdm import tqdm

from brats_helpers.preprocessing import verify_prepared

chosen = np.random.default_rng(config.seed).permutation(len(everyone))[:6]
wrong = {
    everyone[i].name: verify_prepared(everyone[i], files[everyone[i].name])
    for i in tqdm(chosen, desc="verify")
}
assert not any(wrong.values()), wrong
coarser = max(prepared.meta.factor) > 1
print(
    f"{len(wrong)} patients compared with their scans: "
    + ("brain and labels lie where they should" if coarser else "not one voxel differs")
)

# %% [markdown]
# And a look for patients who are unlike the others: a brain that is too small, a modality whose contrast is odd. A
# robust z-score (distance from the median in units of the median absolute deviation) above 5 is worth a look. It is not
# an error.

# %%
features = {
    "brain box (voxels)": [np.prod([b - a for a, b in m.box]) for m in metas],
    **{
        f"contrast of {name}": [m.std[i] / m.mean[i] for m in metas]
        for i, name in enumerate(("FLAIR", "T1", "T1CE", "T2"))
    },
}
outliers = []
for name, values in features.items():
    values = np.array(values, float)
    spread = 1.4826 * np.median(np.abs(values - np.median(values))) or 1.0
    outliers += [
        (metas[i].name, name, (values[i] - np.median(values)) / spread)
        for i in np.flatnonzero(np.abs(values - np.median(values)) > 5 * spread)
    ]
print(
    f"{len(outliers)} outlier(s)",
    *(f"{who}: {what} {z:+.1f}" for who, what, z in outliers),
    sep="\n  ",
)

# %%
figure, axes = plt.subplots(1, 5, figsize=(9.6, 2.4))
for ax, (name, values) in zip(axes, features.items()):
    ax.scatter(np.random.default_rng(0).uniform(-1, 1, len(values)), values, s=12, alpha=0.6)
    ax.set(title=name, xticks=[], xlim=(-3, 3))
    ax.title.set_fontsize(8)
plt.show()

# %% [markdown]
# ## 6. For other tools
#
# The same cohort as nnU-Net v2 and MONAI read it. The images are listed where they are and not copied; the references
# are written once more with 3 for ET, because nnU-Net wants consecutive labels. Regions that overlap are given as such.

# %%
import json

from brats_helpers.formats import write_nnunet

exportable = [case for case in cases["training"] if case.reference and not case.channels]
if exportable:
    root = write_nnunet(exportable, cohort.splits, work / "nnunet", synthetic)
    description = json.loads((root / "dataset.json").read_text())
    print(json.dumps({k: v for k, v in description.items() if k != "dataset"}, indent=1))
else:
    print("4D files are in the Decathlon's format already: nothing to export")

# %%
try:
    from monai.data import load_decathlon_datalist
except ModuleNotFoundError:
    print("MONAI is not installed here: skipped")
else:
    if exportable:
        listed = load_decathlon_datalist(str(root / "dataset_msd.json"), True, "training")
        print(f"MONAI reads {len(listed)} training patients of {len(listed[0]['image'])} images")

# %% [markdown]
# ## 7. Save and verify

# %%
index = {
    "spacing_mm": config.spacing_mm,
    **{key: [case.name for case in found] for key, found in cases.items()},
    "fingerprints": {meta.name: meta.source for meta in metas},
}
write_json(work / "preprocessed" / "dataset.json", index)
assert all(
    (work / "preprocessed" / f"{name}.b2nd").is_file()
    for name in index["training"] + index["test"]
)
print(
    f"wrote {len(files)} files of {total / 1e6:.1f} MB in all, and dataset.json\nnext: 04_architecture needs none of "
    "it but one patient; 05_training_evaluation reads all"
)

# %% [markdown]
# ## Recap
#
# - One array a patient, (channel, z, y, x) in LPS, cropped to the brain.
# - The brain's mask comes first, then the z-score.
# - The scanner's integers are kept, compressed without loss; what a device can compute is not stored.
# - Stored is not the same as right: a sample was compared with the raw files.
#
# **When it goes wrong.** *"has one value in all of the brain"*: a modality is constant, so the file is damaged. *A disk
# that fills up*: notebook 01's budget says what is needed. *Stopped in the middle*: run it again, finished patients are
# kept.
#
# **Read on.** Isensee et al. 2021, *nnU-Net*, doi:10.1038/s41592-020-01008-z. Futrega et al. 2021, *Optimized U-Net for
# brain tumor segmentation*, arXiv:2110.03352. Blosc2, https://www.blosc.org.
#
# **Next:** [04 Architecture](04_architecture.ipynb) builds the network.
