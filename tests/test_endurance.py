"""Long tests: the series killed and stopped, 400 patients in 4 GB, 8 predictions at once."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from conftest import pack, small_volumes, write_case

from brats_helpers.basics.config import Config
from brats_helpers.basics.device import Device
from brats_helpers.evaluation.checkpoints import read_checkpoint, write_checkpoint
from brats_helpers.network.unet import UNet
from brats_helpers.tools import series

KILLS = int(os.environ.get("BRATS_KILLS", "0")) // 2
pytestmark = pytest.mark.skipif(KILLS < 20, reason="takes ten minutes: make test-faults runs it")
CPU = Device("cpu", "test", 1.0, torch.float32)
SETTINGS = {"patients": 6, "test_patients": 2, "spacing_mm": 6.0, "epochs": 2, "steps": 8,
            "patch": 32, "overfit_steps": 40, "full_size": "false"}
# times, and what is computed from them
CHANGING = {"tag", "modified_ns", "train_seconds", "seconds"}


def command(work: Path) -> subprocess.Popen:
    """The series as a process of its own."""
    options = [str(word) for name, value in SETTINGS.items() for word in ("-p", name, value)]
    return subprocess.Popen([sys.executable, "-m", "brats_helpers", "run", "--work", str(work),
                             *options], cwd=series.ROOT, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def still(value: object) -> object:
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {k: still(v) for k, v in value.items() if k not in CHANGING}
    return [still(v) for v in value] if isinstance(value, (list, tuple)) else value


def state(work: Path) -> dict[str, object]:
    """All that a run leaves, times and the folder's own name aside."""
    found: dict[str, object] = {}
    for path in sorted(p for p in work.rglob("*") if p.is_file() and "notebooks" not in p.parts):
        name = str(path.relative_to(work))
        if path.suffix == ".json":
            found[name] = still(json.loads(path.read_text().replace(str(work), "WORK")))
        elif path.name in ("last.pt", "before.pt"):
            content = still(read_checkpoint(path, CPU))
            found[name] = {k: hashlib.sha256(repr(v).encode()).hexdigest()
                           for k, v in content.items() if k != "model"}
            found[name]["model"] = [hashlib.sha256(v.numpy().tobytes()).hexdigest()
                                    for v in content["model"].values()]
        elif path.name == "MODEL_CARD.md":
            found[name] = [line for line in path.read_text().splitlines()
                           if " s of training" not in line]
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def finished(work: Path) -> dict[Path, int]:
    """What is whole already and must not be made again: scans, prepared patients."""
    kept = [*(work / "cases").rglob("*.nii.gz"), *(work / "preprocessed").glob("*.b2nd"),
            *(work / "data").glob("*.tar")]
    return {p: p.stat().st_mtime_ns for p in kept if not p.name.startswith(".part")}


def end(process: subprocess.Popen, kernels: bool) -> None:
    """Kill the series and, if asked, its notebook's kernel, which would notice after a second."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children if kernels else []:
        child.kill()
    process.communicate()


def test_a_series_killed_at_any_moment_ends_as_one_that_was_not(tmp_path: Path, faults) -> None:
    begin = time.monotonic()
    assert command(tmp_path / "whole").wait() == 0
    seconds, rng, kills = time.monotonic() - begin, np.random.default_rng(0), 0
    work = tmp_path / "killed"
    for number in range(KILLS):
        before, process = finished(work), command(work)
        time.sleep(rng.uniform(0.1, 0.5) * seconds)
        if process.poll() is None:
            end(process, kernels=number % 2 == 0)
            kills += 1
        after = finished(work)
        assert all(after.get(path) == when for path, when in before.items())
    process = command(work)
    assert process.wait() == 0
    assert state(work) == state(tmp_path / "whole")
    assert not list(work.rglob(".part*"))
    assert kills > KILLS / 2
    faults("kills in the series", kills)


def test_a_series_that_is_stopped_says_so_in_one_line_and_goes_on(tmp_path: Path, faults) -> None:
    for seconds in (3, 12, 25):
        process = command(tmp_path / "work")
        time.sleep(seconds)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 130 and "Traceback" not in said
        assert "Stopped. The same command goes on from here." in said.splitlines()
        psutil.wait_procs(children, timeout=10)
        assert not [child for child in children if child.is_running()]
    assert command(tmp_path / "work").wait() == 0
    faults("stops of the series", 3)


def in_four_gb() -> None:
    """The limit that a process starts with."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))


def test_four_hundred_patients_in_four_gb(tmp_path: Path, faults) -> None:
    rng = np.random.default_rng(0)
    for number in range(400):
        images, labels = small_volumes(number, tuple(rng.integers(24, 40, 3)))
        write_case(tmp_path / "raw", f"P{number:03d}", images, labels)
    archive = pack(tmp_path / "raw", tmp_path / "all.tar")
    numbers = {k: v for k, v in SETTINGS.items()
               if k not in ("patients", "test_patients", "spacing_mm")} | {"tta": "false"}
    options = [str(word) for name, value in numbers.items() for word in ("-p", name, value)]
    run = [sys.executable, "-m", "brats_helpers", "run", "--work", str(tmp_path / "work"),
           "--source", str(archive)]
    done = subprocess.run([*run, *options, "-p", "spacing_mm", "1"], cwd=series.ROOT,
                          preexec_fn=in_four_gb, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / "work" / "metrics.json").read_text())
    assert metrics["cases"] == 80
    assert len(list((tmp_path / "work" / "preprocessed").glob("*.b2nd"))) == 400
    faults("patients in 4 GB", 400)


def test_eight_predictions_at_once_in_one_folder(tmp_path: Path, faults) -> None:
    config = Config(filters=(4, 6, 8), patch=16, spacing_mm=2.0)
    write_checkpoint(tmp_path / "c.pt", config, {"average": UNet(config.filters).state_dict()})
    for number in range(4):
        write_case(tmp_path / "raw", f"P{number}", small_volumes(number, (40, 44, 36))[0], None)
    predict = [sys.executable, "-m", "brats_helpers", "predict", str(tmp_path / "raw"),
               "--checkpoint", str(tmp_path / "c.pt")]
    subprocess.run([*predict, "--out", str(tmp_path / "alone")], cwd=series.ROOT, check=True,
                   capture_output=True)
    together = [subprocess.Popen([*predict, "--out", str(tmp_path / "out")], cwd=series.ROOT,
                                 stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                for _ in range(8)]
    assert [process.wait() for process in together] == [0] * 8
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == [f"P{n}.nii.gz" for n in range(4)]
    for path in (tmp_path / "out").iterdir():
        alone = nib.load(tmp_path / "alone" / path.name)
        assert np.array_equal(nib.load(path).dataobj, alone.dataobj)
    faults("predictions at once", 8)
