"""Read the patients in a JSON list of the Decathlon, nnU-Net or MONAI, and the labels of BIDS.

References: medicaldecathlon.com; nnunetv2, documentation/dataset_format.md; MONAI,
`load_decathlon_datalist`; bids-specification.readthedocs.io, imaging derivatives.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib

from ..basics.constants import ED, ET, MODALITIES, NCR
from ..basics.files import Packed
from .labels import MSD_LABELS, NO_CLASS
from .layouts import FILE_NAME, NIFTI, SUFFIXES, identify
from .records import CONTROL, Case, Unused

LIST_NAME = re.compile(r"^(dataset|datalist|.*folds?)[^/]*\.json$", re.IGNORECASE)
WANTED = (
    'expected {"modality": {"0": "FLAIR", ...}, "training": [{"image": ..., "label": ...}]} '
    '(Decathlon, MONAI) or {"channel_names": {"0": "FLAIR", ...}, "labels": {...}} (nnU-Net)')
WITHOUT = r"(non|not|un)\W*(contrast)?\W*enh"  # as in non-contrast-enhancing tumor
ENHANCING = rf"^et$|^(?!.*{WITHOUT}).*enhanc"
MEANING = ((ET, rf"{ENHANCING}|^at$|gd.enh"), (ED, r"edema|oedema|^ed$|snfh|infiltr"),
           (NCR, rf"necro|^ncr|^net|{WITHOUT}|^nc\b"))
NO_TUMOR = re.compile(r"cavity|resection")
REGION = ((ET, ENHANCING), (NCR, r"core|^tc$"), (ED, r"whole|^wt$|all"))
BIDS_FOLDER = re.compile(r"(sub|ses)-.+|anat", re.IGNORECASE)  # below a data set's own folder


class NotAList(Exception):
    """The reason why a JSON file is not a list of patients."""


@dataclass
class Listed:
    """The patients of lists, the files that belong to them, and what is not used."""

    cases: list[Case] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)
    unused: list[Unused] = field(default_factory=list)


def is_list(name: str) -> bool:
    """Tell whether a file's name is that of a list of patients."""
    return bool(LIST_NAME.match(name)) and name != "dataset_description.json"  # BIDS's


def read_lists(files: Iterable[Path]) -> Listed:
    """Return the patients of all lists among these files, each patient once."""
    found, seen = Listed(), set()
    for index in files:
        if is_list(index.name):
            try:
                _read_list(index, found, seen)
            except NotAList as error:
                found.unused.append(Unused(index, str(error), WANTED))
            except OSError as error:  # a path that no disk can have
                reason = f"it names a file that cannot be read ({error.strerror})"
                found.unused.append(Unused(index, reason, "correct the list"))
    return found


def _read_list(index: Path, found: Listed, seen: set) -> None:
    try:
        content = json.loads(index.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise NotAList(f"it cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(content), "a number")
        raise NotAList(f"it holds {kind}, not an object with names")
    channels = _channels(content)
    rows = (list(_rows(content, index, len(channels)))
            or list(_nnunet_rows(index.parent, len(channels))))
    if not rows:
        if channels or index.name.lower() == "dataset.json":
            raise NotAList("it lists no patients")
        return
    labels = labels_of(content)
    listed = [path for images, label, _ in rows for path in (*images, label) if path]
    if missing := [path for path in listed if not path.is_file()]:
        found.unused.append(Unused(
            index, f"it lists {len(missing)} file(s) that are not there, such as {missing[0]}",
            "add them, or correct the list"))
    for images, label, numbered in rows:
        there = [image.is_file() for image in images]
        if any(there):
            case = _case(index, images, label if label and label.is_file() else None, channels,
                         labels or (), numbered)
            if not all(there):
                case = _cut(case, index, images[there.index(False)])
            found.files |= {*images, *filter(None, [label])}
            if not case.problem:
                found.unused += [Unused(image, "another contrast, which is not needed")
                                 for image in images if image not in case.images]
            if case.images not in seen:
                seen.add(case.images)
                found.cases.append(_without_doubtful(case, found, index))


def _cut(case: Case, index: Path, gone: Path) -> Case:
    """Give a patient some of whose files are not there that problem, and only the other files."""
    problem = (f"patient {case.name} in {gone.parent}: {index} lists {gone}, which is not there: "
               "add it, or remove the patient from the list.")
    images = tuple(image for image in case.images if image.is_file())
    if case.problem or not images:
        return replace(case, problem=problem, missing=())
    missing = tuple(m for m, image in zip(MODALITIES, case.images, strict=True)
                    if not image.is_file())
    return replace(case, images=images, missing=missing, problem=problem) if missing else case


def _without_doubtful(case: Case, found: Listed, index: Path) -> Case:
    """Leave out a reference whose numbers have no known meaning, and name it."""
    if (case.reference is None or case.labels
            or all(FILE_NAME.match(image.name) for image in case.images)):
        return case
    if len(case.images) == 1:
        return replace(case, labels=tuple(MSD_LABELS.items()))
    found.unused.append(Unused(
        case.reference, f"{index.name} does not say what its labels mean: label 1 is the necrotic "
        "core in BraTS and edema in nnU-Net's and the Decathlon's order",
        f'add "labels" to {index}, such as {{"background": 0, "necrotic core": 1, "edema": 2, '
        '"enhancing tumor": 3}'))
    return replace(case, reference=None)


def _channels(content: Mapping) -> list[str | None]:
    """Return each channel's modality, None for another contrast; [] if the list names none."""
    named = content.get("channel_names", content.get("modality"))
    if named is None:
        return []
    if isinstance(named, list):
        named = dict(enumerate(named))
    if not isinstance(named, dict):
        raise NotAList(f"its channels are {named!r}, not a table")
    if _numbers(named.values()) and not _numbers(named):
        named = {v: k for k, v in named.items()}
    if not _numbers(named) or sorted(map(int, named)) != list(range(len(named))):
        raise NotAList(f"its channels are numbered {list(named)}, not 0, 1, 2, 3")
    names = [str(named[key]) for key in sorted(named, key=int)]
    kinds = [SUFFIXES.get(re.sub(r"[\s-]+", "_", name.strip().lower())) for name in names]
    kinds = [kind if kind in MODALITIES else None for kind in kinds]
    if sorted(filter(None, kinds)) != sorted(MODALITIES):
        raise NotAList(f"its channels are {names}; FLAIR, T1w, t1gd and T2w are needed")
    return kinds


def _numbers(values: Iterable) -> bool:
    return all(str(value).isdecimal() for value in values)


def _rows(content: Mapping, index: Path, count: int
          ) -> Iterable[tuple[list[Path], Path | None, bool]]:
    """Yield each listed patient's images, label, and whether only the images' numbers name them."""

    def place(text: object) -> Path:
        if not isinstance(text, str) or CONTROL.search(text):
            kind = "a path" if isinstance(text, str) else "text"
            raise NotAList(f"it names a file {text!r}, which is not {kind}")
        return Path(os.path.normpath(index.parent / text))

    explicit = content.get("dataset")
    lists = ([list(explicit.values())] if isinstance(explicit, dict) else
             [content.get(key, []) for key in ("training", "validation", "test", "testing")])
    for rows in lists:
        if not isinstance(rows, list):
            raise NotAList(f"its list of patients is a {type(rows).__name__}, not a list")
        for row in rows:
            row = row if isinstance(row, dict) else {"image": row}
            image = row.get("image", row.get("images"))
            if image is None:
                raise NotAList(f'an entry has no "image": {str(row)[:60]}')
            label = row.get("label")
            label = label[0] if isinstance(label, list) and len(label) == 1 else label
            images = [place(p) for p in (image if isinstance(image, list) else [image])]
            if not images:
                raise NotAList(f"an entry lists no image: {str(row)[:60]}")
            if odd := [p for p in images if not NIFTI.search(p.name)]:
                raise NotAList(f"it lists {odd[0]}, and files .nii or .nii.gz are needed")
            numbered = []
            if len(images) == 1 and not images[0].is_file():  # nnU-Net v1 lists X for X_0000 to 3
                numbered = _numbered(images[0], NIFTI.sub("", images[0].name), count)
            yield numbered or images, place(label) if label else None, bool(numbered)


def _numbered(path: Path, stem: str, count: int) -> list[Path]:
    """Return nnU-Net's files of a patient, X_0000 and so on, with the ending of `path`.

    These are the first `count` channels, which the list names; 0 means all.
    """
    stem = re.sub(r"([*?[])", r"[\1]", stem)
    ending = NIFTI.search(path.name)[0]
    return sorted(file for file in path.parent.glob(f"{stem}_[0-9][0-9][0-9][0-9]{ending}")
                  if not count or channel_number(file) < count)


def channel_number(path: Path | Packed) -> int:
    """Return the number of the channel in nnU-Net's name of a file, X_0003; -1 in another name."""
    found = re.search(r"_(\d{4})$", NIFTI.sub("", path.name))
    return int(found[1]) if found else -1


def _nnunet_rows(folder: Path, count: int) -> Iterable[tuple[list[Path], Path | None, bool]]:
    for part in ("Tr", "Ts", "Val"):
        seen = set()
        for first in sorted((folder / f"images{part}").glob("*_[0-9][0-9][0-9][0-9].nii*")):
            stem, ending = NIFTI.sub("", first.name)[:-len("_0000")], first.suffix
            if (NIFTI.search(first.name) and not first.name.startswith(".")
                    and (stem, ending) not in seen):
                seen.add((stem, ending))
                label = folder / f"labels{part}" / f"{stem}{NIFTI.search(first.name)[0]}"
                yield _numbered(first, stem, count), label if label.is_file() else None, True


def _case(index: Path, images: list[Path], label: Path | None, channels: list[str | None],
          labels: tuple, numbered: bool) -> Case:
    whole = len(images) == 1 and not (numbered and _is_one_volume(images[0]))
    name = re.sub(r"_0000$" if whole else r"_\d{4}$", "", NIFTI.sub("", images[0].name))
    if whole:
        if not channels:
            raise NotAList('it has no "modality" or "channel_names" for the channels of its 4D '
                           "files")
        return Case(name, tuple(images), label, tuple(map(channels.index, MODALITIES)),
                    labels=labels)
    by_name = [identify(image) for image in images]
    kinds = [known[2] if known else None for known in by_name]
    sure = set(kinds) <= set(MODALITIES) and len(set(kinds)) == len(kinds)
    if sure:
        name = by_name[0][1]
    elif channels:
        known = _numbers_tell(images, channels)
        kinds = [channels[channel_number(image)] for image in images] if known else channels
        sure = known and (numbered or len(images) == len(channels))  # a list may count from 1
    else:
        raise NotAList('it has no "channel_names", and the names of its files do not tell the '
                       "modalities")
    ordered = tuple(image for m in MODALITIES for kind, image in zip(kinds, images, strict=False)
                    if kind == m)
    problem, missing = "", tuple(m for m in MODALITIES if m not in kinds[:len(images)])
    if len(images) != len(kinds) or len(ordered) != len(MODALITIES):
        add = f": add {', '.join(missing)}" if missing else ""
        count = f"{len(images)} image{'s' * (len(images) > 1)}"
        problem = (f"patient {name} in {images[0].parent} has {count} in {index}, and four are "
                   f"needed{add}.")
    if odd := _contradiction(images, name, numbered and bool(missing)):
        return Case(name, tuple(images), label, problem=f"patient {name}: {index} {odd}.")
    return Case(name, ordered or tuple(images), label, problem=problem, labels=labels,
                missing=missing if sure and ordered else ())


def _contradiction(images: Sequence[Path], name: str, lacks: bool) -> str:
    """Say why it is not certain which image is which contrast; "" if it is."""
    if twice := [image for image in images if images.count(image) > 1]:
        return f"lists {twice[0]} twice: correct the list"
    if lacks and identify(images[0].with_name(f"{name}.nii")):
        return (f"numbers the channels, and {images[0]} also names its contrast: rename the four "
                "files to end in _0000 to _0003 after the patient's name, or to end in the "
                "contrast alone")
    return ""


def _numbers_tell(images: Sequence[Path], channels: Sequence[str | None]) -> bool:
    """Tell whether nnU-Net's numbers name the channel of each image."""
    numbers = [channel_number(image) for image in images]
    return -1 < min(numbers) and max(numbers) < len(channels) and numbers == sorted(set(numbers))


def _is_one_volume(path: Path) -> bool:
    """Tell whether a header is that of one contrast, not of a 4D file."""
    with contextlib.suppress(Exception):  # reading the patient tells what is wrong
        return set(nib.load(path).shape[3:]) <= {1}
    return False


def labels_of(content: Mapping) -> tuple[tuple[int, int], ...] | None:
    """Return pairs (label on disk, label here or NO_CLASS); None if a meaning is uncertain."""
    found = content.get("labels")
    if isinstance(found, list):
        found = dict(enumerate(found))
    if not isinstance(found, dict):
        return None
    by_value: dict[int, list[str]] = {}
    for key, value in found.items():
        if str(key).isdecimal():
            key, value = value, key
        for number in value if isinstance(value, list) else [value]:
            if not str(number).isdecimal():
                return None
            by_value.setdefault(int(number), []).append(str(key).strip().lower())
    meaning = REGION if any(isinstance(value, list) for value in found.values()) else MEANING
    pairs = []
    for number, names in sorted(by_value.items()):
        if not number:
            continue
        kinds = [next((here for here, pattern in meaning if re.search(pattern, name)), NO_CLASS)
                 for name in names]
        if any(NO_TUMOR.search(name) for name in names):
            kinds = [NO_CLASS]
        if number > 255 or (meaning is MEANING and len(set(kinds)) > 1):
            return None
        # Regions share numbers, and the innermost gives the meaning; classes do not.
        pairs.append((number, next((here for here, _ in meaning if here in kinds), NO_CLASS)))
    return tuple(pairs) if any(here != NO_CLASS for _, here in pairs) else None


def with_bids_table(case: Case) -> tuple[Case, Unused | None]:
    """Give a BIDS reference the meanings of its numbers from `dseg.tsv`, beside or above it.

    A reference whose table cannot be read is left out, and returned with the reason.
    """
    path = case.reference
    if not isinstance(path, Path) or not path.name.lower().endswith(("dseg.nii", "dseg.nii.gz")):
        return case, None
    home = next(f for f in path.parents if not BIDS_FOLDER.fullmatch(f.name))  # of the data set
    above = list(path.parents)[:1 + list(path.parents).index(home)]
    places = [path.with_name(NIFTI.sub(".tsv", path.name)), *(f / "dseg.tsv" for f in above)]
    table = next((place for place in places if place.is_file()), None)
    if table is None:
        return case, None
    named = {}
    with (contextlib.suppress(OSError, csv.Error),  # a foreign file may be anything
          open(table, encoding="utf-8-sig", errors="replace", newline="") as lines):
        first = lines.readline()
        lines.seek(0)
        named = {str(row.get("name")): str(row.get("index"))
                 for row in csv.DictReader(lines, delimiter=max("\t,;", key=first.count))}
    if labels := labels_of({"labels": named}):
        return replace(case, labels=labels), None
    return replace(case, reference=None), Unused(
        path, f"{table} does not say what its labels mean", "give the table the columns index and "
        "name, with names such as necrotic core, edema and enhancing tumor")
