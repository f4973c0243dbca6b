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
# From a compressed archive to patients that have been checked, counted and split.
#
# **02 of 05** | back: [01 Setup](01_setup.ipynb) | next: [03 Preprocessing](03_preprocessing.ipynb)
#
# | | |
# |---|---|
# | reads | `config.json`, `cohort.json` and the archive or folder that they name |
# | writes | `cases/`, `patients.json`, `splits.json` in the work folder |
# | takes | under a minute on two CPU cores (quick preset) |
#
# ## By the end you can
#
# - **list** an archive without unpacking it, and refuse a dangerous one;
# - **read** a NIfTI header: shape, voxel size, orientation;
# - **check** a cohort before it is trusted;
# - **split** patients so that nothing leaks from training into evaluation.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
work: str = ""  # folder that notebook 01 wrote to; empty: the usual place on this machine
on_error: str = "raise"  # a patient with a problem: "raise" stops here, "skip" leaves the patient out and says so

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
from brats_helpers.config import Config
from brats_helpers.files import read_json

config = Config.load(work / "config.json")
cohort = read_json(work / "cohort.json", "notebook 01")
synthetic = cohort["synthetic"]
print(f"{cohort['source']}: {cohort['training']}")

# %% [markdown]
# ## 1. What is in the box?
#
# A **tar** file is a chain: a header of 512 bytes that names a file and its size, the file's content, the next header,
# and so on. Nothing in it is compressed (the scans inside are, each on its own). So a list costs almost nothing: read a
# header, hop over the content, read the next.
#
# *Predict:* how many files does a patient have in BraTS?

# %%
from brats_helpers.archive import extract, is_archive, list_archive, summarise
from brats_helpers.cases import find_cases

archives = [
    Path(cohort[key])
    for key in ("training", "test")
    if cohort[key] and is_archive(Path(cohort[key]))
]
members = {archive.name: list_archive(archive) for archive in archives}
for name, files in members.items():
    rows = summarise(files)
    print(
        f"{name}: {len(files)} files, {len(rows)} patients, {sum(row['mb'] for row in rows):.1f} MB"
    )
    print("  ", files[0].name, f"{files[0].size:,} bytes")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Five: `_flair`, `_t1`, `_t1ce`, `_t2` and, where experts have outlined the tumor, `_seg`. Since 2023 the same files end
# in `-t2f`, `-t1n`, `-t1c`, `-t2w` and `-seg`.
# </details>
#
# An archive from the network can name a file `../../.bashrc`, or be a link to somewhere else. `list_archive` refuses
# such an archive before a single byte is written. Let us build one and see.

# %%
import io
import tarfile
import tempfile

from brats_helpers.errors import BratsError

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
# ## 2. Unpack, and be able to stop
#
# Each file is written under a temporary name and renamed when it is whole, and a file that is there with the right size
# is skipped. So the cell below can be stopped at any moment and run again. A source that is a folder already is used
# where it is: no second copy.

# %%
folders = {}
for key in ("training", "test"):
    path = cohort[key] and Path(cohort[key])
    if path and is_archive(path):
        extract(path, work / "cases" / key)
        path = work / "cases" / key
    folders[key] = path
cases = {key: find_cases(folder) if folder else [] for key, folder in folders.items()}
print({key: f"{len(found)} patients" for key, found in cases.items()})

# %% [markdown]
# ## 3. Inside one scan
#
# **NIfTI** is the research format of neuroimaging: one file is one volume, a header of 348 bytes and the voxels.
# The most important thing in the header is the **affine**, a 4 x 4 matrix that turns voxel indices into
# millimetres in the patient: `x` to the right, `y` to the front, `z` up.

# %%
import nibabel as nib

from brats_helpers.cases import check_case

sane = (c for c in cases["training"] if c.reference and not check_case(c)["problems"])
first = next(sane, None)
if first is None:
    raise BratsError(
        "no patient with a reference can be read: for patients without, use `python -m brats_helpers predict`."
    )
scan = nib.load(first.images[0])
edges = [float(edge) for edge in scan.header.get_zooms()[:3]]
print(f"shape {scan.shape}, type {scan.get_data_dtype()}, voxels {edges} mm")
print(f"indices grow towards {nib.aff2axcodes(scan.affine)}")
print(scan.affine)

# %% [markdown]
# The minus signs matter. The first index grows to the patient's **L**eft, the second to the back (**P**osterior), the
# third up (**S**uperior): LPS. *Predict:* where in the patient is voxel (0, 0, 0)?

# %%
corner = scan.affine @ [0, 0, 0, 1]
opposite = scan.affine @ [*(n - 1 for n in scan.shape[:3]), 1]
print(f"first voxel at {corner[:3]} mm, last voxel at {opposite[:3]} mm")

# %% [markdown]
# <details><summary>Answer</summary>
#
# At the right, front, bottom corner of the box: every index grows away from it. Radiologists look at a patient from the
# feet, so his right is on the left of their picture, and that is how all slices of this series are drawn. Look for the
# letters R and L.
# </details>

# %%
import numpy as np

from brats_helpers.cases import read_case
from brats_helpers.plots import show_modalities

patient = read_case(first)
show_modalities(patient, synthetic=synthetic)

# %%
show_modalities(patient, plane="coronal", synthetic=synthetic)

# %% [markdown]
# ### Where it came from: DICOM
#
# A scanner writes **DICOM**: one file a slice, and in every file the patient's name, birthday, hospital. BraTS was
# converted and anonymised before it was published. Here is the way, on this patient's FLAIR and an invented name:

# %%
import pydicom

from brats_helpers.dicom import convert_series, write_series

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
    same = np.array_equal(converted.dataobj, pixels)

# %%
for keyword in ("PatientName", "PatientBirthDate", "ImagePositionPatient", "PixelSpacing"):
    print(f"{keyword:<22}{header[keyword].value}")
print(f"{len(slices)} files -> 1 file, voxels the same: {same}, affine the same:", end=" ")
print(np.allclose(converted.affine, patient.affine, atol=1e-3))

# %% [markdown]
# The slices' positions became the affine, and nothing else was taken over: no name, no date. What cannot be taken out of
# the header is in the picture. A face can be rebuilt from a head scan, which is why BraTS's brains have no skull.
#
# ### Label 4
#
# *Predict:* which values are in the reference's file?

# %%
on_disk = np.asarray(nib.load(first.reference).dataobj)
print("on disk:", np.unique(on_disk), " in this project:", np.unique(patient.reference))

# %% [markdown]
# BraTS 2017 to 2021 call the enhancing tumor **4**; no label is 3. A network that reserves one output for each number
# up to 4 would have one that is never right, so inside this project 4 becomes 3, and every mask that we export has 4
# again. (Since BraTS 2023 it is 3 on disk, too.)
#
# **What published code gets wrong.** NVIDIA's notebook calls label 1 edema and label 2 non-enhancing tumor. BraTS says
# 1 is NCR and 2 is ED (Baid et al. 2021). On the picture above: which label is the large one on the outside?
#
# ## 4. Check everyone
#
# A cohort of a thousand patients has surprises: a file cut short, a modality on another grid, a label that should not
# be there. Each patient is read once, completely, and every problem is a sentence in a table instead of a traceback in
# the middle of a night's training.

# %%
from brats_helpers.cases import check_cohort

rows = {key: check_cohort(found) for key, found in cases.items()}
problems = [
    (row["name"], problem) for key in rows for row in rows[key] for problem in row["problems"]
]
alone = [row["name"] for key in rows for row in rows[key] if not row["reference"]]
print(f"{sum(map(len, rows.values()))} patients checked, {len(problems)} problem(s)")
print(
    f"{len(alone)} without a reference, left to `predict`"
    + (f": {', '.join(alone)}" if alone else "")
)
for name, problem in problems:
    print(f"  {name}: {problem}")

# %%
from collections import Counter

everyone = [row for row in rows["training"] + rows["test"] if not row["problems"]]
for field in ("shape", "spacing_mm", "orientation", "dtype"):
    print(f"{field:<12}", dict(Counter(str(row[field]) for row in everyone)))

# %% [markdown]
# What a check is worth shows when something is broken. Here the first patient's T2 is cut in half, in a copy:

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
# A damaged patient must not be learnt from, and must not be left out in silence. This series stops here, names the
# patients and lets you decide: with `on_error="skip"` it goes on without them, and the results say who was left out.

# %%
if on_error not in ("raise", "skip"):
    raise BratsError(f"on_error={on_error!r} is not known: give raise or skip.")
if problems and on_error == "raise":
    raise BratsError(
        f"{len(problems)} patient(s) have problems (see above): get them again or remove them, then rerun; or leave "
        "them out with on_error=skip."
    )
sound = {key: [row for row in rows[key] if not row["problems"]] for key in rows}

# %% [markdown]
# ## 5. How large are the tumors?

# %%
from brats_helpers.plots import volume_distribution

labelled = [row for row in everyone if row["volumes_ml"]]
volumes = {
    row["name"]: sum(row["volumes_ml"].values()) for row in sound["training"] if row["volumes_ml"]
}
volume_distribution(labelled, synthetic=synthetic) if labelled else print(
    "no patient has a reference"
)

# %% [markdown]
# The axis is logarithmic: tumors differ a hundredfold. Two things follow. A split at random can put all large tumors on
# one side. And in patients without any enhancing tumor a single wrong voxel of ET makes the Dice of that region 0
# (notebook 05 comes back to this).
#
# *Predict:* what share of a patient's voxels is tumor?

# %%
shares = [
    sum(row["volumes_ml"].values()) / (np.prod(row["shape"]) * np.prod(row["spacing_mm"]) / 1000)
    for row in labelled
]
if shares:
    print(
        f"tumor is {100 * np.median(shares):.1f} % of the volume (median; {100 * min(shares):.2f} to {100 * max(shares):.1f} %)"
    )

# %% [markdown]
# A network that answers "background" everywhere would be right for all the other voxels. That is why neither accuracy
# nor plain cross-entropy will do, and why notebook 04 uses Dice.
#
# ### Intensities mean nothing by themselves
#
# MRI has no unit. The same tissue is 300 in one patient and 3,000 in another.

# %%
from brats_helpers.plots import histograms

histograms(patient.images, patient.reference, "intensity, scanner units", synthetic=synthetic)

# %%
some = [case for case in cases["training"] if case.name in volumes][:12]
sample = [read_case(case) for case in some]
means = np.array([[image[image > 0].mean() for image in p.images] for p in sample])
print("mean intensity in the brain, smallest and largest of", len(sample), "patients")
for name, low, high in zip(("FLAIR", "T1", "T1CE", "T2"), means.min(0), means.max(0)):
    print(f"  {name:<6} {low:>6.0f} {high:>6.0f}")

# %%
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(6, 2.4))
for p in sample[:8]:
    flair = p.images[0][p.images[0] > 0]
    ax.hist(flair, bins=80, histtype="step", density=True)
ax.set(
    xlabel="FLAIR intensity, scanner units",
    yticks=[],
    ylabel="share of voxels",
    title=f"{len(sample[:8])} patients, one scanner scale each"
    + (" (synthetic)" if synthetic else ""),
)
plt.show()

# %% [markdown]
# ## 6. Split
#
# A network is judged on patients that it has not seen. Four fifths of the patients are learnt from; one fifth,
# **validation**, chooses between checkpoints. What has chosen something is no longer a fair judge, so the synthetic
# cohort brings a third group in an archive of its own, the **test** set, by which no choice is made: it is scored once, at the end of notebook
# 05. Whole patients are split, never slices: two neighbouring slices of one brain are nearly the same picture. And a
# patient who is in the cohort twice, under two names, must not end up on both sides:

# %%
from brats_helpers.cases import find_twins

twins = find_twins(cases["training"] + cases["test"])
if twins:
    raise BratsError(f"these patients have the same scans: {twins}. Keep one of each, then rerun.")
print("no two patients have the same scans")

# %%
from brats_helpers.splits import make_splits

splits = make_splits(
    list(volumes), list(volumes.values()), config.seed, config.validation, config.folds
)
print(
    f"{len(splits['training'])} to learn from, {len(splits['validation'])} to validate on, "
    f"{len(sound['test'])} for the test; {len(splits['folds'])} folds"
)

# %% [markdown]
# *Stratified by size* means: sorted by volume, each five neighbours are dealt to five groups. The two groups below
# should look alike.

# %%
figure, ax = plt.subplots(figsize=(6, 1.8))
for height, group in enumerate(("training", "validation")):
    ax.scatter([volumes[n] for n in splits[group]], [height] * len(splits[group]), alpha=0.6, s=24)
ax.set(
    xscale="log",
    xlabel="whole tumor (ml)",
    yticks=(0, 1),
    yticklabels=("training", "validation"),
    ylim=(-0.5, 1.5),
)
plt.show()

# %%
assert not set(splits["training"]) & set(splits["validation"])
assert sorted(splits["training"] + splits["validation"]) == sorted(volumes)
assert sorted(sum(splits["folds"], [])) == sorted(volumes)
assert not {row["name"] for row in sound["test"]} & set(volumes)
print("disjoint, complete, and no test patient among them")

# %% [markdown]
# ## 7. Play
#
# Move through the patient. (Without a running kernel you see the first picture.)

# %%
from IPython.display import display

from brats_helpers.viewers import picture, slice_viewer

display(slice_viewer(patient, synthetic=synthetic))
picture(patient, synthetic=synthetic)

# %% [markdown]
# ## 8. Save and verify

# %%
from brats_helpers.cohort import read_cohort, write_patients

write_patients(work, folders, rows, splits)
written = read_cohort(work)
assert written.splits["folds"] == splits["folds"]
assert sorted(written.by_name) == sorted(row["name"] for row in everyone)
print(
    f"wrote patients.json ({len(everyone)} patients) and splits.json\nnext: 03_preprocessing reads both"
)

# %% [markdown]
# ## Recap
#
# - A tar is listed by hopping from header to header; an unsafe name is refused before anything is written.
# - The affine says which way the indices grow. BraTS is LPS; pictures have the patient's right on the left.
# - On disk ET is 4, inside the project 3.
# - Patients are split, never slices, and each side gets its share of every tumor size.
#
# **When it goes wrong.** *"is cut short"*: the download stopped; get it again. *"no file for t2"*: the patient is
# incomplete; remove the folder. *"labels [5] are not among"*: the reference is not from BraTS; map it first.
#
# **Read on.** The NIfTI-1 header, https://nifti.nimh.nih.gov/nifti-1. Orientation in nibabel,
# https://nipy.org/nibabel/coordinate_systems.html. Menze et al. 2015, *The multimodal brain tumor image segmentation
# benchmark*, doi:10.1109/TMI.2014.2377694.
#
# **Next:** [03 Preprocessing](03_preprocessing.ipynb) turns scans into what a network reads.
