"""Recognize a file's patient and modality by its name and place.

It knows BraTS 2017 to 2025, FeTS, UPENN-GBM, UCSF-PDGM, TCGA-GBM and LGG, BraTS Toolkit, BIDS
(bids-specification.readthedocs.io), a folder for each file (`X_flair.nii/any.nii`) and a folder
for each modality (`flair/X.nii`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..basics.constants import MODALITIES
from ..basics.files import Packed
from .records import Case

WORDS = {
    "flair": "flair t2f fla t2flair t2_flair t2-flair",
    "t1": "t1 t1n t1w t1pre t1_pre t1-pre",
    "t1ce": "t1ce t1c ct1 t1gd t1_ce t1-ce t1_gd t1-gd t1gad t1_gad t1post t1_post t1-post "
    "t1wce t1w_ce",
    "t2": "t2 t2w",
    "seg": "seg segm segmentation tumor_segmentation tumor-segmentation tumormask tumor_mask "
    "glistrboost_manuallycorrected",
    "draft": "glistrboost",  # a reference only where nobody has corrected it
}
SUFFIXES = {word: kind for kind, words in WORDS.items() for word in words.split()}
_KINDS = "|".join(sorted(SUFFIXES, key=len, reverse=True))
FILE_NAME = re.compile(rf"^(?:(?P<case>.+?)[_-])?(?P<kind>{_KINDS})\.nii(?:\.gz)?$", re.IGNORECASE)
NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
BIDS = re.compile(r"^(?P<case>sub-[^_]+(?:_ses-[^_]+)?)(?P<entities>(?:_[a-z]+-[^_]+)*)"
                  r"_(?P<kind>flair|t1w|t2w|dseg|mask)\.nii(?:\.gz)?$", re.IGNORECASE)
# T1 after contrast agent, in BIDS's entities; "space" names a sequence, not an agent.
AGENT = re.compile(r"_ce-(?!no|pre|without)|"
                   r"_acq-(?!pre|un|without|non?(?:gd|gad|contrast|enhanc|ce))"
                   r"([^_]*(post|gad|gd|t1ce|contrast|enhanc)|[^_]*t1c|ce)(?![^_])")
# A modality with these words before it, as in P_post_T1, is no other patient of that name.
BEFORE = re.compile(r"(?P<case>.+)[_-](t1|(pre|post|native|gd|gad|ce|contrast)+)", re.IGNORECASE)
# Files that belong to known data sets and are no input here.
OTHER = re.compile(
    r"[_-](bias|unstripped|adc|dwi|swi|asl|dti\w*|dsc\w*|perf\w*|bold|pd|pdw|cbv|cbf|fa|md|ad|rd|"
    r"brain_?(parenchyma_)?(segmentation|mask)|desc-brain_mask|automated_approx_segm)\.nii(\.gz)?$",
    re.IGNORECASE)
COPY = re.compile(r"copy of |kopie von |copie de ", re.IGNORECASE)  # as file managers name copies
VISIT = re.compile(  # a folder's name that tells the visit, not the person
    r"(19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d(T\d+)?|"
    r"(ses|session|visit|timepoint|tp|time|week|month|day|year|scan|exam|follow-?up|fu|baseline|"
    r"pre-?op|post-?op)([-_]?\d+)*", re.IGNORECASE)
PLAIN_FOLDERS = ("anat", "nifti", "nii", "images", "image", "scans", "scan", "mri", "mr", "data")


@dataclass
class Group:
    """The files of one patient, by kind."""

    folder: Path
    name: str
    from_folder: bool  # whether the files themselves carry no name
    files: dict[str, list[Path | Packed]] = field(default_factory=lambda: defaultdict(list))

    @property
    def modalities(self) -> set[str]:
        """Return the modalities among the files."""
        return set(self.files) & set(MODALITIES)


def identify(path: Path | Packed) -> tuple[Path, str, str, bool] | None:
    """Return a file's folder, patient, kind, and whether the folder names the patient, or None."""
    if OTHER.search(path.name) or not NIFTI.search(path.name) or COPY.match(path.name):
        return None
    parent = path.parent
    if match := BIDS.match(path.name):
        return _bids(parent, match)
    if outer := FILE_NAME.match(parent.name):
        return _named(outer, parent.parent)
    if match := FILE_NAME.match(path.name):
        inner = parent.parent if parent.name.lower() in PLAIN_FOLDERS else parent
        numbered = re.fullmatch(r"\d+[_-](.+)", inner.name.lower())  # 2_T1GD/NIFTI/T1GD.nii
        own = numbered and SUFFIXES.get(numbered[1]) in MODALITIES and not match["case"]
        return _named(match, inner.parent if own else parent)
    if kind := SUFFIXES.get(parent.name.lower()):
        return parent.parent, NIFTI.sub("", path.name), kind, False
    return None


def _named(match: re.Match, folder: Path) -> tuple[Path, str, str, bool]:
    kind = SUFFIXES[match["kind"].lower()]
    return folder, match["case"] or _folder_name(folder), kind, not match["case"]


def _bids(folder: Path, match: re.Match) -> tuple[Path, str, str, bool] | None:
    kind, entities = match["kind"].lower(), match["entities"].lower()
    if kind == "mask":
        return None  # of one region, and a reference has three
    if kind == "dseg":
        return folder, match["case"], "seg", False
    contrast = "t1ce" if kind == "t1w" and AGENT.search(entities) else SUFFIXES[kind]
    return folder, match["case"], contrast, False


def _folder_name(folder: Path) -> str:
    """Return the patient that a folder is named after, the outer one for folders like `anat`."""
    if folder.name in ("", ".."):
        folder = folder.resolve()
    outer = folder.absolute().parent.name
    if outer and folder.name.lower() in PLAIN_FOLDERS:
        return _folder_name(folder.absolute().parent)
    return f"{outer}_{folder.name}" if outer and VISIT.fullmatch(folder.name) else folder.name


def group(files: Iterable[Path | Packed]) -> tuple[list[Group], set[Path | Packed]]:
    """Group files by patient; returns the groups, and the files in them."""
    groups: dict[tuple[Path, str], Group] = {}
    for path in files:
        if found := identify(path):
            folder, name, kind, from_folder = found
            one = groups.setdefault((folder, name), Group(folder, name, from_folder))
            one.files[kind].append(path)
    found = list(groups.values())
    _leave_derived(found)
    _leave_odd_names(found)
    _merge_halves(found)
    _give_references(found)
    found = [g for g in found if g.modalities]
    _tell_apart(found)
    for one in found:
        draft = one.files.pop("draft", [])
        if draft and not one.files.get("seg"):
            one.files["seg"] = draft
    return found, {path for g in found for paths in g.files.values() for path in paths}


def _by_name(groups: Iterable[Group]) -> dict[str, list[Group]]:
    by_name = defaultdict(list)
    for one in groups:
        by_name[one.name].append(one)
    return by_name


def _leave_derived(groups: list[Group]) -> None:
    """Leave out BIDS's processed copies of a person whose raw scans are there; keep the masks."""
    derived = [g for g in groups if "derivatives" in g.folder.parts]
    raw = {g.name for g in groups if g.modalities and g not in derived}
    for one in derived:
        if one.name in raw and one.name.startswith("sub-"):
            for kind in one.modalities:
                del one.files[kind]


def _leave_odd_names(groups: list[Group]) -> None:
    """Leave out a single T1 or FLAIR named like P_post_T1 beside files of the patient P."""
    names = {(g.folder, g.name) for g in groups}
    for one in groups:
        before = BEFORE.fullmatch(one.name)
        if (before and (one.folder, before["case"]) in names and len(one.modalities) == 1
                and one.modalities <= {"t1", "flair"}):
            one.files.clear()


def _merge_halves(groups: list[Group]) -> None:
    """Join groups of one name in several folders that together make one whole patient.

    Folders of one name, such as A/001 and B/001, may belong to two persons, and stay apart.
    """
    for parts in _by_name(g for g in groups if g.modalities and not g.from_folder).values():
        count = Counter(kind for g in parts for kind in g.modalities)
        if len(parts) > 1 and set(count) == set(MODALITIES) and set(count.values()) == {1}:
            for other in parts[1:]:
                for kind, paths in other.files.items():
                    parts[0].files[kind] += paths
                other.files.clear()


def _give_references(groups: list[Group]) -> None:
    """Give references that lie elsewhere, or under another name, to the one patient they fit."""
    patients = [g for g in groups if g.modalities]
    names = {g.name for g in patients}
    lone = [g for g in groups if g.files and not g.modalities]
    odd = Counter(g.folder for g in lone if g.name not in names)
    for one in lone:
        if one.name in names:
            fits = [g for g in patients if g.name == one.name]
        else:
            fits = [g for g in patients if g.folder == one.folder and odd[one.folder] == 1]
        if len(fits) == 1 and not fits[0].files.get("seg"):
            for kind, paths in one.files.items():
                fits[0].files[kind] += paths


def _tell_apart(groups: list[Group]) -> None:
    """Name patients with files of the same name by their folders, if these differ."""
    for name, same in _by_name(groups).items():
        folders = [_folder_name(g.folder) for g in same]
        if len(same) > 1 and name not in folders and len(set(folders)) == len(folders):
            for one, folder in zip(same, folders, strict=True):
                one.name = folder
        elif len(same) > 1 and all(g.from_folder for g in same):
            for one in same:
                one.name = f"{one.folder.absolute().parent.name}_{name}"


def case_of(one: Group) -> Case:
    """Return a group as a case; its `problem` says what is missing or doubled."""
    here = next(iter(one.files.values()))[0].parent
    doubled = {kind: f"patient {one.name} has {len(paths)} files for {kind}: "
                     f"{', '.join(map(str, paths))}; keep one. "
               for kind, paths in one.files.items() if len(paths) > 1}
    reference_problem = doubled.pop("seg", "").strip()
    problem = "".join(doubled.values())
    missing = tuple(m for m in MODALITIES if not one.files.get(m))
    if missing:
        problem += (f"patient {one.name} in {here} has no file for {', '.join(missing)}. Training "
                    "needs all four modalities: add them, or remove the patient. `predict` with "
                    "the network in the box takes fewer.")
    images = tuple(one.files[m][0] for m in MODALITIES if one.files.get(m))
    return Case(one.name, images, next(iter(one.files.get("seg", [])), None),
                problem=problem.strip(), reference_problem=reference_problem, missing=missing)
