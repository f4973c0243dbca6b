"""Run notebook 05 for every point of a grid, on shared preprocessing, and report on all of them.

Each point has its own folder with the executed notebook and metrics.json. A sweep does not repeat
a finished point, resumes an interrupted one from its last checkpoint, and records the error of one
that fails while the others go on. joblib distributes the points over processes or a Dask cluster.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jupytext
import papermill
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from ..basics.errors import BratsError
from ..basics.files import read_json, write_json
from ..basics.jobs import worker_count
from .series import FOLDER, NAMES, ROOT, declared, execute, render, run_series

SHARED = ("config.json", "cohort.json", "patients.json", "splits.json")


def points_of(grid: Mapping[str, Sequence[object]]) -> list[dict]:
    """Return every combination of a grid's values, the last name changing fastest.

    Raises BratsError for a name that no notebook declares, and for one without values.
    """
    tables = [declared(number) for number in (1, 2, 3, len(NAMES))]  # what a sweep runs
    known = set().union(*tables) - {"work", "preset", "source"}
    if unknown := sorted(set(grid) - known):
        raise BratsError(f"no notebook has a parameter {', '.join(unknown)}; there are: "
                         f"{', '.join(sorted(known))}.")
    if empty := [name for name, values in grid.items() if not values]:
        raise BratsError(f"--grid {empty[0]}= has no value: give some, as in {empty[0]}=1,2,3.")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def name_of(point: Mapping[str, object]) -> str:
    """Return a folder name for a point, as in learning_rate=0.001,seed=2."""
    texts = {name: f"{value:g}" if isinstance(value, float) else str(value)
             for name, value in point.items()}
    return ",".join(f"{name}={re.sub(r'[:/]', '.', text)}" for name, text in texts.items())


def run_sweep(grid: Mapping[str, Sequence[object]], work: Path, preset: str | None = None,
              source: str | None = None, fixed: Mapping[str, object] | None = None, jobs: int = 1,
              backend: str = "loky", scheduler: str | None = None) -> list[dict]:
    """Run every point of a grid in `work`/points.

    `fixed` are parameters of all points; `scheduler` is a Dask cluster's address, for "dask".
    Notebooks 01 to 03 run once for each choice of the parameters that 05 does not declare.
    Returns a row for each point: its parameters, and its metrics or its error.
    """
    points_of({name: [value] for name, value in (fixed or {}).items()})  # refuse unknown names
    work, points, late = Path(work).absolute(), points_of(grid), declared(len(NAMES))
    rows, tasks = [], []
    for point in tqdm(points, desc="shared notebooks", unit="point"):
        early = {name: value for name, value in point.items() if name not in late}
        base = work / "shared" / (name_of(early) or "all")
        _run_shared(base, preset, source, {**(fixed or {}), **early})
        place = work / "points" / name_of(point)
        _link(base, place)
        wanted = {**(fixed or {}), **point}
        rows.append({"name": place.name, "parameters": point})
        tasks.append(delayed(run_point)(place, {k: v for k, v in wanted.items() if k in late}))
    with _pool(backend, scheduler):
        results = Parallel(n_jobs=worker_count(jobs, len(tasks)), return_as="generator")(tasks)
        done = list(tqdm(results, total=len(points), desc="points", unit="run"))
    rows = [{**row, **result} for row, result in zip(rows, done, strict=True)]
    write_json(work / "sweep.json", rows)
    return rows


def _run_shared(base: Path, preset: str | None, source: str | None,
                parameters: Mapping[str, object]) -> None:
    """Run notebooks 01 to 03 in `base` once; raises BratsError if it holds other patients."""
    known = {number: {k: v for k, v in parameters.items() if k in declared(number)}
             for number in (1, 2, 3)}
    asked = {"preset": preset, "source": source, **known[1], **known[2], **known[3]}
    note = base / "asked.json"
    if note.is_file() and (before := read_json(note, "the sweep")) != asked:
        raise BratsError(f"{base} holds the patients of another sweep ({before}; now {asked}): "
                         "name another folder with --work, or delete that one.")
    if (base / "preprocessed" / "dataset.json").is_file():
        return
    write_json(note, asked)
    for number, chosen in known.items():
        run_series(preset, source if number == 1 else None, base, only=number, parameters=chosen)


def _link(base: Path, place: Path) -> None:
    """Give a point its input: copies of the settings, hard links to the prepared patients."""
    (place / "preprocessed").mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        shutil.copyfile(base / name, place / name)
    for path in (base / "preprocessed").iterdir():
        target = place / "preprocessed" / path.name
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(path, target)


@contextlib.contextmanager
def _pool(backend: str, scheduler: str | None) -> Iterator[None]:
    """Select joblib's backend, and connect to the Dask cluster if that is the backend."""
    with contextlib.ExitStack() as stack:
        if backend == "dask":
            try:
                from distributed import Client
            except ModuleNotFoundError as error:
                raise BratsError("the dask backend needs another package: "
                                 "pip install \"dask[distributed]\".") from error
            stack.enter_context(Client(scheduler))
        stack.enter_context(parallel_config(backend=backend))
        yield


def run_point(place: Path, parameters: Mapping[str, object]) -> dict:
    """Run notebook 05 in a point's folder, unless it has run there with these parameters.

    Returns the point's metrics or its error: a point that fails does not end the sweep.
    """
    note, result = place / "point.json", place / "metrics.json"
    finished = result.is_file() and note.is_file()
    if not finished or read_json(note, "the sweep") != dict(parameters):
        result.unlink(missing_ok=True)
        try:
            execute(len(NAMES), place / "notebooks", {"work": str(place), **parameters})
        except BratsError as error:
            return {"error": str(error)}
        write_json(note, dict(parameters))
    return {"metrics": read_json(result, "notebook 05")}


def write_report(work: Path) -> Path:
    """Execute the report on a sweep into `work`/report.ipynb, render it, and return its path."""
    work = Path(work).absolute()
    target = work / "report.ipynb"
    jupytext.write(jupytext.read(FOLDER / "sweep_report.py"), target)
    papermill.execute_notebook(str(target), str(target), {"work": str(work)},
                               kernel_name="python3", cwd=str(ROOT),
                               progress_bar={"desc": "report", "leave": False})
    render(target)
    return target
