"""Name files that look like part of a patient but are not read, with the reason and the fix."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..basics.constants import ARCHIVE_ENDINGS
from ..basics.files import Packed
from .datalists import channel_number
from .layouts import FILE_NAME, NIFTI, OTHER, SUFFIXES, identify
from .records import Case, Unused

READABLE = ("unpack it and give the folder; only tar, tar.gz, tar.bz2, tar.xz and zip archives "
            "are read")
UNREAD_ARCHIVES = {
    ".7z": "a 7-Zip archive", ".rar": "a RAR archive", ".zst": "a Zstandard archive",
    ".lz4": "an LZ4 archive", ".lzma": "an LZMA archive", ".lz": "an lzip archive",
    ".iso": "a disk image", ".dmg": "a disk image", ".xz": "compressed by xz",
    ".bz2": "compressed by bzip2"}
SPLIT = re.compile(
    r"\.(zip|7z|tar|gz|tgz|rar)\.(\d{2,3}|part\w*)$|\.z\d\d$|\.(tar|tgz|gz)[._-]?part\w+$|\.r\d\d$",
    re.IGNORECASE)
FORMATS = {
    "MetaImage": ".mha .mhd", "NRRD": ".nrrd .nhdr", "FreeSurfer": ".mgz .mgh", "MINC": ".mnc",
    "Analyze or a NIfTI pair": ".hdr", "DICOM": ".dcm .ima", "NumPy": ".npy .npz",
    "HDF5": ".h5 .hdf5", "Philips": ".par", "TIFF": ".tif .tiff"}
FORMAT_OF = {ending: title for title, endings in FORMATS.items() for ending in endings.split()}
PARTIAL = re.compile(r"\.(part|partial|crdownload|download|filepart|tmp|aria2)$", re.IGNORECASE)
POINTERS = {
    ".dvc": "run `dvc pull`", ".icloud": "let iCloud download it",
    ".lnk": "copy the file itself here", ".url": "download the file itself",
    ".webloc": "download the file itself", ".torrent": "download the files"}
GUESSES = (
    (r"flair", "flair"), (r"t1\w*(gd|ce|gad|post|km|c\b)|contrast", "t1ce"), (r"t2", "t2"),
    (r"t1", "t1"),
    (r"seg|mask|label|tumou?r|roi\b|gtv|\bgt\b|truth|annot|manual|expert", "seg"))
BIAS = re.compile(r"[_-](bias|unstripped)\.nii")  # other versions of the scans themselves
BIDS_MASK = re.compile(r"_label-[^_]+_mask\.nii")
SIDECAR = re.compile(r"\.(md5|sha\d*|crc)$", re.IGNORECASE)  # checksums of files
ON_ONE_LINE = (  # reasons that are shown once for many files
    "in the format ", "a mask of one region", "another contrast", "named ", "its name ends",
    "no dataset.json", "its channel", "dataset.json does not")
SHOWN = 20
LISTED = re.compile(r"(images|labels)(Tr|Ts|Val)")  # folders of nnU-Net and the Decathlon
LISTS = {"Tr": "training", "Ts": "test", "Val": "validation"}


def explain(path: Path | Packed, cases: Sequence[Case]) -> Unused | None:
    """Say why no rule uses a file; None if it does not look like part of a patient."""
    name = path.name.lower()
    if found := _not_an_image(name):
        return Unused(path, *found)
    if SIDECAR.search(name):
        return None
    if isinstance(path, Path) and not path.suffix.strip(".0123456789") and _is_dicom(path):
        return Unused(path, *_in_format("DICOM"))
    known = identify(path)
    derived = ".nii" in name and "derivatives" in path.parent.parts
    if BIDS_MASK.search(name):
        return Unused(path, "a mask of one region, and a reference tells three apart",
                      "give a dseg file with their labels, if there is one")
    if OTHER.search(path.name) or derived or (known and known[2] == "draft"):
        alone = not any(path.parent in (p.parent for p in case.images) for case in cases)
        return Unused(path, "another contrast or a derived file, which is not needed",
                      "if it is the patient's only scan of a contrast, rename it to "
                      "X_flair.nii.gz, X_t1, X_t1ce or X_t2" if alone and BIAS.search(name) else "")
    bare = FILE_NAME.match(f"{name}.nii")  # P_t1, without an ending
    if ".nii" in name or bare or (name.endswith(".gz") and guess_kind(name)):
        return Unused(path, *_odd_name(path, cases))
    return None


def _not_an_image(name: str) -> tuple[str, str] | None:
    """Recognize files that are not images: partial downloads, pointers, archives, DICOM."""
    if PARTIAL.search(name):
        return "a download that has not finished", "finish it, or remove it"
    for ending, remedy in POINTERS.items():
        if name.endswith(ending) and (guess_kind(name.removesuffix(ending)) or ".nii" in name
                                      or ending == ".dvc"):
            return "it only points to the file", remedy
    if SPLIT.search(name):
        return "one part of a split archive", "join the parts and unpack them"
    if name.endswith(ARCHIVE_ENDINGS):
        return ("an archive next to patients, which is not read",
                "unpack it here, or give it to `check` or `run` as a source of its own")
    for ending, title in UNREAD_ARCHIVES.items():
        if name.endswith(ending):
            return f"{title}, which is not read here", READABLE
    if title := FORMAT_OF.get(Path(name).suffix):
        return _in_format(title)
    return None


def _in_format(title: str) -> tuple[str, str]:
    return (f"in the format {title}, but NIfTI is needed",
            "convert the series with dcm2niix" if title == "DICOM" else "convert it to .nii.gz")


def _is_dicom(path: Path) -> bool:
    """Tell by its content whether a file without an ending, as scanners write, is a DICOM slice."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def guess_kind(name: str) -> str | None:
    """Guess the kind of a file with an odd name by the words in it."""
    name = name.lower()
    words = re.split(r"[^a-z0-9]+", re.sub(r"\.nii.*$|\.gz$", "", name))
    if word := next((word for word in reversed(words) if word in SUFFIXES), ""):
        agent = word in ("t1", "t1w") and re.search(r"t1.*(gd|gad|ce\b|contrast|post|\+c)", name)
        return "t1ce" if agent else SUFFIXES[word]
    return next((kind for pattern, kind in GUESSES if re.search(pattern, " ".join(words))), None)


def _odd_name(path: Path | Packed, cases: Sequence[Case]) -> tuple[str, str]:
    """Say what an image with an odd name may be, and which name it would need."""
    ending = ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
    if found := _of_somebody(path, cases, ending):
        return found
    kind = guess_kind(path.name)
    if kind is None:
        return ("its name ends in no known contrast", "if a patient needs it, rename it to "
                f"X_flair{ending}, X_t1, X_t1ce, X_t2 or X_seg")
    kind = {"draft": "seg"}.get(kind, kind)
    here = [case for case in cases if case.images and case.images[0].parent == path.parent]
    one = here[0] if len(here) == 1 else None
    if one and kind == "t1" and _has(one, "t1") and not _has(one, "t1ce"):
        kind = "t1ce"  # T1 of an odd name
    title = {"seg": "the reference"}.get(kind, kind)
    if one and _has(one, kind):
        return (f"patient {one.name} has a file for {title} already, and this one's name is not of "
                "a known form", "remove it if it is a copy; else keep the right one of the two")
    return (f"is it {title}? Its name has no known form",
            f"if it is, rename it to {one.name if one else 'X'}_{kind}{ending}")


def _of_somebody(path: Path | Packed, cases: Sequence[Case], ending: str
                 ) -> tuple[str, str] | None:
    """Recognize a reference whose patient is unknown, a bare mask, and nnU-Net's numbers."""
    known, stem = identify(path), NIFTI.sub("", path.name)
    owner = known[1] if known and known[2] == "seg" else stem
    if LISTED.fullmatch(path.parent.name) and any(case.name == owner for case in cases):
        return (f"the reference of {owner}, but its dataset.json does not list it, or its labels "
                "are unknown", f'name it as the "label" of {owner}, and the meaning of '
                'its numbers in "labels"')
    if known and known[2] == "seg":
        same = [case for case in cases if case.name == known[1]]
        if same and same[0].reference:
            return (f"one more reference of {known[1]}, and {same[0].reference} is used",
                    "keep the right one of the two")
        return (f"a reference of {known[1]}, and it is not certain whose scans it belongs to",
                f"add the scans of {known[1]}, or give it the name of its patient")
    if any(case.name == stem for case in cases):
        return (f"named like patient {stem} alone, as masks of predictions are",
                f"if it is the reference, rename it to {stem}_seg{ending}")
    if found := _in_a_lists_folder(path, stem, cases):
        return found
    if re.search(r"_000\d$", stem):
        return ("named by a channel's number, as nnU-Net's files are, and no dataset.json says "
                "which channel it is", "add nnU-Net's dataset.json, or rename the files to "
                "X_flair, X_t1, X_t1ce and X_t2")
    return None


def _in_a_lists_folder(path: Path | Packed, stem: str, cases: Sequence[Case]
                       ) -> tuple[str, str] | None:
    """Recognize what a dataset.json leaves out: channels, 4D images, references without images."""
    place = LISTED.fullmatch(path.parent.name)
    here = {case.name for case in cases if case.images and case.images[0].parent == path.parent}
    if not place:
        return None
    if place[1] == "labels":
        return (f"a reference, and no images of {stem} in images{place[2]} are read",
                f"add them there (the Decathlon's dataset.json must list {stem}), or remove it")
    if stem[:-5] in here and (number := channel_number(path)) >= 0:
        return f"its channel, {number}, is not in channel_names of dataset.json", ""
    if channel_number(path) < 0 and guess_kind(path.name) is None:
        return ("no dataset.json lists it", f'add it to the "{LISTS[place[2]]}" list of '
                "dataset.json, with its label if it has one")
    return None


def _has(case: Case, kind: str) -> bool:
    return case.reference is not None if kind == "seg" else kind not in case.missing


def hint(case: Case, unused: Sequence[Unused]) -> tuple[Case, list[Unused]]:
    """Add the files that may be the missing ones to a patient's problem; returns these, too."""
    missing = case.missing
    if not missing or not case.images:
        return case, []
    kinds = {*missing, *(["t1"] if "t1ce" in missing else [])}  # T1 of an odd name may be T1CE
    near = [u for u in unused if u.path.parent == case.images[0].parent and u.remedy
            and guess_kind(u.path.name) in kinds]
    said = "".join(f" {u.path.name} is there: {u.reason}; {u.remedy}." for u in near)
    return replace(case, problem=case.problem + said, hint=said.strip()), near


def shorten(unused: Iterable[Unused]) -> list[Unused]:
    """Merge similar files into one line: those of a folder or ending with the same reason."""
    alike: dict[tuple, list[Unused]] = defaultdict(list)
    for one in unused:
        other = OTHER.search(one.path.name) if one.reason.startswith("another") else None
        place = other[1].lower() if other else one.path.parent
        alike[(place, one.reason.split(" patient ")[0], bool(one.remedy))
              if one.reason.startswith(ON_ONE_LINE) else (one.path,)].append(one)
    return [replace(first, reason=f"{first.reason} (and {len(more)} more like it)") if more
            else first for first, *more in alike.values()]


def list_unused(unused: Sequence[Unused], shown: int = SHOWN) -> str:
    """List unused files as lines of text, at most `shown`; empty if there are none."""
    lines = [f"  {one}" for one in unused[:shown]]
    if len(unused) > shown:
        lines.append(f"  ... and {len(unused) - shown} more")
    return "\n".join([f"on disk, but not used ({len(unused)}):", *lines]) if lines else ""
