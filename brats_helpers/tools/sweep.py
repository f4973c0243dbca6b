"""Many runs from one command: notebook 05 for every point of a grid, on shared preprocessing, and a report of them all.

Each point has a folder of its own with its executed notebook and its metrics.json. A point that is
finished is not run again, one that was cut off goes on from its last checkpoint, and one that fails is
reported and stops nobody else. joblib spreads the points over processes (loky) or over a Dask cluster.
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
from .series import FOLDER, NAMES, ROOT, declared, execute, render, run_series

SHARED = ("config.json", "cohort.json", "patients.json", "splits.json")
REPORT = FOLDER / "sweep_report.py"


def points_of(grid: Mapping[str, Sequence[object]]) -> list[dict]:
    """Every combination of a grid's values, the last name changing fastest; BratsError for a name that nobody declares."""
    tables = [declared(number) for number in range(1, len(NAMES) + 1)]
    known = set().union(*tables) - {"work", "preset", "source"}
    if unknown := sorted(set(grid) - known):
        raise BratsError(f"no notebook has a parameter {', '.join(unknown)}; there are: {', '.join(sorted(known))}.")
    if empty := [name for name, values in grid.items() if not values]:
        raise BratsError(f"--grid {empty[0]}= has no value: give some, as in {empty[0]}=1,2,3.")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def name_of(point: Mapping[str, object]) -> str:
    """A folder's name for a point, as in learning_rate=0.001,seed=2."""
    texts = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in point.items()}
    return ",".join(f"{name}={re.sub(r'[:/]', '.', text)}" for name, text in texts.items())


def run_sweep(grid: Mapping[str, Sequence[object]], work: Path, preset: str | None = None, source: str | None = None,
              fixed: Mapping[str, object] | None = None, jobs: int = 1, backend: str = "loky",
              scheduler: str | None = None) -> list[dict]:
    """Run every point of a grid in `work`/points; returns a row for each: its parameters, and its metrics or its error.

    fixed: parameters that all points share; scheduler: the address of a Dask cluster, with backend "dask".
    What notebook 05 does not declare is settled by the notebooks before it, which are run once for each such choice.
    """
    work, points, late = Path(work).absolute(), points_of(grid), declared(len(NAMES))
    places = []
    for point in tqdm(points, desc="shared notebooks", unit="point"):
        early = {name: value for name, value in point.items() if name not in late}
        base = work / "shared" / (name_of(early) or "all")
        _run_shared(base, preset, source, {**(fixed or {}), **early})
        place = work / "points" / name_of(point)
        _link(base, place)
        places.append(place)
    asked = [{name: value for name, value in {**(fixed or {}), **point}.items() if name in late} for point in points]
    with _pool(backend, scheduler):
        rows = Parallel(n_jobs=jobs, return_as="generator")(
            delayed(run_point)(place, wanted) for place, wanted in zip(places, asked, strict=True))
        done = list(tqdm(rows, total=len(points), desc="points", unit="run"))
    rows = [{"name": place.name, "parameters": point, **row} for place, point, row in zip(places, points, done, strict=True)]
    write_json(work / "sweep.json", rows)
    return rows


def _run_shared(base: Path, preset: str | None, source: str | None, parameters: Mapping[str, object]) -> None:
    """Notebooks 01 to 03 in a folder of their own, unless they have run there; BratsError where that was for other data."""
    known = {number: {name: value for name, value in parameters.items() if name in declared(number)} for number in (1, 2, 3)}
    asked = {"preset": preset, "source": source, **known[1], **known[2], **known[3]}
    note = base / "asked.json"
    if note.is_file() and (before := read_json(note, "the sweep")) != asked:
        raise BratsError(f"{base} holds the patients of another sweep ({before}; now {asked}): name another folder with "
                         "--work, or delete that one.")
    if (base / "preprocessed" / "dataset.json").is_file():
        return
    base.mkdir(parents=True, exist_ok=True)
    write_json(note, asked)
    for number, chosen in known.items():
        run_series(preset, source if number == 1 else None, base, only=number, parameters=chosen)


def _link(base: Path, place: Path) -> None:
    """Give a point what it reads: the settings as copies, the prepared patients as hard links, which take no room."""
    (place / "preprocessed").mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        shutil.copyfile(base / name, place / name)
    for path in (base / "preprocessed").iterdir():
        target = place / "preprocessed" / path.name
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:                               # another disk, or one that knows no links
            shutil.copyfile(path, target)


@contextlib.contextmanager
def _pool(backend: str, scheduler: str | None) -> Iterator[None]:
    """joblib's backend for the points: processes of this machine, or a Dask cluster."""
    if backend != "dask":
        with parallel_config(backend=backend):
            yield
        return
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise BratsError("the dask backend needs a package more: pip install \"dask[distributed]\".") from error
    with Client(scheduler), parallel_config(backend="dask"):
        yield


def run_point(place: Path, parameters: Mapping[str, object]) -> dict:
    """Notebook 05 in a point's folder, unless it has run there with these parameters; its metrics, or its error."""
    note, result = place / "point.json", place / "metrics.json"
    if result.is_file() and note.is_file() and read_json(note, "the sweep") == dict(parameters):
        return {"metrics": read_json(result, "notebook 05")}
    result.unlink(missing_ok=True)
    try:
        execute(len(NAMES), place / "notebooks", {"work": str(place), **parameters})
    except BratsError as error:                       # one point's failure is a row, not the sweep's end
        return {"error": str(error)}
    write_json(note, dict(parameters))
    return {"metrics": read_json(result, "notebook 05")}


def write_report(work: Path) -> Path:
    """Execute the report on a sweep's results into `work`/report.ipynb and render it; returns the notebook's path."""
    work = Path(work).absolute()
    target = work / "report.ipynb"
    jupytext.write(jupytext.read(REPORT), target)
    papermill.execute_notebook(str(target), str(target), {"work": str(work)}, kernel_name="python3", cwd=str(ROOT),
                               progress_bar={"desc": "report", "leave": False})
    render(target)
    return target
