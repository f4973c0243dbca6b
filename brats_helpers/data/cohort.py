"""What one notebook leaves in the work folder for the next: the settings, the patients and the split.

Each step's files carry the tag of what they were made from, so that a step that was left out, or run
with other settings, is noticed by the next one instead of giving a wrong result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..basics.config import Config
from ..basics.errors import BratsError
from ..basics.files import read_json, write_json
from .archive import patients_in
from .cases import Case

SPLIT_SETTINGS = ("seed", "validation", "folds")      # what the split depends on, beside the patients


@dataclass(frozen=True)
class Cohort:
    """The patients of a work folder: `cases`, those that passed the check, and `rows` of `cases.check_case` for all,
    by set, "training" and "test"."""

    synthetic: bool
    cases: Mapping[str, Sequence[Case]]
    rows: Mapping[str, Sequence[Mapping]]
    splits: Mapping

    @property
    def left_out(self) -> list[str]:
        """The patients that had a problem and were left out on the user's word."""
        return [row["name"] for rows in self.rows.values() for row in rows if row["problems"]]

    @property
    def by_name(self) -> dict[str, Case]:
        """Every patient, by name."""
        return {case.name: case for found in self.cases.values() for case in found}

    @property
    def test_names(self) -> list[str]:
        """The test patients that can be scored: those with a reference."""
        return [case.name for case in self.cases["test"] if case.reference]

    def held_out(self, config: Config) -> list[str]:
        """The patients that training does not see: the validation set, or the fold that the configuration names."""
        if config.fold < 0:
            return self.splits["validation"]
        if config.fold >= len(self.splits["folds"]):
            raise BratsError(f"fold={config.fold} cannot work: this cohort is small and has folds 0 to "
                             f"{len(self.splits['folds']) - 1}.")
        return self.splits["folds"][config.fold]

    def learnt(self, config: Config, everyone: bool = False) -> list[str]:
        """All labeled patients but those held out, or really all."""
        kept = () if everyone else self.held_out(config)
        return sorted(set(self.splits["training"] + self.splits["validation"]) - set(kept))


def write_source(work: Path, config: Config, source: str, training: Path, test: Path | None,
                 synthetic: bool = False) -> None:
    """Write config.json, and cohort.json with where the patients are (archives or folders): what notebook 01 leaves."""
    config.save(work / "config.json")
    places = {"training": str(training), "test": str(test) if test else None}
    write_json(work / "cohort.json", {"source": source, "synthetic": synthetic, **places,
                                      "tag": _tag(config, [training, test])})


def _tag(config: Config, places: Sequence[Path | None]) -> str:
    """Eight characters that change with the archives and with the settings that the split depends on."""
    archives = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] if p and p.is_file() else str(p) for p in places]
    text = json.dumps([[getattr(config, name) for name in SPLIT_SETTINGS], archives])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def write_patients(work: Path, folders: Mapping[str, Path | None], rows: Mapping[str, Sequence[dict]],
                   splits: Mapping) -> None:
    """What notebook 02 leaves: patients.json with the rows of `cases.check_cohort` by set, and splits.json."""
    tag = read_json(work / "cohort.json", "notebook 01")["tag"]
    places = {key: str(folder) if folder else None for key, folder in folders.items()}
    write_json(work / "splits.json", {**splits, "tag": tag})
    write_json(work / "patients.json", {"tag": tag, "folders": places, "rows": rows})


def read_cohort(work: Path) -> Cohort:
    """What notebooks 01 and 02 left; BratsError where it is missing, or not from one and the same run of both."""
    source = read_json(work / "cohort.json", "notebook 01")
    patients, splits = (read_json(work / f"{name}.json", "notebook 02") for name in ("patients", "splits"))
    if {patients.get("tag"), splits.get("tag")} != {source["tag"]}:
        raise BratsError(f"the patients and the split in {work} were made before notebook 01 was last run with other "
                         "data or settings: run notebooks 02 and 03 again.")
    cases = {}
    for key, folder in patients["folders"].items():
        sound = {row["name"] for row in patients["rows"][key] if not row["problems"]}
        cases[key] = [case for case in patients_in(Path(folder)) if case.name in sound] if folder else []
        if gone := sorted(sound - {case.name for case in cases[key]}):
            raise BratsError(f"{len(gone)} patient(s) that notebook 02 has found are no longer in {folder} "
                             f"({', '.join(gone[:3])}{', ...' if len(gone) > 3 else ''}): put them back, or run notebooks 02 "
                             "and 03 again, which split the others anew.")
    return Cohort(source["synthetic"], cases, patients["rows"], splits)
