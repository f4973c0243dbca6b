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
# # 01 Setup
#
# Meet the patient, the question of this series, and the data that all five notebooks use.
#
# **01 of 05** | next: [02 Extraction](02_extraction.ipynb)
#
# | | |
# |---|---|
# | reads | nothing, or the archive or folder of BraTS patients that you name as `source` |
# | writes | `config.json`, `cohort.json` and, for the synthetic cohort, `data/*.tar` in the work folder |
# | takes | 2 minutes on two CPU cores (quick preset, [measured](../docs/costs.md)); about 40 minutes to read and to do the exercises |

# %% [markdown]
# ## By the end you can
#
# - **name** the four MRI contrasts and the three compartments of a glioma;
# - **outline** a tumor yourself, and score your outline as the series scores a network;
# - **explain** why a single brightness threshold cannot outline a tumor;
# - **calculate** the disk space that you need before you download;
# - **rerun** the series with other settings from the command line.
#
# You need Python and NumPy. You do not need to know MRI. From notebook 04 on, it helps to have met convolutions and
# gradients.

# %% [markdown]
# ## Parameters
#
# Every notebook of the series starts with a cell like this one. Change a value here and run the rest, or leave the
# file alone and pass the value from outside: `python -m brats_helpers run -p seed 1`.

# %% tags=["parameters"]
work: str = ""  # folder for everything that is written; empty: the usual place on this machine
preset: str = "quick"  # quick (laptop), kaggle (one 16 GB GPU) or full (NVIDIA's recipe)
source: str = (
    "phantom"  # "phantom" or "varied", both synthetic, or an archive or folder of BraTS patients
)
seed: int = 0  # of the synthetic cohort, the split and the training
patients: int = None  # phantoms for training and validation; None: the preset's number
test_patients: int = None  # phantoms for the last evaluation alone; None: the preset's number
spacing_mm: float = None  # voxel size that the network works at, in mm; None: the preset's

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

# %% [markdown]
# ## 1. The question
#
# A glioma is a brain tumor whose cells resemble glial cells, the supporting cells of the brain. To plan radiotherapy, or
# to follow the volume of a tumor over time, somebody has to outline what MRI shows of it. Outlining by hand in three
# dimensions is slow, and two experts do not draw the same outline (Menze et al. 2015). **Can a network do it?** BraTS,
# the yearly *Brain Tumor Segmentation* challenge, asks that, and publishes the data.
#
# Here is a patient with a glioma, and below the outline that somebody would have to draw:

# %% tags=["readme"]
from dataclasses import replace

from brats_helpers.lessons import show_modalities, three_planes, upright
from brats_helpers.phantoms import make_patient

stranger_mm = max(1.0, (spacing_mm or 2.0) / 2)  # voxels of 1 mm, unless the series works at coarse ones
stranger = make_patient(1, 0, stranger_mm, "varied")  # synthetic, whatever the source
stranger = replace(stranger, name="stranger")  # no patient of the cohort
show_modalities(stranger, synthetic=True)

# %% [markdown]
# The upper row shows four MRI images of one slice. They share one grid, and the skull was removed. The lower row adds the
# **reference**: the outline that experts approved or, in a synthetic patient, the one that was built in. It has three
# parts: swollen tissue, called edema (ED, green), tumor that takes up contrast agent (ET, orange) and the core inside it
# (NCR, blue). (The bright lines at the edge and in the middle on T1CE belong to the *dura*, the membrane that covers the
# brain.) Pictures follow the radiologist's [convention](https://nipy.org/nibabel/neuro_radio_conventions.html): the
# patient's right (R) is on the left. A is the front (anterior), P the back (posterior), S up (superior) and I down
# (inferior). An *axial* slice lies across the body, a *coronal* one is seen from the front, and a *sagittal* one from the
# side.
#
# This patient is a **phantom**: a tumor grown by a few rules in the MNI152 template, an average human brain (Fonov et al.
# 2011). Now a *network* draws the outline. A network is a function with many adjustable numbers, its *weights* (this one
# has 1.4 million). Training adjusts them until its answers for known patients resemble their references. This one comes
# with the package, and we call it the **network in the box**. It has learned from other phantoms alone, never from a
# patient. **Question.** Where will it be wrong?

# %%
from brats_helpers.data import lps_spacing
from brats_helpers.evaluation import load_pretrained, segment

box, box_config = load_pretrained(device)
answer, _ = segment([box], stranger, box_config, False, device)
image, truth, guess = (upright(v, stranger.affine) for v in (stranger.images[0], stranger.reference, answer))
spacing = lps_spacing(stranger.spacing, stranger.affine)
three_planes(image, {"reference": truth, "prediction": guess}, spacing, "the network in the box", synthetic=True)

# %% [markdown]
# <details><summary>Answer</summary>
#
# At the edges, mostly. Edema fades, and nothing in the image says where it ends. (The last column compares only the outline
# of the whole tumor. To find parts that are confused, compare the two columns before it.)
# </details>
#
# [Another page](../docs/zero_shot.md) reports how this network does on real patients. In this series you train a smaller
# one yourself, in minutes, from simpler phantoms. One of them accompanies us through all five notebooks:

# %%
from brats_helpers.basics import config as settings

config = settings.preset(preset).with_(
    seed=seed, patients=patients, test_patients=test_patients, spacing_mm=spacing_mm
)
patient = make_patient(config.seed, 0, config.spacing_mm)  # synthetic, whatever the source
show_modalities(patient, synthetic=True)

# %%
from brats_helpers.lessons import series_map

series_map(1)

# %% [markdown]
# The series has five notebooks. Each reads files that earlier notebooks wrote to one **work folder**, so you can run each
# one again by itself, in a new session, on another day.
#
# <details><summary>For teachers</summary>
#
# Plan two hours for 01 and 02. Common misconceptions: each contrast shows a different organ; the outline is a measurement
# and not an opinion; a synthetic result says something about patients. Let the class do exercise 2 in pairs and compare
# their scores. The differences between two people are the best introduction to Dice.
# </details>

# %% [markdown]
# ## 2. One patient, four contrasts
#
# An MRI scanner can weight its image in different ways, and no single contrast shows all parts of a tumor. A few words
# first. *T1* and *T2* are two time constants of a tissue: after a radio pulse, its magnetization recovers with T1, and
# its signal fades with T2. An image is weighted by one of them. *FLAIR* is weighted by T2, too, but it suppresses the
# signal of free fluid. The *ventricles* are chambers in the middle of the brain that hold fluid (CSF, cerebrospinal
# fluid). *Gray matter* is mostly the folded outer layer of the brain, the *cortex*, and *white matter* is the wiring
# below it. The *blood-brain barrier* keeps most substances inside the vessels. *Necrotic* tissue is dead. *Gadolinium* is
# a contrast agent injected into a vein, and T1CE is T1 after that injection. A *voxel* is a pixel in 3D.
#
# | contrast | CSF is | what a radiologist reads from it |
# |---|---|---|
# | **FLAIR** | dark, suppressed | edema and infiltrated tissue, bright |
# | **T1** | dark | anatomy: white matter is brighter than gray matter |
# | **T1CE** | dark | where gadolinium crosses a damaged blood-brain barrier: *enhancing* tumor, often a rim (normal vessels are bright as well) |
# | **T2** | bright | CSF, edema, cysts and most of the tumor, bright |
#
# The outline has three labels. **NCR** is the necrotic core, with the parts of the core that do not enhance. **ED** is
# the edema around the core. It includes tumor that infiltrates without enhancing, which MRI often cannot tell from edema.
# **ET** is the enhancing tumor. BraTS scores three nested regions: the whole tumor **WT** (all three labels), the tumor
# core **TC** (NCR and ET), and ET (Menze et al. 2015; Baid et al. 2021).
#
# **Question.** In the picture of our patient (`BraTS2021_00000`, end of section 1), which compartment is bright on T1CE
# only? What can FLAIR alone not tell you?
#
# <details><summary>Answer</summary>
#
# In this phantom, only T1CE shows the enhancing rim bright. FLAIR shows a gray ring inside the bright edema, but it cannot
# tell you which part takes up contrast agent. (In patients, compare T1CE with T1, because blood can be bright on both.)
# </details>

# %%
show_modalities(patient, plane="sagittal", synthetic=True)

# %% [markdown]
# This is the same brain from the side. The tumor is a single body. A network that looks at one slice at a time has to
# find it again in each slice. Our network looks at volumes. In the next picture, on the left, the tumor shows through the
# surface of the brain, and orange marks where the rim comes close to it. On the right, the tumor alone is cut open along an
# axial slice.

# %%
from brats_helpers.lessons import tumor_3d, upright

labels, brain = (upright(v, patient.affine) for v in (patient.reference, patient.images[0] > 0))
tumor_3d(labels, brain, patient.spacing, patient.name, synthetic=True)

# %% [markdown]
# Here is another patient. Which contrast is which?

# %%
import numpy as np

from brats_helpers.basics import MODALITIES
from brats_helpers.data import slice_with_most_tumor
from brats_helpers.lessons import compare_slices

quiz = make_patient(config.seed, 2, config.spacing_mm)
order = [MODALITIES[i] for i in np.random.default_rng(3).permutation(4)]
shown = [upright(quiz.images[MODALITIES.index(name)], quiz.affine) for name in order]
at = slice_with_most_tumor(upright(quiz.reference, quiz.affine))
compare_slices(dict(zip("ABCD", shown)), index=at, spacing=quiz.spacing, synthetic=True)

# %% [markdown]
# ### Exercise 1: read the contrasts
#
# Name A, B, C and D. (In every exercise, replace the solution or the blank with your answer, run the cell, and read what
# the check says.)
#
# <details><summary>Hint</summary>
#
# First look for bright fluid in the ventricles: only one contrast has it. Then look for the bright rim. Of the two that are
# left, one shows the edema bright.
# </details>

# %% tags=["exercise"]
from brats_helpers.lessons import checks

answer = ["t2", "t1ce", "t1", "flair"]  # solution
checks.check_contrasts(answer, order)

# %% [markdown]
# ### Exercise 2: be the network
#
# Outline the whole tumor of this patient on one slice. Read the corners of your outline from the axes and list them as
# (x, y). The check scores you with **Dice**, the number that the series uses for networks: twice the area that two masks
# share, divided by the sum of their areas. 1 means equal, and 0 means that they share nothing.

# %%
from brats_helpers.lessons import draw_outline_task

drawn = make_patient(0, 7, 2.0)
draw_outline_task(drawn)

# %% [markdown]
# <details><summary>Hint</summary>
#
# FLAIR shows the whole tumor best. Eight or nine corners are enough. (On real tumors, human raters agreed with a Dice of
# 0.74 to 0.85, depending on the region: Menze et al. 2015. Their tumors were harder than this phantom.)
# </details>

# %% tags=["exercise"]
from brats_helpers.lessons import investigations

corners = [(90, 66), (86, 50), (70, 46), (56, 58), (52, 70), (60, 72), (67, 80), (75, 82), (83, 78)]  # solution
investigations.check_outline(corners, drawn)

# %% [markdown]
# ## 3. Patients, real and synthetic
#
# The training part of BraTS 2021 has 1,251 patients with glioma, scanned before surgery. Algorithms drew their outlines,
# people corrected them by hand, and neuroradiologists approved them (Baid et al. 2021). The download requires
# [registration](https://www.synapse.org/brats2021), so this series carries a stand-in: the phantoms. Their files, labels
# and geometry are like those of BraTS, and every picture of them says *synthetic*. They carry names of BraTS 2021,
# because the name determines how the labels are read (notebook 02), but here `BraTS2021_00000` is not a real person. A
# score on phantoms does not tell how well a network does on a real patient.
#
# To use real data, give its archive or folder as `source`. You change nothing else. The source `varied` is synthetic, too,
# but its patients are harder to learn and closer to real ones.

# %%
from brats_helpers.data import is_archive, list_archive, resolve_source, summarize_archive
from brats_helpers.phantoms import KINDS, build_cohort

synthetic = source in KINDS
if synthetic:
    numbers = (config.seed, config.patients, config.test_patients, config.spacing_mm)
    training, test = build_cohort(work / "data", *numbers, kind=source)
else:
    training, test = resolve_source(Path(source)), None
print(training, test, sep="\n")

# %% [markdown]
# ### The same seed gives the same patient
#
# And another index gives another patient:

# %%
again, other = (make_patient(config.seed, index, config.spacing_mm) for index in (0, 1))
assert np.array_equal(again.images, patient.images)
assert np.array_equal(again.reference, patient.reference)
assert not np.array_equal(other.images, patient.images)
print("same seed, same voxels; another index, another patient")

# %% [markdown]
# Patients differ, though, even in brightness. Here are four of them, all drawn on one gray scale. **Question.** Why would a
# fixed threshold fail on these four?

# %%
others = [make_patient(config.seed, index, config.spacing_mm) for index in range(1, 5)]
flair = {}
for p in others:
    at = slice_with_most_tumor(upright(p.reference, p.affine))
    flair[p.name] = upright(p.images[0], p.affine)[..., [at]]
title = "FLAIR, each patient's slice with most tumor"
compare_slices(flair, spacing=patient.spacing, synthetic=True, shared_window=True, title=title)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The tissue is the same, but the numbers are not. The gray values have no physical unit (Nyúl and Udupa 1999), so a value
# that is edema in one patient is healthy tissue in another. Notebook 03 deals with that.
# </details>
#
# ### Exercise 3: the best threshold
#
# Write a function that takes a FLAIR volume and the true tumor mask, and returns the threshold whose mask (`image >
# threshold`) has the highest Dice. (It cheats, because it sees the truth. We want to know how far a threshold could get.)
#
# <details><summary>Hint</summary>
#
# `np.percentile(image[image > 0], range(2, 100, 2))` gives 49 candidates. Compute Dice for each, and return the best.
# </details>


# %% tags=["exercise"]
def best_threshold(image: np.ndarray, tumor: np.ndarray) -> float:
    """The threshold with the highest Dice."""
    def score(threshold):  # solution
        mask = image > threshold  # solution
        return 2 * (mask & tumor).sum() / (mask.sum() + tumor.sum())  # solution

    return max(np.percentile(image[image > 0], range(2, 100, 2)), key=score)  # solution


investigations.check_best_threshold(best_threshold, others)

# %% [markdown]
# A histogram of one patient shows a second problem: the values of tumor and of healthy brain overlap. Each curve is
# scaled to its own tissue, so heights cannot be compared. **Question.** Could a threshold on a single contrast find the
# edema?

# %%
from brats_helpers.lessons import histograms

histograms(patient.images, patient.reference, "intensity", synthetic=True)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Not well. On every contrast, the values of edema overlap with those of healthy brain, and there is far more healthy brain
# than edema, which these curves hide. (Only the enhancing rim on T1CE stands clear. In patients, vessels and dura
# are as bright.) Notebook 05 measures how far a threshold gets. The network has to beat that number.
# </details>
#
# ## 4. The tools and the settings
#
# Results depend on versions, so we print them. `torch` computes, `nibabel` reads NIfTI files (the file format of brain
# imaging), `blosc2` compresses, and `monai` is the medical imaging library that our own code is tested against.

# %%
from brats_helpers.lessons import package_versions

for name, version in package_versions().items():
    print(f"{name:<12} {version}")

# %% [markdown]
# The package that these notebooks import is small enough to read. Its own docstring is the map:

# %%
import brats_helpers

print(brats_helpers.__doc__)

# %% [markdown]
# One frozen dataclass (its values cannot change) holds every setting that decides a result. It is written into every
# *checkpoint*, a file with the weights of a network, so that the network can always be rebuilt. Notebooks 04 and 05
# explain most of them. A **preset** is a choice of all settings for one kind of machine. The parameters at the top change
# single settings:

# %%
config

# %% [markdown]
# The network and its training follow NVIDIA's entry to BraTS 2021 (Futrega et al. 2021). NVIDIA's *paper* (with its
# [notebook](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/notebooks/BraTS21.ipynb))
# and its [*code*](https://github.com/NVIDIA/DeepLearningExamples/tree/master/PyTorch/Segmentation/nnUNet) disagree in places.
# Where they do, we say which we follow.
#
# A setting that cannot work is refused at once, with the reason (notebook 04 explains its words):

# %%
from brats_helpers.basics import BratsError

try:
    settings.preset("quick").with_(patch=60)
except BratsError as error:
    print(error)

# %% [markdown]
# ## 5. Will it fit?
#
# Notebook 03 stores five arrays for every patient: the four contrasts and the reference, cropped to a box around the
# brain. A typical box has 140 x 175 x 140 voxels of 1 mm.
#
# ### Exercise 4: the bill
#
# How many GB do five such arrays take for all 1,251 patients, as 32-bit floating point?
#
# <details><summary>Hint</summary>
#
# Voxels x arrays x bytes x patients, in units of 1e9 bytes.
# </details>

# %% tags=["exercise"]
box = (140, 175, 140)
gigabytes = 140 * 175 * 140 * 5 * 4 * 1251 / 1e9  # solution
checks.check_float_gigabytes(gigabytes, box, 1251)

# %% [markdown]
# Kaggle keeps 20 GB ([its documentation](https://www.kaggle.com/docs/notebooks)). In this series, a prepared patient
# keeps the integers of the published files, compressed without loss. The budget of this run comes from sizes that we
# measured. *Raw* is the unpacked scans, *prepared* the files of notebook 03, and *other* the checkpoints and results.

# %%
from brats_helpers.basics import where_am_i
from brats_helpers.data import find_cases
from brats_helpers.lessons import disk_budget

packed = is_archive(training)
found = summarize_archive(list_archive(training)) if packed else find_cases(training)
everyone = len(found) + (config.test_patients if test else 0)
budget = disk_budget(config, everyone, work, packed and where_am_i() != "kaggle")
print(", ".join(f"{name} {value:.2f}" for name, value in budget.items() if name != "fits"))
if not budget["fits"]:
    print("WARNING: that is more than is free: choose another work folder, or fewer patients.")

# %%
sizes = {name: budget[f"{name}_gb"] for name in ("raw", "prepared", "other")}
from brats_helpers.lessons import bars

bars(sizes, f"GB that the series will write for {everyone} patients", "GB")

# %% [markdown]
# And the time? Two seconds of training on random numbers tell what this machine can do. (A *patch* is a cube cut out of a
# scan, and a *step* adjusts the weights once.)

# %%
from brats_helpers.lessons import forecast_minutes

minutes = forecast_minutes(config, device)

# %% [markdown]
# ## 6. Save and verify
#
# The next notebooks read these two files and nothing from this notebook's memory.

# %%
from brats_helpers.data import write_source

write_source(work, config, source, training, test, synthetic=source in KINDS)
assert settings.Config.load(work / "config.json") == config
print(f"wrote config.json ({config.preset}, seed {config.seed}) and cohort.json")
print("next: 02_extraction reads both")

# %% [markdown]
# ## Recap
#
# - Each of the four contrasts shows a different aspect of a tumor. Three labels make three nested regions.
# - Gray values of MRI have no physical unit, and those of edema and of healthy brain overlap. No single threshold finds a
#   tumor.
# - Dice compares two masks, yours as well as a network's.
# - The default cohort is synthetic. You can learn the craft with it, but a score on it says little about real patients.
#
# **What surprised us:** nine corners, read from a picture, give a Dice above 0.9 on a phantom.
#
# **What a radiologist would look for that the phantoms of this series cannot show:** edema that runs in fingers along
# white matter and spares the cortex, bleeding, broken rims, and the shift of the midline. Tumor and edema also stop at the
# falx, the fold of dura between the hemispheres. Ours may cross it.
# In our example patient, necrosis is dark on FLAIR. In real patients it varies and is often bright.
#
# | term | meaning |
# |---|---|
# | contrast, modality | one way of weighting an MRI image; radiologists say sequence |
# | voxel | a pixel in 3D |
# | WT, TC, ET | whole tumor, tumor core, enhancing tumor: nested regions |
# | reference | the outline that experts approved, or the one built into a phantom |
# | Dice | twice the overlap of two masks, divided by the sum of their sizes |
# | phantom | an artificial patient whose true outline is known |
# | preset | all settings for one kind of machine |
# | NIfTI | the file format of brain imaging: an array with its place in space |
#
# ## When it goes wrong
#
# - *"not built for the ... GPU"*: choose another accelerator, or another torch.
# - *"WARNING: that is more than is free"*: lower `patients`, or set `work` to a larger disk.
#
# ## Read on
#
# Baid et al. 2021, *The RSNA-ASNR-MICCAI BraTS 2021 benchmark*,
# [arXiv:2107.02314](https://arxiv.org/abs/2107.02314). Futrega et al. 2021, *Optimized U-Net for brain tumor
# segmentation*, [arXiv:2110.03352](https://arxiv.org/abs/2110.03352). Menze et al. 2015, *The multimodal brain tumor image
# segmentation benchmark*, https://doi.org/10.1109/TMI.2014.2377694. Nyúl and Udupa 1999, *On standardizing the MR image
# intensity scale*, Magnetic Resonance in Medicine 42. Fonov et al. 2011, *Unbiased average age-appropriate atlases for
# pediatric studies*, NeuroImage 54 (the template).
#
# **Next:** [02 Extraction](02_extraction.ipynb) opens the archive.

