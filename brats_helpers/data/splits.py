"""Split a cohort by person, never by visit, slice or patch."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..basics.errors import BratsError
from .records import shown

COLUMNS = ("patient", "person")  # of the CSV that `read_persons` reads
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # the first bytes of .xlsx and .ods, and of .xls
# What comes after the person in a patient's name, by data set: a visit, a time point or a date.
VISITS = [re.compile(pattern, re.IGNORECASE) for pattern in (
    r"(BraTS[-_](?:[A-Z]+[-_])+\d+)[-_]\d+",  # BraTS-GLI-00005-100
    r"(BraTSReg_\d+)_.+",
    r"(Brats1[5-9]_.+)_\d+", r"(brats_(?:tcia|2013)_pat\d+)_\d+",  # BraTS 2015 to 2019
    r"(UCSF-PDGM-\d+)_.+", r"(UPENN-GBM-\d+)_.+", r"((?:RHUH|UCSD-PTGBM)-\d+)_\d+",
    r"(TCGA-\w\w-\w{4})[-_].+", r"(sub-[A-Z0-9]+)_.+",  # _1996.08.23; _ses-02 of BIDS
    r"(.*\d.*?)[-_](?:(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d(?:T\d+)?)",  # any number with a date
    r"(.*\d.*?)[-_.](?:ses|session|visit|timepoint|tp|fu|followup|follow-up|week|month|baseline"
    r"|pre-?op|post-?op)[-_]?\w*(?:[-_]\d+)?")]
# Endings that mark a visit if other names differ in them alone: p05_pre, p07-V1, p08_scan1.
REPEATED = re.compile(
    r"(.*?\d.*?)(?:[-_.](?:(?:pre|post)[a-z]*\d?"
    r"|(?:v|scan|exam|study|time|day|year|mr)[-_]?\d{1,3}|[myw]\d{1,2}"
    r"|(?:1st|2nd|3rd|first|second|third|initial|recurren\w+|progression)))+", re.IGNORECASE)


def person_of(name: str) -> str:
    """Return a patient's name without the visit: BraTS-GLI-00005 for BraTS-GLI-00005-100.

    A name of unknown form is a person of its own, as in BraTS 2021.
    """
    return next((match[1] for pattern in VISITS if (match := pattern.fullmatch(name))), name)


def _by_names(names: Sequence[str]) -> dict[str, str]:
    """Return each patient's person, judged by all names together, ignoring case."""
    persons = {name: person_of(name) for name in names}
    without = {one: match[1] if (match := REPEATED.fullmatch(one)) else one
               for one in persons.values()}
    count = Counter(short.casefold() for short in without.values())
    chosen = {name: without[one] if count[without[one].casefold()] > 1 else one
              for name, one in persons.items()}
    spelled = {one.casefold(): one for one in sorted(chosen.values(), reverse=True)}
    return {name: spelled[one.casefold()] for name, one in chosen.items()}


def find_persons(names: Sequence[str], listed: Mapping[str, str] | None = None,
                 twins: Sequence[Sequence[str]] = ()) -> dict[str, str]:
    """Return the person of each patient.

    `listed` holds persons that the user knows (`read_persons`), which override the names. `twins`
    are groups of patients with the same scans (`cases.find_twins`); each becomes one person.
    """
    listed = listed or {}
    named = _by_names([*names, *listed])
    known = {named[name]: person for name, person in listed.items()}
    persons = {name: listed.get(name) or known.get(named[name], named[name]) for name in names}
    for group in twins:
        same = {persons[name] for name in group if name in persons}
        persons = {name: min(same) if person in same else person
                   for name, person in persons.items()}
    return persons


def read_persons(path: str | Path, names: Sequence[str]) -> dict[str, str]:
    """Read a CSV with the columns patient and person, separated by commas, semicolons or tabs.

    `names` are all patients of the cohort. BratsError names the line or the column that is wrong.
    """
    path = Path(path).expanduser()
    lines = _lines_of(path)
    first = lines.readline()
    lines.seek(0)
    reader = csv.reader(lines, delimiter=max(",;\t", key=first.count))
    try:
        rows = [[field.strip() for field in row] for row in reader]
    except csv.Error as error:
        raise BratsError(f"{path}, line {reader.line_num}: not a CSV ({error}).") from error
    header = [field.lower() for field in rows[0]] if rows else []
    if missing := [column for column in COLUMNS if column not in header]:
        raise BratsError(f"{path} has no column {' and no column '.join(missing)}; its first line "
                         f"is {first.strip()!r}. Write the header patient,person and separate the "
                         "columns by commas.")
    return _persons_in(path, rows, [header.index(column) for column in COLUMNS], names)


def _lines_of(path: Path) -> io.StringIO:
    """Read the text of a CSV; BratsError if it cannot be read, or is a workbook."""
    try:
        content = path.read_bytes()
        if content.startswith(WORKBOOKS):
            raise BratsError(f"{path} is an Excel workbook or another spreadsheet, despite its "
                             'name: open it, and save it as "CSV UTF-8".')
        return io.StringIO(content.decode("utf-8-sig"), newline="")
    except OSError as error:
        raise BratsError(f"the list of persons {path} cannot be read ({error.strerror}): name a "
                         "CSV with the columns patient and person.") from error
    except UnicodeDecodeError as error:
        raise BratsError(f'{path} is not a CSV in UTF-8 ({error.reason}): export it as "CSV '
                         'UTF-8".') from error


def _persons_in(path: Path, rows: Sequence[Sequence[str]], columns: Sequence[int],
                names: Sequence[str]) -> dict[str, str]:
    persons: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(row):
            continue
        name, person = (row[i] if i < len(row) else "" for i in columns)
        problem = ""
        if not (name and person):
            problem = "it needs a patient and a person"
        elif name not in names:
            close = difflib.get_close_matches(name, names, 1)
            problem = (f"there is no patient {shown(name)} in this cohort"
                       + (f"; did you mean {close[0]}?" if close else ""))
        elif persons.get(name, person) != person:
            problem = f"{name} is both {persons[name]} and {person}"
        if problem:
            raise BratsError(f"{path}, line {number}: {problem}. Correct the line or remove it.")
        persons[name] = person
    return persons


def deal(order: Sequence[str], volumes: Sequence[float], groups: int,
         rng: np.random.Generator) -> list[list[str]]:
    """Deal names into `groups` so that each gets its share of every tumor size.

    The names are sorted by volume, and each group gets one of every `groups` neighbors at random.
    """
    ranked = [order[i] for i in np.argsort(volumes, kind="stable")]
    hands: list[list[str]] = [[] for _ in range(groups)]
    for start in range(0, len(ranked), groups):
        some = ranked[start:start + groups]
        for hand, name in zip(rng.permutation(groups), some, strict=False):
            hands[hand].append(name)
    return hands


def make_splits(names: Sequence[str], volumes_ml: Sequence[float], seed: int,
                validation: float = 0.2, folds: int = 5,
                persons: Mapping[str, str] | None = None) -> dict:
    """Split people into training and validation, and into folds, stratified by tumor volume.

    The volume (ml) of a person is that of their largest tumor. `persons` is from `find_persons`; by
    default, the names decide. Returns names under "training" and "validation", a list of those held
    out per fold under "folds", and the patients of each person who has several under "persons". The
    order of the input does not matter. BratsError for fewer than two persons or a repeated name.
    """
    if len(set(names)) < len(names):
        raise BratsError("two patients have the same name: rename one.")
    persons = persons or find_persons(names)
    groups: dict[str, list[str]] = defaultdict(list)  # a person takes the first patient's place
    for name in sorted(names):
        groups[persons[name]].append(name)
    if len(groups) < 2:
        raise BratsError(f"{len(names)} patient(s) with a reference, of {len(groups)} person(s): "
                         "at least two persons are needed, one to learn from and one to validate "
                         "on.")
    volume = dict(zip(names, volumes_ml, strict=True))
    order, sizes = list(groups), [max(volume[name] for name in group) for group in groups.values()]
    rng = np.random.default_rng(seed)

    def dealt(number: int) -> list[list[str]]:
        hands = deal(order, sizes, min(len(order), number), rng)
        return [sorted(name for person in hand for name in groups[person]) for hand in hands]

    held_out = dealt(max(2, round(1 / validation)))[0]
    return {"seed": seed, "training": sorted(set(names) - set(held_out)),
            "validation": held_out, "folds": dealt(folds),
            "persons": {person: group for person, group in groups.items() if len(group) > 1}}
