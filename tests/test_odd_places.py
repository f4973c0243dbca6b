"""From scans to masks in places that differ from a Linux terminal, all at once.

The path has spaces, letters outside ASCII and, except on Windows, more than 260 characters; the
console knows cp1252 alone; the work folder is far from the code; nothing is in PATH, so there is no
compiler; processes are spawned, or the parent is a daemonic process and may not start any.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CONFIG, CPU

from benchmarks.cohort import fill_work_folder
from brats_helpers.__main__ import main
from brats_helpers.data.loaders import PatchDataset, batches
from brats_helpers.evaluation.batch import predict_cases
from brats_helpers.phantoms.archive import build_cohort
from brats_helpers.training.work_folder import train_work

ROOT = Path(__file__).resolve().parents[1]
LONG = ["x" * 120] * (2 if os.name != "nt" else 0)
NAME = "Zoë 大"  # cp1252 has no 大
ONE_STEP = CONFIG.with_(epochs=1, steps=1, validation=0.4)


def series_in(work: Path) -> None:
    """Make patients in a folder, one with an odd name; prepare, train, segment and check them."""
    torch.set_num_threads(1)
    archive, _ = build_cohort(work / "data", 0, 4, 0, CONFIG.spacing_mm, jobs=2)
    shutil.unpack_archive(archive, work / "raw", filter="data")
    patient = work / "raw" / "BraTS2021_00000"
    for path in [*patient.iterdir(), patient]:
        path.rename(path.with_name(path.name.replace(patient.name, NAME)))
    fill_work_folder(work, ONE_STEP, "phantom", work / "raw", jobs=2, synthetic=True)
    stream = PatchDataset(sorted((work / "preprocessed").glob("*.b2nd")), 16, 0.4, 0)
    assert [item["number"] for item in batches(stream, 2, 0, 2, workers=1)] == [[0, 1], [2, 3]]
    train_work(ONE_STEP, work, device=CPU)
    rows = predict_cases([work / "raw"], [work / "checkpoints" / "last.pt"], work / "masks", jobs=2)
    assert [row["status"] for row in rows] == ["done"] * 4
    main(["check", str(work / "raw"), "--jobs", "1"])


def in_a_process(kind: str, work: Path) -> int:
    """Run the series here, with processes that are spawned, or in a daemonic process."""
    if kind == "daemon":
        child = multiprocessing.get_context("spawn").Process(target=series_in, args=(work,),
                                                             daemon=True)
        child.start()
        child.join()
        return child.exitcode
    multiprocessing.set_start_method("spawn")
    series_in(work)
    return 0


@pytest.mark.parametrize("kind", ["spawn", "daemon"])
def test_the_series_runs_in_odd_places(tmp_path: Path, kind: str) -> None:
    work = tmp_path.joinpath("Größe 大", *LONG, "work")
    here = tmp_path / "elsewhere"
    here.mkdir()
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, __file__, kind, str(work)], cwd=here, timeout=600,
                          capture_output=True, env={**os.environ, "PATH": str(here),
                                                    "PYTHONPATH": paths,
                                                    "PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0, done.stderr.decode("cp1252", "replace")[-3000:]
    assert "Zoë \\u5927".encode("cp1252") in done.stdout
    assert not list(here.iterdir())  # nothing is written where it was called


if __name__ == "__main__":
    sys.exit(in_a_process(sys.argv[1], Path(sys.argv[2])))
