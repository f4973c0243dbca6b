"""A sweep runs every point once, here or on a Dask cluster, and keeps failures apart."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from brats_helpers.__main__ import main, parse_grid
from brats_helpers.basics.errors import BratsError
from brats_helpers.tools import sweep
from brats_helpers.tools.sweep import name_of, points_of, run_sweep, write_report

TINY = {"patients": 5, "test_patients": 2, "spacing_mm": 6.0, "patch": 32, "steps": 2, "epochs": 1}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A finished sweep of one point, whose preprocessing the other tests use again."""
    work = tmp_path_factory.mktemp("sweep")
    run_sweep({"learning_rate": [1e-3]}, work, fixed=TINY)
    return work


def test_a_grid_is_every_combination_under_names_of_its_own() -> None:
    points = points_of({"learning_rate": [1e-3, 3e-4], "seed": [0, 1, 2]})
    assert len(points) == 6 and points[1] == {"learning_rate": 1e-3, "seed": 1}
    assert len({name_of(point) for point in points}) == 6
    assert name_of(points[3]) == "learning_rate=0.0003,seed=0"
    assert parse_grid("learning_rate=1e-3,3e-4") == ("learning_rate", [1e-3, 3e-4])
    assert parse_grid("tta=true,false") == ("tta", [True, False])
    for wrong in ("seed", "=1"):
        with pytest.raises(BratsError, match="give a parameter and its values"):
            parse_grid(wrong)
    with pytest.raises(BratsError,
                       match="no notebook has a parameter color; there are: .*learning_rate"):
        points_of({"color": [1]})
    with pytest.raises(BratsError, match="no notebook has a parameter epohcs"):
        run_sweep({"seed": [1]}, Path("nowhere"), fixed={"epohcs": 2})
    with pytest.raises(BratsError, match="--grid seed= has no value"):
        points_of({"seed": []})


def test_nothing_to_sweep_is_said(capsys) -> None:
    assert main(["sweep"]) == 1 and "needs --grid" in capsys.readouterr().err


def test_a_failing_point_is_a_row_and_a_finished_one_is_not_run_again(shared: Path) -> None:
    book = shared / "points" / "learning_rate=0.001" / "notebooks" / "05_training_evaluation.ipynb"
    before = book.stat().st_mtime_ns
    rows = run_sweep({"learning_rate": [1e-3, -1.0]}, shared, fixed=TINY)
    assert book.stat().st_mtime_ns == before
    assert rows[0]["metrics"]["cases"] == 2 and "learning_rate=-1.0 cannot work" in rows[1]["error"]
    names = [row["name"] for row in json.loads((shared / "sweep.json").read_text())]
    assert names == ["learning_rate=0.001", "learning_rate=-1"]
    report = write_report(shared).read_text()
    assert "1 of 2 runs finished" in report and "image/png" in report
    links = (shared / "points" / "learning_rate=0.001" / "preprocessed"
             / "dataset.json").stat().st_nlink
    assert links >= 2  # prepared once, and no copy


def test_a_folder_of_other_patients_is_not_taken_for_these(shared: Path) -> None:
    for other in ({"fixed": {**TINY, "spacing_mm": 7.0}}, {"preset": "full"}, {"source": "varied"}):
        with pytest.raises(BratsError, match="holds the patients of another sweep.*--work"):
            run_sweep({"learning_rate": [1e-3]}, shared, **{"fixed": TINY, **other})


def test_a_dask_worker_that_dies_loses_no_run_and_counts_none_twice(shared: Path, tmp_path: Path,
                                                                    monkeypatch) -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")

    def point(place: Path, parameters: dict) -> dict:
        """Stand in for notebook 05, and note which process runs it."""
        (tmp_path / f"{place.name} {os.getpid()}").touch()
        time.sleep(1)
        return {"metrics": {"seed": parameters["seed"]}}

    def kill_one() -> None:
        """As soon as a point is under way, its worker is gone."""
        while not (begun := list(tmp_path.iterdir())):
            time.sleep(0.1)
        os.kill(int(begun[0].name.split()[-1]), signal.SIGKILL)

    monkeypatch.setattr(sweep, "run_point", point)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True,
                                  dashboard_address=None) as cluster:
        threading.Thread(target=kill_one, daemon=True).start()
        rows = run_sweep({"seed": [1, 2, 3]}, shared, fixed=TINY, jobs=2, backend="dask",
                         scheduler=cluster.scheduler_address)
    assert [row["name"] for row in rows] == ["seed=1", "seed=2", "seed=3"]
    assert [row["metrics"]["seed"] for row in rows] == [1, 2, 3]
    assert len(list(tmp_path.iterdir())) > 3  # the one that was cut off ran again


def test_a_point_that_is_run_again_goes_on_from_its_checkpoint(shared: Path) -> None:
    place = shared / "points" / "learning_rate=0.001"
    before = (place / "checkpoints" / "last.pt").stat().st_mtime_ns
    metrics = json.loads((place / "metrics.json").read_text())
    (place / "metrics.json").unlink()  # as if it had been killed after its last checkpoint
    assert run_sweep({"learning_rate": [1e-3]}, shared, fixed=TINY)[0]["metrics"] == metrics
    assert (place / "checkpoints" / "last.pt").stat().st_mtime_ns == before
