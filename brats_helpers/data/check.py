"""Report on a folder or an archive of patients: a table for the terminal, CSV and HTML."""

from __future__ import annotations

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from ..basics.errors import BratsError
from ..basics.files import output_file, read_json, safe_cell, write_file
from .archive import extract, find_patients, readable_in_place
from .cases import check_cohort, find_twins
from .finding import besides
from .layouts import NIFTI
from .members import list_archive, why_broken
from .plausibility import cohort_warnings
from .records import Found, Unused, shown
from .sources import archives_of, is_archive, kind_of, resolve_source
from .unused import SHOWN, list_unused

FIELDS = ("patient", "status", "shape", "spacing_mm", "orientation", "reference", "NCR_ml", "ED_ml",
          "ET_ml", "remarks")
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<title>Check of {title}</title><style>
body{{font:15px sans-serif;max-width:75em;margin:2em auto}}table{{border-collapse:collapse}}
td,th{{border:1px solid #bbb;padding:.3em .6em;text-align:left;vertical-align:top}}
.problem{{background:#f8d7d0}}.warning{{background:#fbeecb}}</style><h1>Check of {title}</h1>
<p>{summary}</p>{remarks}<table>{rows}</table></html>
"""


@dataclass(frozen=True)
class Report:
    """The findings at a place: patients, unused files, and warnings about the cohort."""

    place: Path
    rows: Sequence[Mapping]  # of `cases.check_case`
    unused: Sequence[Unused]
    warnings: Sequence[str]

    @property
    def sound(self) -> bool:
        """Tell whether nothing needs a person's attention."""
        return not (self.warnings or any(row["problems"] or row["warnings"] for row in self.rows)
                    or any(one.remedy for one in self.unused))

    @property
    def summary(self) -> str:
        """Count the patients by status, and the files that are not used, in one line."""
        count = Counter(map(status, self.rows))
        parts = [f"{len(self.rows)} patient(s) in {shown(str(self.place))}", f"{count['ok']} ok"]
        parts += [f"{count[kind]} with a {kind}" for kind in ("problem", "warning") if count[kind]]
        return ", ".join(parts + ([f"{len(self.unused)} not used"] if self.unused else [])) + "."


def check_path(path: Path, jobs: int = -1) -> Report:
    """Find and check all patients in a folder or archive.

    A compressed archive is unpacked into a temporary folder. If some archives of a folder are
    broken, the others are checked.
    """
    place = _source(path)
    try:
        return _check_place(path, place, jobs)
    except BratsError:
        archives = archives_of(place) if place.is_dir() else []
        broken = {one: problem for one in archives if (problem := why_broken(one))}
        if not 0 < len(broken) < len(archives):
            raise
    left = [Unused(one, f"not checked: {problem.rstrip('.')}", "the other archives were checked")
            for one, problem in broken.items()]
    with _temporary(place) as folder:
        for one in archives:
            if one not in broken:
                link = Path(folder) / one.relative_to(place)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(one)
        report = replace(check_path(Path(folder), jobs), place=place)
        return _as_in(report, folder, [*left, *_besides(path)])


def _check_place(path: Path, place: Path, jobs: int) -> Report:
    if is_archive(place) and not readable_in_place(place):
        with _temporary(place) as folder:
            extract(place, Path(folder))
            report = check_found(find_patients(Path(folder)), place, jobs)
            return _as_in(report, folder, _besides(path))
    found = find_patients(place)
    extra = _besides(path) if place.is_file() else []
    return check_found(Found(found.cases, found.unused + extra), place, jobs)


@contextmanager
def _temporary(place: Path) -> Iterator[str]:
    """Yield a temporary folder; errors name the place instead of it."""
    with tempfile.TemporaryDirectory(prefix="brats-check-") as folder:
        try:
            yield folder
        except BratsError as error:
            raise BratsError(str(error).replace(folder, str(place))) from error


def _source(path: Path) -> Path:
    """Return the place to read from; BratsError for a zip without scans, such as a checkpoint."""
    place = resolve_source(path)
    if kind_of(place) == "zip" and not any(NIFTI.search(m.name) for m in list_archive(place)):
        raise BratsError(f"{place} is a zip file without a NIfTI scan: name an archive or a folder "
                         "of patients.")
    return place


def _as_in(report: Report, folder: str, extra: Sequence[Unused]) -> Report:
    """Name files by their place in the archive instead of the folder it was unpacked into."""
    def as_in(text: str) -> str:
        return text.replace(folder, str(report.place))

    rows = [row | {kind: list(map(as_in, row[kind])) for kind in ("problems", "warnings", "notes")}
            for row in report.rows]
    unused = [Unused(Path(as_in(str(one.path))), as_in(one.reason), as_in(one.remedy))
              for one in report.unused]
    return Report(report.place, rows, [*unused, *extra], report.warnings)


def _besides(path: Path) -> list[Unused]:
    """Return the unused files of a folder of archives."""
    folder = Path(path).expanduser().absolute()
    archives = archives_of(folder) if folder.is_dir() else []
    return besides(folder, archives) if archives else []


def check_found(found: Found, place: Path, jobs: int) -> Report:
    """Check patients that were found at a place."""
    rows = check_cohort(found.cases, jobs if len(found.cases) > 1 else 1)
    twins = [f"{', '.join(names)} have the same scans: keep one of them"
             for names in find_twins(rows)]
    return Report(Path(place), rows, found.unused, [*cohort_warnings(rows), *twins])


def unused_at(path: Path) -> str:
    """List the unused files of a source; a compressed archive is not unpacked for that."""
    place = _source(path)
    if is_archive(place) and not readable_in_place(place):
        return list_unused(_besides(path))
    return list_unused(find_patients(place).unused + (_besides(path) if place.is_file() else []))


def warnings_of(work: Path) -> list[str]:
    """Return the warnings that the check left in a work folder, if notebook 02 has run."""
    if not (Path(work) / "patients.json").is_file():
        return []
    found = read_json(Path(work) / "patients.json", "notebook 02")
    rows = [row for rows in found["rows"].values() for row in rows]
    return [text for row in rows for text in row.get("warnings", [])] + cohort_warnings(rows)


def status(row: Mapping) -> str:
    """Return a row's state in one word: problem, warning or ok."""
    return "problem" if row["problems"] else "warning" if row["warnings"] else "ok"


def problems_text(rows: Sequence[Mapping]) -> str:
    """Return the problems of all patients as lines of text, at most SHOWN of them."""
    lines = [f"  {problem}" for row in rows for problem in row["problems"]]
    more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(lines[:SHOWN] + more)


def remarks(row: Mapping) -> list[str]:
    """Return all remarks on a patient, without the name that each begins with."""
    return [shown(text.removeprefix(f"patient {row['name']}: "))
            for kind in ("problems", "warnings", "notes") for text in row[kind]]


def table_rows(rows: Sequence[Mapping]) -> list[tuple]:
    """Return the rows of the table, with the columns of FIELDS."""
    return [(row["name"], status(row),
             *(" x ".join(f"{v:g}" for v in row[key] or ()) for key in ("shape", "spacing_mm")),
             row["orientation"] or "", "yes" if row["reference"] else "no",
             *((row["volumes_ml"] or {}).get(name, "") for name in ("NCR", "ED", "ET")),
             " | ".join(remarks(row))) for row in rows]


def report_text(report: Report) -> str:
    """Return the report for a terminal: one line per patient, each followed by its remarks."""
    width = max([len(row["name"]) for row in report.rows] + [7])
    line = f"{{:<{width}}}  {{:<8}} {{:<16}} {{:<18}} {{:<5}} {{}}"
    lines = [line.format("patient", "status", "shape", "voxel (mm)", "axes", "reference")]
    for row, cells in zip(report.rows, table_rows(report.rows), strict=True):
        lines.append(line.format(*cells[:6]))
        lines += [f"    {remark}" for remark in remarks(row) if remark != "no reference"]
    lines += [f"\nWARNING: {warning}" for warning in report.warnings]
    if said := list_unused(report.unused):
        lines.append(f"\n{said}")
    return "\n".join([*lines, f"\n{report.summary}"])


def write_csv(path: Path, report: Report) -> None:
    """Write one CSV line per patient, then per unused file and per warning about the cohort."""
    blank = [""] * (len(FIELDS) - 3)
    rows = [*table_rows(report.rows),
            *([shown(str(one.path)), "not used", *blank, f"{one.reason}; {one.remedy}".strip("; ")]
              for one in report.unused),
            *(["(all)", "warning", *blank, warning] for warning in report.warnings)]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(
        [FIELDS, *([safe_cell(cell) for cell in row] for row in rows)])
    write_file(path, buffer.getvalue())


def write_html(path: Path, report: Report) -> None:
    """Write the report as one page that loads nothing else."""
    rows = ["<tr>" + "".join(f"<th>{name}</th>" for name in FIELDS) + "</tr>"]
    for cells in table_rows(report.rows):
        body = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        rows.append(f'<tr class="{cells[1]}">{body}</tr>')
    items = "".join(f"<li>{escape(str(one))}</li>" for one in [*report.warnings, *report.unused])
    write_file(path, PAGE.format(
        title=escape(str(report.place)), summary=escape(report.summary),
        remarks=f"<ul>{items}</ul>" if items else "", rows="".join(rows)))


def check_outputs(*paths: Path | None) -> None:
    """Raise BratsError, before the work is done, for output paths that cannot be written."""
    given = [Path(path).absolute() for path in paths if path]
    if len(set(given)) < len(given):
        raise BratsError(f"{given[0]} was named for two tables: give each its own name.")
    for path in given:
        output_file(path)
        if NIFTI.search(path.name):
            raise BratsError(f"{path} has the name of a scan: give another name for the table.")
        if above := [p for p in path.parents if p.is_file()]:
            raise BratsError(f"{path} cannot be written, because {above[0]} is not a folder.")
        try:
            tempfile.TemporaryFile(dir=next(p for p in path.parents if p.is_dir())).close()
        except OSError as error:
            raise BratsError(f"{path} cannot be written ({error.strerror}): name another place."
                             ) from error
