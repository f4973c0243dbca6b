"""Patients that a JSON file lists: the Decathlon, nnU-Net's raw data sets, MONAI's datalists.

References: medicaldecathlon.com; nnunetv2, documentation/dataset_format.md; MONAI,
`load_decathlon_datalist`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..basics.constants import ED, ET, MODALITIES, NCR
from .labels import MSD_LABELS
from .layouts import FILE_NAME, NIFTI, SUFFIXES, identify
from .records import Case, Unused

LIST_NAME = re.compile(r"^(dataset|datalist|.*folds?)[^/]*\.json$", re.IGNORECASE)
WANTED = ('expected {"modality": {"0": "FLAIR", ...}, "training": [{"image": ..., "label": ...}]} '
          '(Decathlon, MONAI) or {"channel_names": {"0": "FLAIR", ...}, "labels": {...}} (nnU-Net)')
MEANING = ((ET, r"^et$|^at$|(?<!non.)(?<!non)enhanc|gd.enh"),
           (ED, r"edema|oedema|^ed$|snfh|infiltr"), (NCR, r"necro|^ncr|^net|non.?enh|^nc\b"))
REGION = ((ET, r"enhanc|^et$"), (NCR, r"core|^tc$"), (ED, r"whole|^wt$|all"))


class NotAList(Exception):
    """A JSON file of another shape; the text says in what."""


@dataclass
class Listed:
    """The patients of a list, the files that belong to them, and what is not used."""

    cases: list[Case] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)
    unused: list[Unused] = field(default_factory=list)


def read_lists(files: Iterable[Path]) -> Listed:
    """Return the patients of all lists among these files, each patient once."""
    found, seen = Listed(), set()
    for index in files:
        if not LIST_NAME.match(index.name) or index.name == "dataset_description.json":
            continue
        try:
            _read_list(index, found, seen)
        except NotAList as error:
            found.unused.append(Unused(index, str(error), WANTED))
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
    rows = list(_rows(content, index)) or list(_nnunet_rows(index.parent))
    if not rows:
        if channels or index.name.lower() == "dataset.json":
            raise NotAList("it lists no patients")
        return
    labels = labels_of(content)
    missing = [image for images, _ in rows for image in images if not image.is_file()]
    if missing:
        found.unused.append(Unused(index, f"it lists {len(missing)} file(s) that are not there, "
                                   f"such as {missing[0]}", "add them, or correct the list"))
    for images, label in rows:
        if images and all(image.is_file() for image in images):
            case = _case(index, images, label if label and label.is_file() else None, channels,
                         labels)
            found.files |= {*images, *filter(None, [label])}
            if case.images not in seen:
                seen.add(case.images)
                found.cases.append(_without_doubtful(case, labels, found, index))


def _without_doubtful(case: Case, labels: object, found: Listed, index: Path) -> Case:
    """Leave out a reference whose numbers have no known meaning, and name it."""
    if case.reference is None or labels is not None or _named_as_brats(case.images):
        return case
    if len(case.images) == 1:
        return Case(**{**vars(case), "labels": tuple(MSD_LABELS.items())})
    found.unused.append(
        Unused(case.reference, f"{index.name} does not say what its labels mean: label "
               "1 is the necrotic core in BraTS and edema in nnU-Net's and the Decathlon's order",
               f'add "labels" to {index}, such as {{"background": 0, "necrotic core": 1, "edema": '
               '2, "enhancing tumor": 3}'))
    return Case(**{**vars(case), "reference": None})


def _named_as_brats(images: Iterable[Path]) -> bool:
    return all(FILE_NAME.match(image.name) for image in images)


def _channels(content: Mapping) -> list[str | None]:
    """The modality of each channel; an empty list if the file does not say."""
    named = content.get("channel_names", content.get("modality"))
    if named is None:
        return []
    if isinstance(named, list):
        named = dict(enumerate(named))
    if not isinstance(named, dict):
        raise NotAList(f"its channels are {named!r}, not a table")
    if all(str(v).isdigit() for v in named.values()) and not all(str(k).isdigit() for k in named):
        named = {v: k for k, v in named.items()}
    if not all(str(key).isdigit() for key in named):
        raise NotAList(f"its channels are numbered {list(named)}, not 0, 1, 2, 3")
    names = [str(named[key]) for key in sorted(named, key=lambda key: int(key))]
    kinds = [SUFFIXES.get(re.sub(r"[\s-]+", "_", name.strip().lower())) for name in names]
    if sorted(map(str, kinds)) != sorted(MODALITIES):
        raise NotAList(f"its channels are {names}; FLAIR, T1w, t1gd and T2w are needed")
    return kinds


def _rows(content: Mapping, index: Path) -> Iterable[tuple[list[Path], Path | None]]:
    """The images and the label of every patient that the file lists."""

    def place(text: object) -> Path:
        if not isinstance(text, str):
            raise NotAList(f"it names a file {text!r}, which is no text")
        return Path(index.parent, text)

    explicit = content.get("dataset")
    lists = ([list(explicit.values())] if isinstance(explicit, dict)
             else [content.get(key, []) for key in ("training", "validation", "test", "testing")])
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
            yield _nnunet_files(images), place(label) if label else None


def _nnunet_files(images: list[Path]) -> list[Path]:
    """An nnU-Net v1 list names X.nii.gz where X_0000.nii.gz to X_0003.nii.gz are meant."""
    if len(images) == 1 and not images[0].is_file():
        stem, ending = NIFTI.sub("", images[0].name), "".join(NIFTI.findall(images[0].name))
        parts = sorted(images[0].parent.glob(f"{_literal(stem)}_[0-9][0-9][0-9][0-9].nii{ending}"))
        return parts or images
    return images


def _literal(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _nnunet_rows(folder: Path) -> Iterable[tuple[list[Path], Path | None]]:
    for images, labels in (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"),
                           ("imagesVal", "labelsVal")):
        for first in sorted((folder / images).glob("*_0000.nii*")):
            stem, _, ending = first.name.rpartition("_0000")
            label = folder / labels / f"{stem}{ending}"
            parts = sorted(first.parent.glob(f"{_literal(stem)}_[0-9][0-9][0-9][0-9]{ending}"))
            yield parts, label if label.is_file() else None


def _case(index: Path, images: list[Path], label: Path | None, channels: list[str | None],
          labels: tuple | None) -> Case:
    name = re.sub(r"_0000$", "", NIFTI.sub("", images[0].name))
    by_name = [identify(image) for image in images]
    if len(images) == 1:
        if not channels:
            raise NotAList('it has no "modality" or "channel_names" for the channels of its 4D '
                           'files')
        place = tuple(channels.index(m) for m in MODALITIES)
        return Case(name, tuple(images), label, place, labels=labels or ())
    kinds = [known[2] if known else None for known in by_name]
    if sorted(map(str, kinds)) == sorted(MODALITIES):
        name = by_name[0][1]
    elif channels:
        kinds = channels
    else:
        raise NotAList('it has no "channel_names", and the names of its files do not tell the '
                       'modalities')
    ordered = [image for m in MODALITIES for kind, image in zip(kinds, images, strict=False)
               if kind == m]
    missing = [m for m in MODALITIES if m not in kinds[: len(images)]]
    problem = ("" if not missing and len(images) == len(MODALITIES)
               else (f"patient {name} in {images[0].parent} has {len(images)} images in {index}, "
                     "and four are needed" + (f": add {', '.join(missing)}." if missing else ".")))
    return Case(name, tuple(ordered), label, problem=problem, labels=labels or ())


def labels_of(content: Mapping) -> tuple[tuple[int, int], ...] | None:
    """Return (label on disk, label here) from a data set's description; None if that is uncertain.
    """
    found = content.get("labels")
    if not isinstance(found, dict):
        return None
    by_value: dict[int, list[str]] = {}
    for key, value in found.items():
        if str(key).isdigit():
            key, value = value, key
        for number in value if isinstance(value, list) else [value]:
            if not str(number).isdigit():
                return None
            by_value.setdefault(int(number), []).append(str(key).strip().lower())
    regions = any(isinstance(value, list) for value in found.values())
    pairs = []
    for number, names in sorted(by_value.items()):
        if number:
            label = next((here for here, pattern in (REGION if regions else MEANING)
                          if any(re.search(pattern, name) for name in names)), None)
            if label is None or number > 255:
                return None
            pairs.append((number, label))
    return tuple(pairs) or None
