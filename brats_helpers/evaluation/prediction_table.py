"""The table of a batch: `predictions.csv`, with what each mask was made from."""

from __future__ import annotations

import csv
import io
import itertools
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from ..basics.errors import BratsError
from ..basics.files import gunzip, output_file, safe_cell, write_file
from ..data.nifti import open_image, voxels
from ..data.records import Case

TABLE = "predictions.csv"
VOLUMES = ("WT_ml", "TC_ml", "ET_ml")
COLUMNS = ("case", "status", *VOLUMES, "expected_dice", "warnings", "seconds", "made_from",
           "mask_crc")
NEWER = {"expected_dice"}  # columns that tables of earlier versions lack
DONE, FAILED, INCOMPLETE, WAITING = "done", "failed", "missing contrasts", "not yet"


class Table:
    """`predictions.csv`: a row for each patient, rewritten whole as the batch goes on."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, {}
        output_file(path)  # reading a pipe would wait forever
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                first = file.readline()  # some spreadsheets save other delimiters
                file.seek(0)
                found = list(csv.DictReader(file, delimiter=max(",;\t", key=first.count)))
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError, csv.Error):
            found = []
        if found and set(COLUMNS) - NEWER <= set(found[0]):
            rows = [{name: row.get(name) or "" for name in COLUMNS} for row in found]
            self.rows = {name: row | {"case": name} for row in rows if (name := _own(row["case"]))}
        elif path.stat().st_size:
            aside = set_aside(path, "unreadable")
            tqdm.write(f"WARNING: {path} is damaged or not a table of predict: kept as {aside}. "
                       "Without it, all masks are made again.")

    def keeps(self, case: Case, source: str) -> bool:
        """Tell whether the mask stays: it is up to date, or somebody corrected it."""
        row, mask = self.rows.get(case.name, {}), self.path.parent / f"{case.name}.nii.gz"
        if row.get("status") != DONE or not mask.is_file():
            return False
        if row["mask_crc"] and mask_crc(mask) == row["mask_crc"]:
            return bool(source) and source == row["made_from"]
        try:
            voxels(case, mask, open_image(case, mask))
        except BratsError:  # cut short or empty: nobody's correction
            return False
        row["warnings"] = ("the mask was changed after it was written, and is kept; --overwrite "
                           "makes it again")
        tqdm.write(f"WARNING: {case.name}: {row['warnings']}.")
        return True

    def wrote(self, name: str) -> bool:
        """Tell whether an earlier call wrote the file with the name of a patient's mask.

        A file that is cut short or empty counts: it is nobody's correction.
        """
        crc = self.rows.get(name, {}).get("mask_crc")
        return bool(crc) and mask_crc(self.path.parent / f"{name}.nii.gz") in ("", crc)

    def wait(self, name: str) -> None:
        """Record that a patient's mask is still to be made; what wrote the old one stays known."""
        self.rows[name] = new_row(name, WAITING, mask_crc=self._crc(name))

    def fail(self, name: str, status: str, problems: Sequence[str]) -> None:
        """Record and print why a patient has no mask."""
        tqdm.write(f"NOT SEGMENTED: {name}: {' '.join(problems)}")
        if os.path.isfile(self.path.parent / f"{name}.nii.gz"):  # False for an impossible name
            whose = "from an earlier call" if self.wrote(name) else "not from predict"
            problems = [*problems, f"The mask that is there is {whose}."]
        self.rows[name] = new_row(name, status, problems, mask_crc=self._crc(name))

    def _crc(self, name: str) -> str:
        return self.rows.get(name, {}).get("mask_crc", "")

    def write(self, row: dict) -> None:
        """Store a patient's row, save the table, and print the row's warnings."""
        name, known = row["case"], self.rows.get(row["case"], {})
        if row["status"] == FAILED:
            self.fail(name, FAILED, [row["warnings"]])
        else:
            for text in filter(None, row["warnings"].split(" | ")):
                tqdm.write(f"WARNING: {text}")
            said = [known.get("warnings", "")] if known.get("status") == WAITING else []
            self.rows[name] = row | {"warnings": " | ".join(filter(None, (*said, row["warnings"])))}
        self.save()

    def save(self) -> None:
        """Write the table atomically."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS)
        writer.writeheader()
        writer.writerows({name: safe_cell(cell) for name, cell in self.rows[case].items()}
                         for case in sorted(self.rows))
        write_file(self.path, buffer.getvalue())


def set_aside(path: Path, why: str) -> str:
    """Rename a file to a name that is free, and return that."""
    aside = next(place for n in itertools.count() if not os.path.lexists(
        place := path.with_name(f"{path.name}.{why}{n or ''}")))
    os.replace(path, aside)
    return aside.name


def _own(name: str) -> str:
    """Undo `safe_cell`."""
    return name[1:] if name[1:] and safe_cell(name[1:]) == name else name


def new_row(name: str, status: str, warnings: Iterable[str] = (), **values: object) -> dict:
    """Return a row of the table, by column; `values` fills further columns."""
    return dict.fromkeys(COLUMNS, "") | {
        "case": name, "status": status, "warnings": " | ".join(warnings), **values}


def mask_crc(path: Path) -> str:
    """Compute the checksum of a mask's content; "" if it is missing or damaged."""
    try:
        return f"{zlib.crc32(gunzip(path.read_bytes())):08x}"
    except (OSError, IndexError):
        return ""
