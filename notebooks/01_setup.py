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
# What this machine can do, whether the data will fit on it, and the patients that the series learns from.
#
# **01 of 05** | next: [02 Extraction](02_extraction.ipynb)
#
# | | |
# |---|---|
# | reads | nothing, or the archive or folder of BraTS patients that you name as `source` |
# | writes | `config.json`, `cohort.json` and, for the synthetic cohort, `data/*.tar` in the work folder |
# | takes | 1 minute on two CPU cores (quick preset, measured: [README](../README.md#results)); not timed on a GPU yet; to read and to do the exercises 40 minutes, an estimate |

# %% [markdown]
# ## By the end you can
#
# - **tell** which precision your device is good at, and why it matters;
# - **budget** disk space before a download, not after it;
# - **name** the four MRI contrasts and the three tumor compartments of BraTS;
# - **rerun** the series with other settings from the command line.
#
# You need Python and NumPy. No MRI, no deep learning yet.

# %% [markdown]
# ## Parameters
#
# Every notebook of the series starts with a cell like this one. Change a value here and run the rest, or leave the
# file alone and pass it from outside: `python -m brats_helpers run -p seed 1`.

# %% tags=["parameters"]
work: str = ""  # folder for everything that is written; empty: the usual place on this machine
preset: str = "quick"  # quick (laptop), kaggle (one 16 GB GPU) or full (NVIDIA's recipe)
source: str = (
    "phantom"  # "phantom" or "wide", both synthetic, or an archive or folder of BraTS patients
)
seed: int = 0  # of the synthetic cohort, the split and the training
patients: int = None  # phantoms to learn from; None: the preset's number
test_patients: int = None  # phantoms for the last evaluation alone; None: the preset's number
spacing_mm: float = None  # voxel size that the network works at, in mm; None: the preset's

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
from brats_helpers.lessons.plots import series_map

series_map(1)

# %% [markdown]
# Five notebooks, each of which reads what the one before it has written, and nothing else. So each can be run again
# alone, in a new session, on another day. Everything lands in one **work folder**.
#
# <details><summary>For teachers</summary>
#
# Plan two hours for 01 and 02. Misconceptions to expect: that a network "needs fp32", that bf16 is "fp16 with
# a larger range" at no cost (it has three bits less), that a synthetic result says something about patients. Let the
# class do exercise 4 in pairs and defend the answer: that is where they begin to look.
# </details>

# %% [markdown]
# ## 1. The tools
#
# Results depend on versions, so the first output of the series is a list of them. `torch` computes, `nibabel` reads
# NIfTI files, `blosc2` compresses, `monai` is the medical imaging library that our own code is tested against.

# %%
from brats_helpers.lessons.session import package_versions

for name, version in package_versions().items():
    print(f"{name:<12} {version}")

# %% [markdown]
# ## 2. The device
#
# Five words in advance, all of which come back later: *weights* are the numbers that a network learns, the *loss* says how
# wrong its answer is, the *gradient* how to change each weight to lower it; a *voxel* is a pixel in 3D; a *patch* is the
# cube of voxels that is shown at once, and its *edge* is its width in voxels.
#
# A network multiplies matrices, and hardware multiplies short numbers faster than long ones. Two short formats are in
# use. **fp16** has 10 bits after the point and a small range: gradients below about 6e-8 vanish, so the loss has to be
# scaled up first (Micikevicius et al. 2018). **bf16** has the range of fp32 and 7 bits after the point: nothing to
# scale.
#
# | device | multiplies quickly | the series uses |
# |---|---|---|
# | NVIDIA T4 (capability 7.5) | fp16 | fp16 with a scaler |
# | NVIDIA P100 (6.0) | fp16, at best twice as fast as fp32: no tensor cores | fp16 with a scaler |
# | A100, H100 and later (8.0 and up) | fp16, bf16 | bf16 |
# | CPU with AMX or AVX512-BF16 | bf16 | bf16 |
# | any other CPU, Apple's MPS | fp32 | fp32 |
#
# (What each capability has: [CUDA programming guide](https://docs.nvidia.com/cuda/cuda-c-programming-guide/), compute
# capabilities. The P100: 10.6 TFLOPS in fp32, 21.2 in fp16, NVIDIA's Tesla P100 white paper, 2016.)
#
# **Question.** What is 1 + 0.001 in bf16? Decide before you run the cell.

# %%
import torch

for dtype in (torch.float32, torch.float16, torch.bfloat16):
    one, info = torch.tensor(1.0, dtype=dtype), torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    print(f"{str(dtype):<15} smallest {smallest:.0e}, largest {info.max:.0e}", end="")
    print(f", 1 + 0.001 = {(one + 0.001).item():.6f}")

# %% [markdown]
# <details><summary>Why is the last line 1.000000?</summary>
#
# The next bf16 number after 1 is more than 0.001 away, so the step is lost in rounding. That is why weights, their
# averages and the loss stay in fp32, and only the convolutions run in bf16: *mixed* precision.
# </details>
#
# ### Exercise 1: the next number
#
# How large is the smallest bf16 number above 1? (All exercises work like this one: put your answer in the place of the
# solution or the blank, run the cell, and read what the check says. Nothing later depends on it.)
#
# <details><summary>Hint</summary>
#
# Written in binary, 1 is 1.0000000 with seven digits after the point. The next number has a 1 in the last of them.
# </details>

# %% tags=["exercise"]
from brats_helpers.lessons import checks

next_number = 1 + 1 / 2**7  # solution
checks.check_next_bf16(next_number)

# %% [markdown]
# How much faster is the short format here? Multiplying two matrices of 1024 x 1024, the best of five attempts:

# %%
import time

from brats_helpers.lessons.plots import bars


def milliseconds(dtype: torch.dtype, size: int = 1024) -> float:
    """The best of five products of two square matrices."""
    a, times = torch.rand(size, size, dtype=dtype, device=device.torch_device), []
    for _ in range(5):
        begin = time.perf_counter()
        (a @ a).sum().item()
        times.append(1000 * (time.perf_counter() - begin))
    return min(times)


rates = {str(d).removeprefix("torch."): milliseconds(d) for d in {torch.float32, device.dtype}}
bars(rates, "milliseconds for one product", "ms", title=device.name)

# %% [markdown]
# Which of these the module chose for this device, and why, stands in the line that the first cell printed. If a GPU is
# there that the installed torch was not built for, the module says so by name and uses the CPU, instead of failing in
# the middle of notebook 05.
#
# ## 3. The settings
#
# One frozen dataclass holds everything that decides a result. It is written into every checkpoint, so that a network
# can always be rebuilt from its file. This is its source, as it stands in the module:

# %%
import inspect

from IPython.display import Code

from brats_helpers.basics import config as settings

text = inspect.getsource(settings.Config)
Code(text[: text.index("def __post_init__")], language="python")

# %% [markdown]
# A **preset** is a choice of all of them for one kind of machine; the parameters at the top change single ones. The
# network and its training follow NVIDIA's entry to BraTS 2021 (Futrega et al. 2021). Where this series says NVIDIA's
# *text*, it means that paper and the words of its [notebook](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/notebooks/BraTS21.ipynb);
# its *code* is the [program](https://github.com/NVIDIA/DeepLearningExamples/tree/master/PyTorch/Segmentation/nnUNet)
# beside it. The two differ here and there, and then we say which we follow.

# %%
config = settings.preset(preset).with_(
    seed=seed, patients=patients, test_patients=test_patients, spacing_mm=spacing_mm
)
config

# %% [markdown]
# A setting that cannot work is refused at once, with the reason. The quick network works at four resolutions, its
# *levels*, so it halves its input three times. **Question.** Can its patch be 60 voxels wide?

# %%
from brats_helpers.basics.errors import BratsError

try:
    settings.preset("quick").with_(patch=60)
except BratsError as error:
    print(error)

# %% [markdown]
# ### Exercise 2: patches that fit
#
# Which of these six edges can the quick network take?
#
# <details><summary>Hint</summary>
#
# Halve each one three times. All three results must be whole numbers, and the last must be more than 1, because a
# single voxel cannot be normalized (notebook 04). Powers of two are not the only ones.
# </details>

# %% tags=["exercise"]
candidates = [8, 48, 60, 64, 72, 90]
they_fit = [48, 64, 72]  # solution
checks.check_patches(they_fit, candidates)

# %% [markdown]
# ## 4. The patients
#
# A glioma is a tumor that grows from the brain's supporting cells. The training part of BraTS 2021 has 1,251 patients with
# glioma; their outlines were made by algorithms, corrected by hand and approved by neuroradiologists (Baid et al. 2021).
# The download asks for a [registration](https://www.synapse.org/brats2021), so this series carries a stand-in: **phantoms**,
# tumors grown by a few rules in the MNI152 template of the human brain (Fonov et al. 2011), in files, labels and
# geometry like BraTS's. They are for learning and testing. Nothing that is measured on them says how well a network would do on a real patient, and every picture of
# them says *synthetic*.
#
# To use real data, give its archive or folder as `source`; nothing else changes. The source `wide` is synthetic, too, but its
# patients differ from each other as scanners and tumors do: harder to learn, and nearer to real ones (the README says how near).

# %%
from brats_helpers.data.archive import is_archive, list_archive, resolve_source, summarize
from brats_helpers.phantoms.kinds import LOOKS
from brats_helpers.phantoms.archive import build_cohort

synthetic = source in LOOKS
if synthetic:
    numbers = (config.seed, config.patients, config.test_patients, config.spacing_mm)
    training, test = build_cohort(work / "data", *numbers, kind=source)
else:
    training, test = resolve_source(Path(source)), None
print(training, test, sep="\n")

# %% [markdown]
# ### One patient, four contrasts
#
# An MRI scanner can weight its picture in different ways, and a tumor shows itself in none of them completely. (The
# *ventricles* are the chambers in the middle of the brain, filled with fluid, the CSF. *Edema* is tissue swollen with water;
# *necrotic* tissue is dead. *Gadolinium* is a contrast agent injected into a vein, and T1CE is T1 after it.)
#
# | contrast | CSF is | what a radiologist reads from it |
# |---|---|---|
# | **FLAIR** | dark, suppressed | edema and infiltrated tissue, bright |
# | **T1** | dark | anatomy: white matter brighter than gray |
# | **T1CE** | dark | where gadolinium crosses a damaged blood-brain barrier: *enhancing* tumor, often a rim (normal vessels are bright, too) |
# | **T2** | bright | CSF, edema, cysts and most of the tumor, bright |
#
# The outline has three labels: **NCR**, the necrotic core, in earlier years together with the part that does not enhance;
# **ED**, the edema around it, into which tumor cells grow that MRI cannot tell from it; and **ET**, the enhancing tumor. BraTS
# scores three nested regions made of them: the whole tumor **WT** (all three), the tumor core **TC** (NCR and ET), and ET
# (all of this: Menze et al. 2015; Baid et al. 2021).

# %% tags=["readme"]
from brats_helpers.phantoms.patient import make_patient
from brats_helpers.lessons.plots import show_modalities

patient = make_patient(config.seed, 0, config.spacing_mm)  # synthetic, whatever the source
show_modalities(patient, synthetic=True)

# %% [markdown]
# The upper row shows the four images as BraTS hands them out: laid over each other, resampled to one grid, without the
# skull. The lower row has the **reference**, the approved outline, over it. Pictures follow the radiologist's
# [convention](https://nipy.org/nibabel/neuro_radio_conventions.html): the patient's right (R) is on the left.
#
# **Question.** Which compartment is bright on T1CE only? Which one would you miss if you had FLAIR alone?
#
# <details><summary>Answer</summary>
#
# In this phantom the enhancing rim is bright on T1CE only. (In patients one compares T1CE with T1, because blood is bright
# on both.) Inside the edema FLAIR does not tell enhancing tumor from necrosis. The network gets all four.
# </details>

# %%
show_modalities(patient, plane="sagittal", synthetic=True)

# %% [markdown]
# The same brain from the side: A is the front, P the back. The tumor is one body, and a network that looks at one slice
# at a time would have to find it anew in each. This one looks at volumes.
#
# ### Where is it?

# %%
from brats_helpers.lessons.plots import tumor_3d, upright

labels, brain = (upright(v, patient.affine) for v in (patient.reference, patient.images[0] > 0))
tumor_3d(labels, brain, patient.spacing, patient.name, synthetic=True)

# %% [markdown]
# Now you have seen one patient from all sides. Here is another, the four contrasts in an order that nobody tells you:

# %%
import numpy as np

from brats_helpers.basics.constants import MODALITIES
from brats_helpers.lessons.plots import compare_slices

quiz = make_patient(config.seed, 2, config.spacing_mm)
order = [MODALITIES[i] for i in (2, 0, 3, 1)]  # look away
shown = [upright(quiz.images[MODALITIES.index(name)], quiz.affine) for name in order]
at = int((upright(quiz.reference, quiz.affine) > 0).sum((0, 1)).argmax())
compare_slices(dict(zip("ABCD", shown)), index=at, spacing=quiz.spacing, synthetic=True)

# %% [markdown]
# ### Exercise 3: read the contrasts
#
# Name A, B, C and D.
#
# <details><summary>Hint</summary>
#
# First look for bright fluid in the ventricles: only one contrast has it. Then for the bright rim. Of the two that are
# left, one shows the edema bright.
# </details>

# %% tags=["exercise"]
answer = ["t1ce", "flair", "t2", "t1"]  # solution
checks.check_contrasts(answer, order)

# %% [markdown]
# ### The same seed gives the same patient
#
# Reproducibility is not a wish here, it is checked: two calls with the same numbers give the same voxels, and another
# index gives another patient.

# %%
again, other = (make_patient(config.seed, index, config.spacing_mm) for index in (0, 1))
assert np.array_equal(again.images, patient.images)
assert np.array_equal(again.reference, patient.reference)
assert not np.array_equal(other.images, patient.images)
print("same seed, same voxels; another index, another patient")

# %% [markdown]
# Patients are not alike, though, not even their brightness:

# %%
names = [make_patient(config.seed, index, config.spacing_mm) for index in range(1, 5)]
flair = {p.name: upright(p.images[0], p.affine) for p in names}
compare_slices(flair, spacing=patient.spacing, synthetic=True, title="FLAIR, middle slice")

# %% [markdown]
# The tissue is the same and the numbers are not: MRI has no unit (Nyúl and Udupa 1999). Notebook 03 deals with that. A
# histogram shows it, too, and how much the tissues of one patient overlap:

# %%
from brats_helpers.lessons.plots import histograms

histograms(patient.images, patient.reference, "intensity", synthetic=True)

# %% [markdown]
# **Question.** Could a threshold on a single contrast find the edema?
#
# <details><summary>Answer</summary>
#
# Not well: on every contrast its intensities overlap with those of healthy brain. Notebook 05 measures how far a
# threshold gets, and that number is what the network has to beat.
# </details>
#
# ## 5. Will it fit?
#
# Notebook 03 stores five arrays for every patient, the four contrasts and the reference, cut to a box around the brain. Take
# one of 140 x 175 x 140 voxels of 1 mm, which is about usual.
#
# ### Exercise 4: the bill
#
# How many GB are five such arrays for all 1,251 patients as 32-bit floating point?
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
# Kaggle keeps 20 GB ([its documentation](https://www.kaggle.com/docs/notebooks)). Here a prepared patient keeps the
# integers of the published files, compressed without loss; notebook 03 shows how, and counts. The budget of this run, from sizes that were measured with this module:

# %%
from brats_helpers.data.cases import find_cases
from brats_helpers.lessons.session import disk_budget
from brats_helpers.basics.device import where_am_i
from brats_helpers.training.stages import FEW, PHANTOMS

packed = is_archive(training)
found = summarize(list_archive(training)) if packed else find_cases(training)
everyone = len(found) + (config.test_patients if test else 0)
few = PHANTOMS if not synthetic and everyone < FEW else 0  # notebook 05 then learns from phantoms first
budget = disk_budget(config, everyone, work, packed and where_am_i() != "kaggle", few)
print(", ".join(f"{name} {value:.2f}" for name, value in budget.items() if name != "fits"))
if not budget["fits"]:
    print("WARNING: that is more than is free: choose another work folder, or fewer patients.")

# %%
sizes = {name: budget[f"{name}_gb"] for name in ("raw", "prepared", "other")}
bars(sizes, f"GB that the series will write for {everyone} patients", "GB")

# %% [markdown]
# ## 6. Save and verify
#
# The next notebooks read these two files and nothing from this one's memory.

# %%
from brats_helpers.data.cohort import write_source

write_source(work, config, source, training, test, synthetic=source in LOOKS)
assert settings.Config.load(work / "config.json") == config
print(f"wrote config.json ({config.preset}, seed {config.seed}) and cohort.json")
print("next: 02_extraction reads both")

# %% [markdown]
# ## Recap
#
# - The device decides the precision: bf16 where it is native, fp16 with loss scaling on older GPUs, fp32 elsewhere.
# - One dataclass holds the settings; a checkpoint carries them.
# - Four contrasts show four sides of a tumor; three labels make three regions.
# - The default cohort is synthetic: honest for learning the craft, silent about real patients.
#
# | term | meaning |
# |---|---|
# | mixed precision | short numbers for products, long ones for sums and weights |
# | preset | all settings at once, for one kind of machine |
# | phantom | an artificial patient whose truth is known |
# | contrast, modality | one way of weighting an MRI picture |
# | voxel, patch | a pixel in 3D; the cube of voxels that a network is shown at once |
# | WT, TC, ET | whole tumor, tumor core, enhancing tumor: nested regions |
#
# ## When it goes wrong
#
# - *"not built for the ... GPU"*: choose another accelerator, or another torch.
# - *"WARNING: that is more than is free"*: lower `patients`, or set `work` to a larger disk.
# - *"no patient in ..."*: the message lists the names that were looked for.
#
# ## Read on
#
# Baid et al. 2021, *The RSNA-ASNR-MICCAI BraTS 2021 benchmark*,
# [arXiv:2107.02314](https://arxiv.org/abs/2107.02314). Futrega et al. 2021, *Optimized U-Net for brain tumor
# segmentation*, [arXiv:2110.03352](https://arxiv.org/abs/2110.03352). Menze et al. 2015, *The multimodal brain tumor image
# segmentation benchmark*, https://doi.org/10.1109/TMI.2014.2377694. Nyúl and Udupa 1999, *On standardizing the MR image
# intensity scale*, Magnetic Resonance in Medicine 42. Micikevicius et al. 2018, *Mixed precision training*,
# [arXiv:1710.03740](https://arxiv.org/abs/1710.03740). Fonov et al. 2011, *Unbiased average age-appropriate atlases for
# pediatric studies*, NeuroImage 54 (the template).
#
# **Next:** [02 Extraction](02_extraction.ipynb) opens the archive.
