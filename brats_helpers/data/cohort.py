"""Keep settings, patients and the split in the work folder, from one notebook to the next.

Each step's files carry the tag of their source, so the next step notices if one was skipped or run
with other settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..basics.config import Config
from ..basics.errors import BratsError
from ..basics.files import write_json
from ..basics.shapes import NUMBER, read_json_as
from .archive import find_patients
from .cases import Case

SPLIT_SETTINGS = ("seed", "validation", "folds")  # what the split depends on, besides the patients
OPTIONAL = (str, type(None))
SOURCE = {"source": str, "synthetic": bool, "training": str, "test": OPTIONAL, "tag": str}
ROW = {"name": str, "problems": [str]}
PATIENTS = {"tag": str, "folders": {"training": str, "test": OPTIONAL},
            "rows": {"training": [ROW], "test": [ROW]}}
SPLITS = {"tag": str, "seed": NUMBER, "training": [str], "validation": [str], "folds": [[str]]}


@dataclass(frozen=True)
class Cohort:
    """The patients of a work folder, by set: "training" (and validation) and "test"."""

    synthetic: bool  # phantoms, not people
    cases: Mapping[str, Sequence[Case]]  # by set: those that passed the check
    rows: Mapping[str, Sequence[Mapping]]  # by set: all rows of `cases.check_case`
    splits: Mapping  # of `splits.make_splits`

    @property
    def left_out(self) -> list[str]:
        """Name the patients with a problem, who were left out at the user's request."""
        return [row["name"] for rows in self.rows.values() for row in rows if row["problems"]]

    @property
    def by_name(self) -> dict[str, Case]:
        """Return every patient by name."""
        return {case.name: case for found in self.cases.values() for case in found}

    @property
    def test_names(self) -> list[str]:
        """Name the test patients with a reference, who can be scored."""
        return [case.name for case in self.cases["test"] if case.reference]

    def held_out(self, config: Config) -> list[str]:
        """Name the patients held out, the validation set or a fold; BratsError for no such fold."""
        folds = self.splits["folds"]
        if config.fold >= len(folds):
            raise BratsError(f"fold={config.fold} cannot work: this cohort is small and has folds "
                             f"0 to {len(folds) - 1}.")
        return self.splits["validation"] if config.fold < 0 else folds[config.fold]

    def training_names(self, config: Config, all_data: bool = False) -> list[str]:
        """Name the patients to train on: those not held out, or all with `all_data`."""
        kept = () if all_data else self.held_out(config)
        return sorted(set(self.splits["training"] + self.splits["validation"]) - set(kept))


def write_source(work: Path, config: Config, source: str, training: Path, test: Path | None,
                 synthetic: bool = False) -> None:
    """Write what notebook 01 leaves: config.json, and cohort.json with the patients' places."""
    config.save(work / "config.json")
    places = {"training": str(training), "test": str(test) if test else None}
    write_json(work / "cohort.json", {"source": source, "synthetic": synthetic, **places,
                                      "tag": _tag(config, [training, test])})


def _tag(config: Config, places: Sequence[Path | None]) -> str:
    """Return eight characters that change with the archives and the split's settings."""
    archives = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] if p and p.is_file() else str(p)
                for p in places]
    text = json.dumps([[getattr(config, name) for name in SPLIT_SETTINGS], archives])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def read_source(work: Path) -> dict:
    """Read notebook 01's cohort.json: source, synthetic, training, test (or None) and tag."""
    return read_json_as(work / "cohort.json", "notebook 01", SOURCE)


def write_patients(work: Path, folders: Mapping[str, Path | None],
                   rows: Mapping[str, Sequence[dict]], splits: Mapping) -> None:
    """Write what notebook 02 leaves: splits.json, and patients.json with the rows by set."""
    tag = read_source(work)["tag"]
    places = {key: str(folder) if folder else None for key, folder in folders.items()}
    write_json(work / "splits.json", {**splits, "tag": tag})
    write_json(work / "patients.json", {"tag": tag, "folders": places, "rows": rows})


def read_cohort(work: Path) -> Cohort:
    """Read what notebooks 01 and 02 left; BratsError if a file is missing or of another run."""
    source = read_source(work)
    patients = read_json_as(work / "patients.json", "notebook 02", PATIENTS)
    splits = read_json_as(work / "splits.json", "notebook 02", SPLITS)
    if {patients["tag"], splits["tag"]} != {source["tag"]}:
        raise BratsError(f"the patients and the split in {work} were made before notebook 01 was "
                         "last run with other data or settings: run notebooks 02 and 03 again.")
    rows = patients["rows"]
    cases = {key: _sound(folder, rows[key]) for key, folder in patients["folders"].items()
             if key in rows}
    return Cohort(source["synthetic"], cases, rows, splits)


def _sound(folder: str | None, rows: Sequence[Mapping]) -> list[Case]:
    """Return the patients of a folder that passed the check."""
    sound = {row["name"] for row in rows if not row["problems"]}
    there = find_patients(Path(folder)).cases if folder else []
    cases = [case for case in there if case.name in sound]
    if gone := sorted(sound - {case.name for case in cases}):
        raise BratsError(f"{len(gone)} patient(s) that notebook 02 found are no longer in {folder} "
                         f"({', '.join(gone[:3])}{', ...' if len(gone) > 3 else ''}): put them "
                         "back, or run notebooks 02 and 03 again, which make a new split.")
    return cases
