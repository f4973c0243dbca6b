"""Work killed at random moments ends with the same files, does nothing twice, leaves nothing."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pack, small_volumes, write_case

from brats_helpers.basics.config import Config
from brats_helpers.basics.device import Device
from brats_helpers.basics.errors import BratsError
from brats_helpers.basics.files import atomic_path
from brats_helpers.data.archive import extract
from brats_helpers.data.cases import Patient, find_cases, read_case, write_mask
from brats_helpers.data.check import check_path
from brats_helpers.data.pipeline import preprocess_cohort
from brats_helpers.data.preprocessing import prepare
from brats_helpers.data.storage import save_prepared
from brats_helpers.evaluation.checkpoints import load_checkpoint, write_checkpoint
from brats_helpers.evaluation.scoring import evaluate
from brats_helpers.network.unet import UNet

SMALL = Config(filters=(4, 6, 8), patch=16, spacing_mm=2.0, preset="quick")
CPU = Device("cpu", "test", 1.0, torch.float32)
KILLS = int(os.environ.get("BRATS_KILLS", "4"))  # make test-faults asks for 40


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of each file in a folder."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


def kill_at_random(work: Callable, arguments: tuple, folder: Path, seconds: float, kills: int,
                   context: object = None, started: Path | None = None) -> int:
    """Start the work in a process and kill it after a random part of `seconds`, `kills` times.

    Finished work starts again, in an empty `folder`. The time counts from the moment when the
    folder `started` exists or, if None, from the start of the process. Returns the number of kills
    that hit a living process.
    """
    rng, hit = np.random.default_rng(0), 0
    for _ in range(5 * kills):
        processes = context or multiprocessing.get_context("fork")
        child = processes.Process(target=work, args=arguments, daemon=True)
        before = time.time_ns()
        child.start()
        while started and child.is_alive():
            if started.is_dir() and started.stat().st_mtime_ns >= before:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, seconds / 2))
        alive = child.is_alive()
        child.kill()
        child.join()
        hit += alive
        if hit == kills:
            break
        if not alive:
            shutil.rmtree(folder)
    return hit


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    for index in range(12):
        write_case(folder, f"P{index:02d}", *small_volumes(index, (60, 64, 50)))
    return folder


@pytest.mark.parametrize("name", ["cohort.tar", "cohort.tar.gz"])
def test_extraction(cohort: Path, tmp_path: Path, name: str, faults) -> None:
    archive = pack(cohort, tmp_path / name)
    begin = time.perf_counter()
    extract(archive, tmp_path / "whole")
    seconds = time.perf_counter() - begin
    alive = kill_at_random(extract, (archive, tmp_path / "killed"), tmp_path / "killed", seconds,
                           KILLS)
    assert alive == KILLS
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("*.nii.gz")
            if not p.name.startswith(".part")}
    extract(archive, tmp_path / "killed")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    faults("kills in extraction", alive)


def test_preprocessing(cohort: Path, tmp_path: Path, faults) -> None:
    cases = find_cases(cohort)
    begin = time.perf_counter()
    preprocess_cohort(cases, tmp_path / "whole", 1.0, 1)
    seconds = time.perf_counter() - begin
    alive = kill_at_random(preprocess_cohort, (cases, tmp_path / "killed", 1.0, 1),
                           tmp_path / "killed", seconds, KILLS)
    assert alive == KILLS
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").glob("*.b2nd")
            if not p.name.startswith(".part")}
    preprocess_cohort(cases, tmp_path / "killed", 1.0, 1)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    faults("kills in preprocessing", alive)


def _evaluate(cases: list, work: Path) -> None:
    evaluate(cases, work.parent / "checkpoints" / "last.pt", work, SMALL, "test", CPU)


def test_evaluation(cohort: Path, tmp_path: Path, faults) -> None:
    torch.manual_seed(0)
    weights = UNet(SMALL.filters).state_dict()
    write_checkpoint(tmp_path / "checkpoints" / "last.pt", SMALL,
                     {"average": weights, "seconds": 1.0})
    cases = find_cases(cohort)[:6]
    begin = time.perf_counter()
    _evaluate(cases, tmp_path / "whole")
    seconds = time.perf_counter() - begin
    spawned = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    alive = kill_at_random(_evaluate, (cases, tmp_path / "killed"), tmp_path / "killed", seconds,
                           KILLS // 2, context=spawned, started=tmp_path / "killed" / "predictions")
    assert alive == KILLS // 2
    kept = {p: p.stat().st_mtime_ns for p in scored(tmp_path / "killed")}
    _evaluate(cases, tmp_path / "killed")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    faults("kills in evaluation", alive)


def scored(work: Path) -> list[Path]:
    """The masks of patients whose scores are written."""
    notes = work / "predictions" / "scores.json"
    rows = json.loads(notes.read_text())["rows"] if notes.is_file() else {}
    return [work / "predictions" / f"{name}.nii.gz" for name in rows]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "file.json"
    target.write_text("good")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = r"file.json could not be written.*No space left.*free"
    with pytest.raises(BratsError, match=said), atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "good" and [p.name for p in tmp_path.iterdir()] == ["file.json"]


@pytest.fixture
def nobody() -> Iterator[Path]:
    """Yield a folder, and run the test as a user other than root, who may access everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        yield folder
        if root:
            os.seteuid(0)
        for path in folder.rglob("*"):
            path.chmod(0o777)


def test_a_folder_that_may_not_be_written_is_named(nobody: Path, faults) -> None:
    (nobody / "locked").mkdir(mode=0o500)
    with pytest.raises(BratsError, match="locked.*could not be written.*Permission"), \
            atomic_path(nobody / "locked" / "a") as temporary:
        temporary.write_text("x")
    faults("locked folders")


def test_what_may_not_be_read_is_named_and_not_left_out(nobody: Path, faults) -> None:
    for name in ("A", "B"):
        write_case(nobody / "raw", name, *small_volumes())
    scan = nobody / "raw" / "A" / "A_t1.nii.gz"
    scan.chmod(0)
    with pytest.raises(BratsError, match="patient A, .*A_t1.nii.gz.*Permission denied"):
        preprocess_cohort(find_cases(nobody / "raw")[:1], nobody / "out", 1.0, 1)
    (nobody / "raw" / "B").chmod(0)
    with pytest.raises(BratsError, match="raw/B cannot be read .Permission denied.: allow it"):
        read_case(find_cases(nobody / "raw")[1])
    faults("locked folders", 2)


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_may_not_be_read_stops_nobody_else(nobody: Path, mode: int, faults) -> None:
    for name in ("A", "B", "C"):
        write_case(nobody / "raw", name, *small_volumes())
    (nobody / "raw" / "B").chmod(mode)
    report = check_path(nobody / "raw", 1)
    said = [row["problems"] for row in report.rows]
    assert said[0] == said[2] == [] and report.unused == []
    assert said[1] == [f"patient B: {nobody}/raw/B cannot be read (Permission denied): allow it "
                       "(chmod), or move it away."]
    (nobody / "raw").chmod(mode)
    with pytest.raises(BratsError, match="raw cannot be read .Permission denied.: allow it"):
        find_cases(nobody / "raw")
    faults("locked folders", 2)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # others may have it open


def test_on_a_disk_that_is_really_full_the_good_files_stay(tiny_disk: Path, tmp_path: Path) -> None:
    config, model = Config(filters=(4, 6, 8), patch=16), UNet((4, 6, 8))
    write_checkpoint(tiny_disk / "last.pt", config, {"average": model.state_dict()})
    before, noise = digests(tiny_disk), np.random.default_rng(0).integers(0, 4, (200, 200, 200))
    patient = Patient("P", noise[None].repeat(4, 0).astype(np.int16) * 997, None, np.eye(4))
    ways = [lambda: write_checkpoint(tiny_disk / "last.pt", config,
                                     {"average": {"x": torch.randn(1_000_000)}}),
            lambda: write_mask(tiny_disk / "mask.nii.gz", noise, np.eye(4)),
            lambda: save_prepared(prepare(patient, 1.0), tiny_disk / "P.b2nd")]
    for way in ways:
        with pytest.raises(BratsError, match="could not be written.*MB are free"):
            way()
        assert digests(tiny_disk) == before
    write_case(tmp_path / "raw", "P", *small_volumes(0, (120, 120, 120)))
    with pytest.raises(BratsError, match="needs 0.0 GB|could not be written"):
        extract(pack(tmp_path / "raw", tmp_path / "a.tar"), tiny_disk / "out")
    assert load_checkpoint(tiny_disk / "last.pt",
                           Device("cpu", "", 1.0, torch.float32))[1] == config
