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
# # 02 Extraction
#
# We open an archive, check and count its patients, and split them so that no person is on both sides.
#
# **02 of 05** | back: [01 Setup](01_setup.ipynb) | next: [03 Preprocessing](03_preprocessing.ipynb)
#
# | | |
# |---|---|
# | reads | `config.json`, `cohort.json` and the archive or folder that they name |
# | writes | `cases/`, `patients.json`, `splits.json` in the work folder |
# | takes | 1 minute on two CPU cores (quick preset, [measured](../docs/costs.md)); about 50 minutes to read and to do the exercises |
#
# ## By the end you can
#
# - **list** an archive without unpacking it, and refuse a dangerous one;
# - **read** a NIfTI header: shape, voxel size, orientation;
# - **check** a cohort before you trust it;
# - **split** patients without leakage, and recognize a score that leaked.
#
# You need notebook 01.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
work: str = ""  # folder that notebook 01 wrote to; empty: the usual place on this machine
unpack: bool = (
    None  # write an archive's files to disk; None: yes, except on Kaggle, where room is short
)
on_error: str = "raise"  # a patient with a problem: "raise" stops here, "skip" leaves the patient out and says so
persons: str = ""  # a CSV with the columns patient and person, if the names do not tell who came twice

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
from brats_helpers.basics import Config
from brats_helpers.data import read_source
from brats_helpers.lessons import series_map

config = Config.load(work / "config.json")
cohort = read_source(work)
synthetic = cohort["synthetic"]
print(f"{cohort['source']}: {cohort['training']}")
series_map(2)

# %% [markdown]
# <details><summary>For teachers</summary>
#
# The split is the most important part of this notebook. Ask who has seen slices shuffled and split at random, and which
# scores that gave. Common misconceptions: the first voxel is at the origin; labels are quantities; more patients make up
# for leakage.
# </details>

# %% [markdown]
# ## 1. What is in the box?
#
# A **tar** file is a chain. A header of 512 bytes names a file and its size. The content follows, then the next header,
# and so on. The tar itself is not compressed, but each scan inside it is. So listing it costs almost nothing: read a
# header, skip the content, read the next header.
#
# **Question.** How many files does a patient have in BraTS?

# %%
from brats_helpers.data import extract, is_archive, list_archive, summarize_archive

places = [Path(cohort[key]) for key in ("training", "test") if cohort[key]]
for archive in filter(is_archive, places):
    files = list_archive(archive)
    size = sum(file.size for file in files) / 1e6
    print(f"{archive.name}: {len(files)} files, {len(summarize_archive(files))} patients, {size:.1f} MB; first {files[0].name}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Five: `_flair`, `_t1`, `_t1ce`, `_t2` and, where the tumor has been outlined, `_seg`. Since
# [2023](https://www.synapse.org/Synapse:syn51156910) the same files end in `-t2f`, `-t1n`, `-t1c`, `-t2w` and `-seg`.
# </details>
#
# An archive from the internet can name a file `../../.bashrc`, or contain a link that leads out of the folder.
# `list_archive` refuses such an archive before a single byte is written. We build one and try:

# %%
import io
import tarfile
import tempfile

from brats_helpers.basics import BratsError

with tempfile.TemporaryDirectory() as folder:
    hostile = Path(folder) / "hostile.tar"
    with tarfile.open(hostile, "w") as tar:
        info = tarfile.TarInfo("../escaped_flair.nii.gz")
        tar.addfile(info, io.BytesIO())
    try:
        list_archive(hostile)
    except BratsError as error:
        print(str(error).replace(folder, "..."))

# %% [markdown]
# ## 2. Unpack, and stop at any time
#
# Each file is written under a temporary name and renamed when it is complete. A file of the right size is skipped. So you
# can stop the cell below at any moment and run it again. If the source is a folder, it is used in place, without a second
# copy. With `unpack=False`, a plain tar is not unpacked either, and each scan is read straight from it.

# %%
from brats_helpers.basics import where_am_i
from brats_helpers.data import find_patients, list_unused, readable_in_place

folders = {key: cohort[key] and Path(cohort[key]) for key in ("training", "test")}
keep_packed = where_am_i() == "kaggle" if unpack is None else not unpack
for key, path in folders.items():
    if path and is_archive(path) and not (keep_packed and readable_in_place(path)):
        extract(path, work / "cases" / key)
        folders[key] = work / "cases" / key
found = {key: find_patients(folder) for key, folder in folders.items() if folder}
cases = {key: found[key].cases if key in found else [] for key in folders}
print({key: f"{len(group)} patients" for key, group in cases.items()})
print(*(list_unused(one.unused) for one in found.values() if one.unused), sep="\n")

# %% [markdown]
# ## 3. Inside one scan
#
# **NIfTI** is the research format of neuroimaging: one file is one volume, a header of 348 bytes and the voxels. The most
# important part of the header is the **affine**, a 4 x 4 matrix that turns voxel indices into millimeters: `x` to the
# right, `y` to the front, `z` up. (All BraTS brains were *registered* to one brain, the atlas: turned and shifted to lie
# on it.)

# %%
import nibabel as nib
import numpy as np

from brats_helpers.data import check_case, find_cases, on_disk

sane = (c for c in cases["training"] if c.reference and not check_case(c)["problems"])
first = next(sane, None)
if first is None:
    raise BratsError("no patient with a reference can be read: see `brats_helpers predict`.")
first = on_disk(first, work / "cases" / "first")  # own files, if the scans lie in a tar
scan = nib.load(first.images[0])
edges = [float(edge) for edge in scan.header.get_zooms()[:3]]
print(f"{scan.shape}, {scan.get_data_dtype()}, {edges} mm, to {nib.aff2axcodes(scan.affine)}")
print(scan.affine)

# %% [markdown]
# The minus signs matter. The first *index* grows to the patient's **L**eft, the second to the back (**P**osterior), the
# third up (**S**uperior). Here, LPS always describes how array indices grow. (In DICOM and ITK, it describes the axes of
# the millimeters.) **Question.** Where in the patient is voxel (0, 0, 0)?

# %%
corner = scan.affine @ [0, 0, 0, 1]
opposite = scan.affine @ [*(n - 1 for n in scan.shape[:3]), 1]
print(f"first voxel at {corner[:3]} mm, last voxel at {opposite[:3]} mm")

# %% [markdown]
# <details><summary>Answer</summary>
#
# At the right, front, bottom corner of the box: every index grows away from it. Radiologists view an axial slice as if
# from the feet of a patient lying on their back, so the patient's right is on the left of the picture ([the two
# conventions](https://nipy.org/nibabel/neuro_radio_conventions.html)). This series draws all slices that way. 
# </details>
#
# ### Exercise 1: from index to millimeter
#
# Where, in mm, is the voxel with the indices (10, 20, 30)? Give three numbers.
#
# <details><summary>Hint</summary>
#
# `scan.affine @ [i, j, k, 1]` gives four numbers; the last of them is always 1.
# </details>

# %% tags=["exercise"]
from brats_helpers.lessons import checks

position = (scan.affine @ [10, 20, 30, 1])[:3]  # solution
checks.check_position(position, scan.affine, (10, 20, 30))

# %% [markdown]
# Here is the patient, in the plane that radiologists call axial. Then the same voxels, cut along the coronal plane and
# seen from the front:

# %%
from IPython.display import display

from brats_helpers.data import read_case
from brats_helpers.lessons import show_modalities

patient = read_case(first)
display(show_modalities(patient, synthetic=synthetic))
show_modalities(patient, plane="coronal", synthetic=synthetic)

# %% [markdown]
# ### Where it came from: DICOM
#
# A scanner writes **DICOM**, usually one file per slice. In a hospital, each of these files usually carries the patient's
# name, the date of birth and the name of the hospital. BraTS was converted and de-identified before it was published
# (Baid et al. 2021). To try that, we write this patient's FLAIR as DICOM with an invented name, and convert it back:

# %%
import pydicom

from brats_helpers.data import convert_series, write_series

with tempfile.TemporaryDirectory() as folder:
    pixels = np.clip(patient.images[0], 0, 32767).astype(np.int16)
    slices = write_series(
        pixels,
        patient.affine,
        Path(folder) / "scan",
        PatientName="Doe^Jane",
        PatientBirthDate="19700102",
    )
    header = pydicom.dcmread(slices[40 % len(slices)])
    convert_series(Path(folder) / "scan", Path(folder) / "flair.nii.gz")
    converted = nib.load(Path(folder) / "flair.nii.gz")
    assert np.array_equal(converted.dataobj, pixels)
    assert np.allclose(converted.affine, patient.affine, atol=1e-3)

for keyword in ("PatientName", "PatientBirthDate", "ImagePositionPatient", "PixelSpacing"):
    print(f"{keyword:<22}{header[keyword].value}")
fields = ("descrip", "aux_file", "db_name")
words = {field: bytes(converted.header[field]).strip(b"\0") for field in fields}
print(f"{len(slices)} files became one; text in its header: {words}")

# %% [markdown]
# Position, orientation and spacing of the slices became the affine. Nothing else came along: no name, no date. DICOM's
# millimeters grow to the *left*, the *back* and up, so x and y change their sign on the way, a classic source of mirrored
# brains. A mirrored mask can send a surgeon to the wrong side, and nothing in the array warns of it. The image itself can
# identify a person: people have been recognized by the face in a head scan (Schwarz et al. 2019). In the scans of BraTS,
# skull and face have been removed.
#
# ### Label 4
#
# **Question.** Which values are in the reference's file?

# %%
on_disk = np.asarray(nib.load(first.reference).dataobj)
print("on disk:", np.unique(on_disk), " in this project:", np.unique(patient.reference))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Read the first list above: 4 is there, and 3 is not.
# </details>
#
# BraTS 2017 to 2021 number the enhancing tumor **4**, and no label is 3. A network with one output per number up to 4
# would have an output without a class. So inside this project 4 becomes 3, and every mask that we export for such data
# has 4 again. Other data sets use the numbers differently, and a mask does not say where it comes from. So the names of
# the patients (or a `dataset.json`) decide, and a label with an uncertain meaning is refused:

# %%
from brats_helpers.data import label_table

print(label_table())

# %% [markdown]
# "Refused" means that no class here fits for certain, so a patient with this label has a problem. The row of BraTS 2017
# to 2021 also takes 3 for ET, because many copies of these sets are renumbered. Since 2024, label 4 in the sets after
# treatment is the resection cavity, the hole that surgery left. In the pediatric sets, label 2 is tumor that does not
# enhance and 3 is a cyst. Both become NCR here. (The pediatric set of 2023 may use 1 NCR, 2 ED, 3 ET, and a name does not
# tell the year. If no pediatric patient has a 4, a warning says that this may be such a set.) GLI is glioma, PED
# pediatric, MEN meningioma (RT: for radiotherapy), MET metastases, SSA sub-Saharan Africa. GoAT mixes these sets, to test
# generalization across tumors.
#
# **What published code gets wrong.** [NVIDIA's
# notebook](https://github.com/NVIDIA/DeepLearningExamples/blob/master/PyTorch/Segmentation/nnUNet/notebooks/BraTS21.ipynb)
# names label 1 edema and label 2 non-enhancing tumor in the file that it writes. BraTS says 1 is the necrotic core, with
# the parts of the core that do not enhance, and 2 is edema with infiltrating tumor (Baid et al. 2021). **Question.** In
# the pictures of this patient, which compartment is the outermost, and what is its number?
#
# <details><summary>Answer</summary>
#
# The edema, label 2 in BraTS. The first task of the Medical Segmentation Decathlon has the same tumors, and uses 1 for
# edema and 2 for non-enhancing tumor (Antonelli et al. 2022). NVIDIA's names fit that set, so they may come from there.
# </details>
#
# ### Exercise 2: ready for export
#
# Write the export: a function that turns labels 0, 1, 2, 3 into 0, 1, 2, 4 and leaves its input unchanged.
#
# <details><summary>Hint</summary>
#
# `np.where(condition, a, b)` makes a new array.
# </details>


# %% tags=["exercise"]
def to_disk(labels: np.ndarray) -> np.ndarray:
    """Labels as BraTS 2021 writes them."""
    return np.where(labels == 3, 4, labels)  # solution


checks.check_to_disk(to_disk)

# %% [markdown]
# What if you forget that 4 means ET when you *read* a mask? Here is the reference as it is on disk, and what you find if
# you look for label 3.

# %%
from brats_helpers.data import slice_with_most_tumor
from brats_helpers.evaluation import dice
from brats_helpers.lessons import pictures, upright

raw = np.asarray(nib.load(first.reference).dataobj)
at = slice_with_most_tumor(upright(patient.reference, patient.affine))
views = {
    "labels as read": upright(raw, patient.affine),
    "ET = label 3": upright(raw == 3, patient.affine),
}
print(f"Dice of the enhancing tumor: {dice(raw == 3, patient.reference == 3):.1f}")
pictures({name: view[:, :, at].T for name, view in views.items()}, synthetic, plane="axial")

# %% [markdown]
# No error, no warning: the class is simply empty. If a prediction is read with the same mistake, both masks are empty,
# and an evaluation that counts this as agreement reports 1.
#
# ## 4. Check every patient
#
# A cohort of a thousand patients has surprises: a file cut short, a modality on another grid, an unknown label. We read
# each patient once, completely. Every problem becomes a sentence in a list.

# %%
from brats_helpers.data import check_cohort, cohort_warnings

rows = {key: check_cohort(group) for key, group in cases.items()}
checked = rows["training"] + rows["test"]
problems = [(row["name"], problem) for row in checked for problem in row["problems"]]
warnings = [text for row in checked for text in row["warnings"]] + cohort_warnings(checked)
alone = [row["name"] for row in checked if not row["reference"]]
print(f"{len(checked)} patients checked, {len(problems)} problem(s)")
print(f"{len(alone)} without a reference, so not used here (`brats_helpers predict` segments them)", *alone)
for name, problem in problems:
    print(f"  {name}: {problem}")
print(*(f"WARNING: {text}" for text in warnings), sep="\n")

# %% [markdown]
# Do the patients without problems agree with each other? A row with one value means that they all do:

# %%
from collections import Counter

everyone = [row for row in checked if not row["problems"]]
for field in ("shape", "spacing_mm", "orientation", "dtype"):
    print(f"{field:<12}", dict(Counter(str(row[field]) for row in everyone)))

# %% [markdown]
# To test the check, we cut a copy of the first patient's T2 in half:

# %%
import shutil

if not first.channels:
    with tempfile.TemporaryDirectory() as folder:
        for path in first.images:
            shutil.copy(path, folder)
        broken = Path(folder) / first.images[3].name
        broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
        print(check_case(find_cases(Path(folder))[0])["problems"][0].replace(folder, "..."))

# %% [markdown]
# Never train on a damaged patient, and never leave one out silently. The series stops here and names the patients. With
# `on_error="skip"` it goes on without them, and the results say who was left out.

# %%
from brats_helpers.data import problems_text

if on_error not in ("raise", "skip"):
    raise BratsError(f"on_error={on_error!r} is not known: give raise or skip.")
if problems and on_error == "raise":
    advice = "repair or remove them, then rerun; or leave them out with on_error=skip"
    said = problems_text(checked)
    raise BratsError(f"{len(problems)} patient(s) have problems: {advice}.\n{said}")
sound = {key: [row for row in rows[key] if not row["problems"]] for key in rows}

# %% [markdown]
# ## 5. How large are the tumors?

# %%
from brats_helpers.lessons import volume_distribution

labeled = [row for row in everyone if row["volumes_ml"]]
whole = {row["name"]: sum(row["volumes_ml"].values()) for row in labeled}
volumes = {row["name"]: whole[row["name"]] for row in sound["training"] if row["volumes_ml"]}
boxes = [np.prod(row["shape"]) * np.prod(row["spacing_mm"]) / 1000 for row in labeled]
share = np.median([100 * whole[row["name"]] / ml for row, ml in zip(labeled, boxes)])
print(f"tumor: {share:.1f}% of the voxels of the median scan, air included")
marked = [ml for ml in whole.values() if ml]
print(f"the largest is {max(marked) / min(marked):.0f} times the smallest")
volume_distribution(labeled, synthetic=synthetic)

# %% [markdown]
# Tumors differ so much in size that we need a logarithmic axis. A purely random split can put most of the large ones on
# one side. Some patients have no enhancing tumor at all ("absent"). There, a single wrong voxel of ET makes the Dice of
# that region 0 (notebook 05).
#
# ### Exercise 3: how many milliliters?
#
# How large is the whole tumor of the first patient, in ml? The labels are `patient.reference`, and the edges of a voxel
# in mm are `patient.spacing`.
#
# <details><summary>Hint</summary>
#
# Count voxels with `np.count_nonzero`. A milliliter is 1,000 mm³, and a voxel need not be 1 mm³.
# </details>

# %% tags=["exercise"]
tumor_ml = np.count_nonzero(patient.reference) * np.prod(patient.spacing) / 1000  # solution
checks.check_tumor_volume(tumor_ml, patient.reference, patient.spacing)

# %% [markdown]
# The line printed above the picture shows how small a share of the voxels is tumor. A network that answers "background"
# everywhere is right about all the rest. A mean over voxels, such as accuracy or cross-entropy (notebook 04), hardly
# notices the tumor. That is why Dice is added to the *loss*, the number that training makes small (Milletari et al.
# 2016).
#
# ### Intensities mean nothing by themselves
#
# MRI intensities have no unit. The axes below are the arbitrary scales of this (here: simulated) scanner, and the next
# one has others (Nyúl and Udupa 1999).

# %%
from brats_helpers.lessons import histograms

histograms(patient.images, patient.reference, "intensity, scanner units", synthetic=synthetic)

# %% [markdown]
# ## 6. Split
#
# We judge a network on patients that it has not seen. Most patients are for training. The others, **validation**, are
# scored again and again during training, and we keep the version of the network that does best on them (a **checkpoint**:
# its weights in a file). We picked it *because* it does well on them, so its score on them is too high. The synthetic
# cohort therefore has a third group in an archive of its own, the **test** set. It decides nothing. The network meets it
# once, at the end of notebook 05.
#
# We split people, never slices: two neighboring slices of one brain are nearly the same picture. A person who is in the
# cohort twice, at another visit or under another name, must not end up on both sides either. So we group visits whose
# names point to the same person, and patients whose scans are identical. If the names do not tell, give a list with the
# parameter `persons`.

# %%
from brats_helpers.data import find_persons, find_twins, make_splits, read_persons

both = cases["training"] + cases["test"]
listed = read_persons(persons, [case.name for case in both]) if persons else {}
person = find_persons([case.name for case in both], listed, find_twins(checked))
tested = {person[row["name"]] for row in sound["test"]}
if leak := [name for name in volumes if person[name] in tested]:
    raise BratsError(f"{leak}: these persons are in the test set, too. Leave them out, then rerun.")

names, sizes = list(volumes), list(volumes.values())
splits = make_splits(names, sizes, config.seed, config.validation, config.folds, person)
print(f"{len(splits['training'])} to learn from, {len(splits['validation'])} to validate on")
print(f"{len(sound['test'])} for the test; {len(splits['folds'])} folds")
print("persons with several scans:", splits["persons"] or "none")

# %% [markdown]
# The split is *stratified* by size: we sort the patients by tumor volume, and from every five neighbors we hold one out
# at random. So both groups have small and large tumors. The **folds** are made in the same way, for a *cross-validation*,
# which trains once per fold and holds that fold out.

# %%
import matplotlib.pyplot as plt

from brats_helpers.lessons import finish

assert not set(splits["training"]) & set(splits["validation"])
assert sorted(splits["training"] + splits["validation"]) == sorted(volumes)
assert sorted(sum(splits["folds"], [])) == sorted(volumes)
assert not {row["name"] for row in sound["test"]} & set(volumes)
print("disjoint, complete, and no test patient among them")

figure, ax = plt.subplots(figsize=(6, 1.8))
for group in ("training", "validation"):
    ax.scatter([volumes[n] for n in splits[group]], [group] * len(splits[group]), alpha=0.6, s=24)
ax.set(xscale="log", xlabel="whole tumor (ml)", ylim=(-0.5, 1.5))
finish(figure, synthetic, alt="Whole tumor volumes of the training and the validation patients")

# %% [markdown]
# ### What if we split visits?
#
# `BraTS-GLI-00005-100` and `-101` are one person at two visits. Take twenty people with three visits each. **Question.**
# If visits are split, how many people end up on both sides?

# %%
visits = [f"BraTS-GLI-{n:05d}-{visit}" for n in range(20) for visit in (100, 101, 102)]
for title, who in (("by visit", {name: name for name in visits}), ("by person", find_persons(visits))):
    split = make_splits(visits, [1.0] * len(visits), config.seed, persons=who)
    sides = [{name.rsplit("-", 1)[0] for name in split[side]} for side in ("training", "validation")]
    print(f"{title}: {len(sides[0] & sides[1])} of 20 people on both sides")
assert not sides[0] & sides[1]

# %% [markdown]
# <details><summary>Answer</summary>
#
# Read the first line above: about half of them. A person is on both sides as soon as one or two of the three visits are
# held out. If people are split, nobody is.
# </details>
#
# ### What if we split slices instead?
#
# Published studies have shuffled slices, and their accuracies fell far when patients were split instead (Yagis et al.
# 2021). We can show why with a machine that knows nothing about tumors. It *copies*: for each held-out slice, it looks
# for the most similar slice in the training set and hands in the mask of that slice.
#
# **Question.** What Dice does the copying machine get when slices are shuffled, and what when patients are split?

# %%
from brats_helpers.lessons import copying_machine, slice_and_neighbor, tumor_slices

some = [case for case in cases["training"] if case.name in volumes][:12]
slices = tumor_slices(some)  # per slice: patient, FLAIR inside the brain, tumor mask
rng = np.random.default_rng(config.seed)
by_slice = rng.random(len(slices)) < 0.2
by_patient = np.isin([piece.patient for piece in slices], [case.name for case in some[: max(1, len(some) // 4)]])
for name, held in (("slices shuffled", by_slice), ("patients split", by_patient)):
    print(f"{name:<16} Dice {copying_machine(slices, held):.2f} on {held.sum()} held-out slices")
pictures(slice_and_neighbor(slices), synthetic, plane="axial")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Shuffled slices give a splendid score, because the neighbor of a held-out slice is in the training set. When patients
# are split, the score of the same machine falls by about half. A score that is too good is the first sign of leakage.
# </details>
#
# ### Exercise 4: find the twin
#
# Somebody sends you a cohort. One patient is in it twice: the scan was exported again under another name, with a little
# noise, and every voxel was multiplied by the same number, so no file is equal to another. Write a function that takes
# {name: volume} and returns the set of the two names.
#
# <details><summary>Hint</summary>
#
# Correlation does not change when one volume is multiplied by a number: `np.corrcoef(a.ravel(), b.ravel())[0, 1]`. All
# brains look alike to some degree, so take the pair with the *highest* correlation.
# </details>


# %% tags=["exercise"]
from itertools import combinations

from brats_helpers.lessons import investigations


def find_twin(cohort: dict[str, np.ndarray]) -> set[str]:
    """The two names under which one patient is in the cohort."""
    def alike(pair):  # solution
        return np.corrcoef(cohort[pair[0]].ravel(), cohort[pair[1]].ravel())[0, 1]  # solution

    return set(max(combinations(cohort, 2), key=alike))  # solution


investigations.check_twin(find_twin)

# %% [markdown]
# ## 7. Play
#
# Click on a slice: the crosshair moves, and the other two planes follow. Then switch the edema off and turn the brain.
# **Question.** In which plane is the border between rim and edema easiest to see?
#
# <details><summary>Answer</summary>
#
# It depends on the tumor, so a radiologist looks at all three planes. A 3D network uses them all at once.
# </details>

# %%
from brats_helpers.lessons import slice_viewer

slice_viewer(patient, synthetic=synthetic)

# %% [markdown]
# ## 8. Save and verify

# %%
from brats_helpers.data import read_cohort, write_patients

write_patients(work, folders, rows, splits)
written = read_cohort(work)
assert written.splits["folds"] == splits["folds"]
assert sorted(written.by_name) == sorted(row["name"] for row in everyone)
print(f"wrote patients.json ({len(everyone)} patients) and splits.json; next: 03_preprocessing")

# %% [markdown]
# ## Recap
#
# - A tar is a chain of headers, so listing it is quick. An unsafe name is refused before anything is written.
# - The affine says which way the indices grow. BraTS is LPS; pictures show the patient's right on the left.
# - On disk ET is 4 (until 2021), inside the project 3. Know your data set's numbers.
# - Split people, never slices or visits, and give each side its share of every tumor size.
#
# **What surprised us:** a machine that only copies gets a splendid Dice if slices are shuffled.
#
# **What a radiologist would check that these checks cannot see:** whether the scan is from before or after surgery,
# whether all four contrasts are from one day, and whether the outline follows the convention that your study needs.
#
# | term | meaning |
# |---|---|
# | affine | 4 x 4 matrix from voxel indices to millimeters |
# | LPS | the indices grow to the left, to the back (posterior) and up (superior) |
# | DICOM, NIfTI | the scanner's files, one per slice; the researcher's file, one per volume |
# | stratified | each group gets its share of small and large tumors |
# | fold | one of several groups of patients, each held out in turn |
# | leakage | something about the patients of the evaluation reaches the training, so that the score is too good |
#
# ## When it goes wrong
#
# - *"is cut short"*: the download stopped; download it again.
# - *"no file for t2"*: the patient is incomplete; add the file, or remove the folder.
# - *"labels [5] are not among"*: the reference is not from BraTS; map it first.
# - *"its affine differs"*: the modalities lie on different grids; register them first.
# - *The enhancing tumor scores 0, or always 1*: somebody forgot label 4 (section 3).
#
# ## Read on
#
# The NIfTI-1 header, https://nifti.nimh.nih.gov/nifti-1.  DICOM's geometry, PS3.3 section C.7.6.2,
# https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.2.html. Nyúl and Udupa 1999, *On
# standardizing the MR image intensity scale*, Magnetic Resonance in Medicine 42. Yagis et al. 2021, *Effect of data
# leakage in brain MRI classification*, https://doi.org/10.1038/s41598-021-01681-w. Schwarz et al. 2019, *Identification
# of anonymous MRI research participants*, https://doi.org/10.1056/NEJMc1908881. Milletari et al. 2016, *V-Net*,
# [arXiv:1606.04797](https://arxiv.org/abs/1606.04797). Antonelli et al. 2022, *The Medical Segmentation Decathlon*,
# https://doi.org/10.1038/s41467-022-30695-9. Baid et al. 2021, [arXiv:2107.02314](https://arxiv.org/abs/2107.02314).
#
# **Next:** [03 Preprocessing](03_preprocessing.ipynb) turns scans into what a network reads.
