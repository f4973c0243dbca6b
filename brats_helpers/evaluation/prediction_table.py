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
        self.path, self.rows, self.lost = path, {}, False
        output_file(path)  # reading a pipe would wait forever
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                found = list(csv.DictReader(file))
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError, csv.Error):
            found = []
        if found and set(COLUMNS) - NEWER <= set(found[0]):
            rows = [{name: row.get(name) or "" for name in COLUMNS} for row in found]
            self.rows = {name: row | {"case": name} for row in rows if (name := _own(row["case"]))}
        elif path.stat().st_size:
            aside = next(place for n in itertools.count() if not os.path.lexists(
                place := path.with_name(f"{TABLE}.unreadable{n or ''}")))
            os.replace(path, aside)
            self.lost = True  # so nobody knows who wrote the masks
            tqdm.write(f"WARNING: {path} is damaged or not a table of predict: kept as "
                       f"{aside.name}. Without it, all masks are made again.")

    def keeps(self, case: Case, source: str) -> bool:
        """Tell whether the mask stays: it is up to date, or somebody corrected it."""
        row, mask = self.rows.get(case.name, {}), self.path.parent / f"{case.name}.nii.gz"
        if row.get("status") != DONE or not mask.is_file():
            return False
        if mask_crc(mask) == row["mask_crc"] != "":
            return source == row["made_from"] != ""
        try:
            voxels(case, mask, open_image(case, mask))
        except BratsError:  # cut short or empty: nobody's correction
            return False
        row["warnings"] = ("the mask was changed after it was written, and is kept; --overwrite "
                           "makes it again")
        tqdm.write(f"WARNING: {case.name}: {row['warnings']}.")
        return True

    def fail(self, name: str, status: str, problems: Sequence[str]) -> None:
        """Record and print why a patient has no mask."""
        tqdm.write(f"NOT SEGMENTED: {name}: {' '.join(problems)}")
        if (self.path.parent / f"{name}.nii.gz").is_file():
            problems = [*problems, "The mask that is there is from an earlier call."]
        self.rows[name] = new_row(name, status, problems)

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


def exit_code(rows: Sequence[dict]) -> int:
    """Return 0 if all patients have a mask, 3 if some have, 1 if none has."""
    done = sum(row["status"] == DONE for row in rows)
    return 0 if done == len(rows) else 3 if done else 1
