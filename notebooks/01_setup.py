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
# | takes | about a minute on two CPU cores (quick preset) |
#
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
source: str = "phantom"  # "phantom", or the path of an archive or folder of BraTS patients
seed: int = 0  # of the synthetic cohort, the split and the training
patients: int = None  # phantoms to learn from; None: the preset's number
test_patients: int = (
    None  # phantoms that nothing sees before the last evaluation; None: the preset's number
)
spacing_mm: float = None  # voxel size that the network works at, in mm; None: the preset's

# %%
# Find the module beside the notebooks; say which machine this is.
import sys
from pathlib import Path

sys.path[:0] = [
    str(p) for p in (Path.cwd(), *Path.cwd().parents) if (p / "brats_helpers").is_dir()
][:1]
from brats_helpers.device import start

work, device = start(work)

# %% [markdown]
# ## 1. The tools
#
# Results depend on versions, so the first output of the series is a list of them. `torch` computes, `nibabel` reads
# NIfTI files, `blosc2` compresses, `monai` is the medical imaging library that our own code is tested against.

# %%
from brats_helpers.device import package_versions

for name, version in package_versions().items():
    print(f"{name:<12} {version}")

# %% [markdown]
# ## 2. The device
#
# A network multiplies matrices, and hardware multiplies short numbers faster than long ones. Two short formats are in
# use. **fp16** has 10 bits of precision and a small range: gradients below about 6e-8 vanish, so the loss has to be
# scaled up first (Micikevicius et al. 2018). **bf16** has the range of fp32 and 7 bits of precision: nothing to scale.
#
# | device | multiplies quickly | the series uses |
# |---|---|---|
# | NVIDIA T4 (capability 7.5) | fp16 | fp16 with a scaler |
# | NVIDIA P100 (6.0) | fp16, at best twice as fast as fp32: no tensor cores | fp16 with a scaler |
# | A100, H100 and later (8.0 and up) | fp16, bf16 | bf16 |
# | CPU with AMX or AVX512-BF16 | bf16 | bf16 |
# | any other CPU, Apple's MPS | fp32 | fp32 |
#
# *Predict:* what is 1 + 0.001 in bf16?

# %%
import torch

for dtype in (torch.float32, torch.float16, torch.bfloat16):
    info = torch.finfo(dtype)
    one = torch.tensor(1.0, dtype=dtype)
    print(
        f"{str(dtype):<15} smallest {info.smallest_normal * info.eps:.0e}  largest {info.max:.0e}  1 + 0.001 = {(one + 0.001).item():.6f}"
    )

# %% [markdown]
# <details><summary>Why is the last line 1.000000?</summary>
#
# The next bf16 number after 1 is 1 + 1/128. A step of 0.001 is lost in rounding. That is why weights, their averages
# and the loss stay in fp32, and only the convolutions run in bf16: *mixed* precision.
# </details>

# %%
import time


def milliseconds(dtype: torch.dtype, size: int = 1024) -> float:
    """The best of five products of two square matrices."""
    a, times = torch.rand(size, size, dtype=dtype, device=device.torch_device), []
    for _ in range(5):
        begin = time.perf_counter()
        (a @ a).sum().item()
        times.append(1000 * (time.perf_counter() - begin))
    return min(times)


rates = {str(d).removeprefix("torch."): milliseconds(d) for d in {torch.float32, device.dtype}}
print({name: f"{ms:.1f} ms" for name, ms in rates.items()})

# %%
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(5, 1.4))
ax.barh(list(rates), list(rates.values()), color="#0072B2")
ax.set(xlabel="milliseconds for a 1024 x 1024 matrix product", title=device.name)
plt.show()

# %% [markdown]
# Which of these the module chose for this device, and why, stands in the line that the first cell printed. If a GPU is
# there that the installed torch was not built for, the module says so by name and uses the CPU, instead of failing in
# the middle of notebook 05.
#
# ## 3. The settings
#
# One frozen dataclass holds everything that decides a result. It is written into every checkpoint, so that a network
# can always be rebuilt from its file. This is its source:

# %%
import inspect

from IPython.display import Code, display

from brats_helpers import config as settings

display(
    Code(
        "".join(inspect.getsource(settings.Config).splitlines(keepends=True)[:40]),
        language="python",
    )
)

# %%
from brats_helpers.config import preset as preset_named

config = preset_named(preset).with_(
    seed=seed, patients=patients, test_patients=test_patients, spacing_mm=spacing_mm
)
config

# %% [markdown]
# A setting that cannot work is refused at once, with the reason. *Predict:* the quick network halves its input three
# times. Which patch sizes can it take?

# %%
from brats_helpers.errors import BratsError

try:
    config.with_(patch=60)
except BratsError as error:
    print(error)

# %% [markdown]
# ## 4. The patients
#
# BraTS 2021 has 1,251 patients with glioma whose tumors experts have outlined (Baid et al. 2021). It needs a
# registration, so this series carries a stand-in: **phantoms**, tumors grown by a few rules in the MNI152 template of
# the human brain and written exactly as BraTS writes its patients. They are for learning and testing. Nothing that is
# measured on them says how well a network would do on a real patient, and every picture of them says *synthetic*.
#
# To use real data, give its archive or folder as `source`; nothing else changes.

# %%
from brats_helpers.archive import is_archive, list_archive, resolve_source, summarise
from brats_helpers.phantom import build_cohort

synthetic = source == "phantom"
if synthetic:
    training, test = build_cohort(
        work / "data", config.seed, config.patients, config.test_patients, config.spacing_mm
    )
else:
    training, test = resolve_source(Path(source)), None
print(training, test, sep="\n")

# %% [markdown]
# ### One patient, four contrasts
#
# An MRI scanner can weight its picture in different ways, and a tumor shows itself in none of them completely:
#
# | contrast | fluid is | what one reads from it |
# |---|---|---|
# | **FLAIR** | dark | edema, bright, without the glare of the ventricles |
# | **T1** | dark | anatomy: white matter brighter than grey |
# | **T1CE** | dark | where gadolinium leaks out of damaged vessels: the *enhancing* rim |
# | **T2** | bright | everything that holds water |
#
# The expert's outline has three labels: **NCR**, the necrotic and non-enhancing core; **ED**, the edema around it; and
# **ET**, the enhancing tumor (Baid et al. 2021, section 2.2).

# %% tags=["readme"]
from brats_helpers.phantom import make_patient
from brats_helpers.plots import show_modalities

patient = make_patient(config.seed, 0, config.spacing_mm)  # synthetic, whatever the source
show_modalities(patient, synthetic=True)

# %% [markdown]
# *Look:* which compartment is bright on T1CE only? Which one would you miss if you had FLAIR alone?
#
# <details><summary>Answer</summary>
#
# The enhancing rim is bright on T1CE only. On FLAIR the core is grey or dark, so a reader of FLAIR alone would see the
# edema as a ring and could not tell what is inside it. The network gets all four.
# </details>
#
# ### The same seed gives the same patient
#
# Reproducibility is not a wish here, it is checked: two calls with the same numbers give the same voxels, and another
# index gives another patient.

# %%
again, other = (
    make_patient(config.seed, 0, config.spacing_mm),
    make_patient(config.seed, 1, config.spacing_mm),
)
assert (again.images == patient.images).all() and (again.reference == patient.reference).all()
assert (other.images != patient.images).any()
print("same seed, same voxels; another index, another patient")

# %%
from brats_helpers.plots import compare_slices

names = [make_patient(config.seed, index, config.spacing_mm) for index in range(1, 5)]
compare_slices(
    {p.name: p.images[0] for p in names},
    spacing=patient.spacing,
    synthetic=True,
    title="FLAIR of four more patients, middle slice",
)

# %% [markdown]
# ## 5. Will it fit?
#
# Five channels of floating point for 1,251 patients fill more than 60 GB, on platforms that keep 20. Here a
# prepared patient keeps the scanner's integers, compressed without loss; notebook 03 shows how and counts. The budget,
# from the sizes that were measured with this module:

# %%
from brats_helpers.cases import find_cases
from brats_helpers.device import disk_budget

found = summarise(list_archive(training)) if is_archive(training) else find_cases(training)
budget = disk_budget(
    config, len(found) + (config.test_patients if test else 0), work, unpack=is_archive(training)
)
print(
    f"{len(found)} patients to learn from; "
    + ", ".join(f"{k} {v:.2f}" for k, v in budget.items() if k != "fits")
)
if not budget["fits"]:
    print(
        f"WARNING: {budget['needed_gb']:.1f} GB are needed and {budget['free_gb']:.1f} GB are free: choose another "
        "work folder, or fewer patients."
    )

# %%
sizes = {name: budget[f"{name}_gb"] for name in ("raw", "prepared", "other")}
figure, ax = plt.subplots(figsize=(6, 1.2))
left = 0
for (name, size), colour in zip(sizes.items(), ("#0072B2", "#009E73", "#E69F00")):
    ax.barh([""], [size], left=left, color=colour, label=f"{name} ({size:.2f} GB)")
    left += size
ax.set(xlabel="GB", title="what the series will write")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1.3))
plt.show()

# %% [markdown]
# ## 6. Save and verify
#
# The next notebooks read these two files and nothing from this one's memory.

# %%
from brats_helpers.cohort import write_source
from brats_helpers.config import Config

write_source(work, config, source, training, test)
assert Config.load(work / "config.json") == config
print(
    f"wrote config.json ({config.preset}, seed {config.seed}) and cohort.json\nnext: 02_extraction reads both"
)

# %% [markdown]
# ## Recap
#
# - The device decides the precision: bf16 where it is native, fp16 with loss scaling on older GPUs, fp32 elsewhere.
# - One dataclass holds the settings; a checkpoint carries them.
# - The default cohort is synthetic: honest for learning the craft, silent about real patients.
#
# **When it goes wrong.** *"not built for the ... GPU"*: choose another accelerator, or another torch. *"WARNING: ... GB
# are needed"*: lower `patients`, or set `work` to a larger disk. *"no patient in ..."*: the message lists the names
# that were looked for.
#
# **Read on.** Baid et al. 2021, *The RSNA-ASNR-MICCAI BraTS 2021 benchmark*, arXiv:2107.02314. Micikevicius et al. 2018,
# *Mixed precision training*, arXiv:1710.03740. Fonov et al. 2011, *Unbiased average age-appropriate atlases for pediatric
# studies*, NeuroImage 54 (the template).
#
# **Next:** [02 Extraction](02_extraction.ipynb) opens the archive.
