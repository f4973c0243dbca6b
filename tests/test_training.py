"""Patches, the schedule, and a training that is killed and goes on to the same bits."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from brats_helpers.checkpoints import load_checkpoint, read_checkpoint
from brats_helpers.config import Config
from brats_helpers.device import Device, describe_device
from brats_helpers.errors import BratsError
from brats_helpers.loaders import PatchDataset, batches, patient_of
from brats_helpers.phantom import make_patient
from brats_helpers.preprocessing import load, prepare, save
from brats_helpers.training import learning_rate, train

CPU = Device("cpu", "test", 1.0, torch.float32)
CONFIG = Config(preset="quick", filters=(4, 6, 8), patch=16, batch=2, epochs=3, steps=4, warmup=2, learning_rate=2e-3,
                ema=0.9, spacing_mm=8.0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("prepared")
    paths = []
    for index in range(4):
        paths.append(folder / f"P{index}.b2nd")
        save(prepare(make_patient(0, index, 8.0), 8.0), paths[-1])
    return paths


def weights(path: Path) -> dict[str, torch.Tensor]:
    content = read_checkpoint(path, CPU)
    return {f"{kind} {k}": v for kind in ("model", "average") for k, v in content[kind].items()}


def test_patches_are_a_function_of_seed_and_number(prepared) -> None:
    data = PatchDataset(prepared, 16, 0.4, seed=1)
    alone = [data[i] for i in range(8)]
    served = list(batches(data, 2, 0, 4, workers=1))
    for i, item in enumerate(alone):
        assert np.array_equal(item["volume"], served[i // 2]["volume"][i % 2])
        assert item["name"] == served[i // 2]["name"][i % 2]
        assert item["volume"].shape == (5, 16, 16, 16)
    later = next(batches(data, 2, 3, 4))
    assert torch.equal(later["volume"], served[3]["volume"])
    other = PatchDataset(prepared, 16, 0.4, seed=2)
    assert any(not np.array_equal(item["volume"], other[i]["volume"]) for i, item in enumerate(alone))


def test_integer_and_floating_point_patients_share_a_batch(prepared, tmp_path: Path) -> None:
    other = load(prepared[1])
    other.volume = other.volume.astype(np.float32)
    save(other, tmp_path / "F.b2nd")
    served = next(batches(PatchDataset([prepared[0], tmp_path / "F.b2nd"], 16, 0.4, 0), 2, 0, 1, workers=1))
    assert served["volume"].dtype == torch.float32 and served["volume"].shape == (2, 5, 16, 16, 16)


def test_every_patient_is_shown_equally_often_and_tumor_as_often_as_asked(prepared) -> None:
    assert sorted(patient_of(i, 4, 0) for i in range(400)) == sorted(list(range(4)) * 100)
    always = PatchDataset(prepared, 8, 1.0, 0)
    assert all(always[i]["volume"][4].any() for i in range(20))


def test_a_patch_larger_than_the_brain_is_padded_with_background(prepared) -> None:
    item = PatchDataset(prepared[:1], 48, 0.0, 0)[0]["volume"]
    whole = load(prepared[0]).volume
    assert item.shape == (5, 48, 48, 48) and item.astype(int).sum() == whole.astype(int).sum()


def test_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [learning_rate(step, CONFIG) for step in range(12)]
    assert rates[0] == CONFIG.learning_rate / 2 and max(rates) == CONFIG.learning_rate == rates[1]
    assert all(a >= b for a, b in zip(rates[1:], rates[2:])) and learning_rate(12, CONFIG) == pytest.approx(0)


def _child(prepared: list[Path], folder: Path) -> None:
    import brats_helpers.training as training
    training.SAVE_SECONDS = 0                         # a checkpoint after every step: it can be killed at any
    torch.set_num_threads(2)
    training.train(CONFIG, prepared[:3], prepared[3:], folder, device=CPU)


def test_killed_at_random_steps_it_ends_with_the_same_bits(prepared, tmp_path: Path) -> None:
    train(CONFIG, prepared[:3], prepared[3:], tmp_path / "whole", device=CPU)
    context, rng = multiprocessing.get_context("spawn"), np.random.default_rng(0)
    kills = 0
    for _ in range(20):
        child = context.Process(target=_child, args=(prepared, tmp_path / "killed"), daemon=True)
        child.start()
        last, aim = tmp_path / "killed" / "last.pt", int(rng.integers(2, 5))
        seen: set[int] = set()
        while child.is_alive() and len(seen) < aim:
            with contextlib.suppress(FileNotFoundError):      # between two checkpoints it is before.pt for a moment
                seen.add(last.stat().st_mtime_ns)
            time.sleep(0.002)
        if not child.is_alive():
            break
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
    history = train(CONFIG, prepared[:3], prepared[3:], tmp_path / "killed", device=CPU)
    assert kills >= 2 and len(history) == CONFIG.epochs
    one, other = weights(tmp_path / "whole" / "last.pt"), weights(tmp_path / "killed" / "last.pt")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert not list((tmp_path / "killed").glob(".part*"))


def test_other_settings_start_anew_and_keep_the_old(prepared, tmp_path: Path) -> None:
    short = CONFIG.with_(epochs=1)
    train(short, prepared[:3], prepared[3:], tmp_path / "c", device=CPU)
    old = weights(tmp_path / "c" / "last.pt")
    train(short.with_(learning_rate=1e-3), prepared[:3], prepared[3:], tmp_path / "c", device=CPU)
    aside = [p for p in tmp_path.iterdir() if p.name.startswith("c.")]
    assert len(aside) == 1 and all(torch.equal(v, old[k]) for k, v in weights(aside[0] / "last.pt").items())
    before = (aside[0] / "last.pt").stat().st_mtime_ns
    train(short, prepared[:3], prepared[3:], tmp_path / "c", device=CPU)             # back again: nothing to be done
    assert (tmp_path / "c" / "last.pt").stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("c.")] != [aside[0].name]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(prepared, tmp_path: Path, capsys) -> None:
    train(CONFIG, prepared[:3], prepared[3:], tmp_path / "whole", device=CPU)
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    path = tmp_path / "damaged" / "last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1                   # a single bit
    path.write_bytes(content)
    history = train(CONFIG, prepared[:3], prepared[3:], tmp_path / "damaged", device=CPU)
    assert "does not match its checksum" in capsys.readouterr().out and len(history) == CONFIG.epochs
    one, other = weights(tmp_path / "whole" / "last.pt"), weights(path)
    assert all(torch.equal(one[k], other[k]) for k in one)
    for name in ("last.pt", "before.pt"):
        (tmp_path / "damaged" / name).write_bytes(b"nothing")
    with pytest.raises(BratsError, match="before.pt cannot be read"):
        train(CONFIG, prepared[:3], prepared[3:], tmp_path / "damaged", device=CPU)


def test_best_checkpoint_rebuilds_its_network(prepared, tmp_path: Path) -> None:
    train(CONFIG.with_(epochs=1), prepared[:3], prepared[3:], tmp_path, device=CPU)
    model, config = load_checkpoint(tmp_path / "best.pt", CPU)
    assert config == CONFIG.with_(epochs=1) and not model.training
    (tmp_path / "best.pt").write_bytes((tmp_path / "best.pt").read_bytes()[:1000])
    with pytest.raises(BratsError, match="best.pt cannot be read"):
        load_checkpoint(tmp_path / "best.pt", CPU)
    with pytest.raises(BratsError, match="is missing: train first"):
        load_checkpoint(tmp_path / "none.pt", describe_device())
