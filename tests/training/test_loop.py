"""Patches, the schedule, and a training that is killed and goes on to the same bits."""

from __future__ import annotations

import contextlib
import copy
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CONFIG, CPU, weights

from brats_helpers.basics.device import describe_device
from brats_helpers.basics.errors import BratsError, Stopped
from brats_helpers.basics.files import read_json
from brats_helpers.data import loaders
from brats_helpers.data.loaders import PatchDataset, batches, patient_of
from brats_helpers.data.storage import load_prepared, save_prepared
from brats_helpers.evaluation.checkpoints import load_checkpoint, read_checkpoint
from brats_helpers.training import loop as training
from brats_helpers.training import resume, step
from brats_helpers.training.loop import train
from brats_helpers.training.state import PLAIN_FIELDS, new_state
from brats_helpers.training.step import learning_rate

KILLS = max(4, int(os.environ.get("BRATS_KILLS", "4")) // 2)


def test_patches_are_a_function_of_seed_and_number(prepared) -> None:
    data = PatchDataset(prepared, 16, 0.4, seed=1)
    alone = [data[[i]] for i in range(8)]
    served = list(batches(data, 2, 0, 4, workers=1))
    for i, item in enumerate(alone):
        assert torch.equal(item["volume"][0], served[i // 2]["volume"][i % 2])
        assert (item["name"], item["number"]) == ([served[i // 2]["name"][i % 2]], [i])
        assert item["volume"].shape == (1, 5, 16, 16, 16)
    later = next(batches(data, 2, 3, 4))
    assert torch.equal(later["volume"], served[3]["volume"])
    other = PatchDataset(prepared, 16, 0.4, seed=2)
    assert any(
        not torch.equal(item["volume"], other[[i]]["volume"]) for i, item in enumerate(alone)
    )


def test_batches_made_ready_ahead_are_the_same_ones_in_the_same_order(prepared) -> None:
    data = PatchDataset(prepared, 16, 0.4, seed=1)
    ahead = step.PrefetchedBatches(batches(data, 2, 0, 3), CONFIG, CPU)
    for plain in batches(data, 2, 0, 3):
        batch = next(ahead)
        ahead.prepare_next()
        ahead.prepare_next()  # looks no further than one batch
        assert batch["number"] == plain["number"]
        for a, b in zip(batch["prepared"], step.prepare_batch(plain, CONFIG, CPU), strict=True):
            assert torch.equal(a, b)
    assert list(ahead) == []


def test_patients_met_before_keep_no_file_open_and_do_not_travel_to_another_process(
    prepared,
) -> None:
    data = PatchDataset(prepared, 16, 0.4, seed=1)
    files, size = len(os.listdir("/dev/fd")), len(pickle.dumps(data))
    patches = data[range(8)]["volume"]
    assert len(data.known) == 4 and len(os.listdir("/dev/fd")) == files
    assert len(pickle.dumps(data)) == size
    for stream in (data, copy.copy(data)):  # copied as a pickle is
        assert torch.equal(stream[range(8)]["volume"], patches)


def test_integer_and_floating_point_patients_share_a_batch(prepared, tmp_path: Path) -> None:
    other = load_prepared(prepared[1])
    other.volume = other.volume.astype(np.float32)
    save_prepared(other, tmp_path / "F.b2nd")
    served = next(
        batches(PatchDataset([prepared[0], tmp_path / "F.b2nd"], 16, 0.4, 0), 2, 0, 1, workers=1)
    )
    assert served["volume"].dtype == torch.float32 and served["volume"].shape == (2, 5, 16, 16, 16)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_patient_is_named_whoever_reads_it(prepared, tmp_path: Path,
                                                     workers: int) -> None:
    (tmp_path / "D.b2nd").write_bytes(prepared[1].read_bytes()[:-1000])
    with pytest.raises(
        BratsError, match=r"D\.b2nd is damaged .*: run notebook 03 again, which replaces it\.$"
    ) as error:
        list(
            batches(PatchDataset([prepared[0], tmp_path / "D.b2nd"], 16, 0.4, 0), 2, 0, 2, workers)
        )
    assert "Traceback" not in str(error.value)


def test_no_more_processes_read_than_the_shared_memory_has_room_for(prepared, tmp_path: Path,
                                                                    monkeypatch, capsys) -> None:
    need = 2 * 5 * 16**3 * 4  # a batch of two, as float32
    monkeypatch.setattr(loaders, "SHARED", tmp_path)
    for free, enough in ((10 * need, 4), (10 * need - 1, 3), (4 * need, 1), (4 * need - 1, 0),
                         (0, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert loaders.affordable(4, 2 * 16**3) == enough
        told = f"So {enough or 'none'} of them will run" in capsys.readouterr().out
        assert told == (enough < 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * need))
    assert (
        loaders.affordable(4, 16**3, processes=2) == 4
        and loaders.affordable(4, 2 * 16**3, processes=2) == 1
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=need))
    stream, before = (batches(PatchDataset(prepared, 16, 0.4, 0), 2, 0, 2, workers=4),
                      reading_processes())
    assert next(stream)["number"] == [0, 1] and set(reading_processes()) <= set(before)
    monkeypatch.setattr(loaders, "SHARED", tmp_path / "nowhere")
    for platform, enough in (("darwin", 4), ("win32", 4), ("linux", 0)):
        monkeypatch.setattr(sys, "platform", platform)
        assert loaders.affordable(4, 16**3) == enough and loaders.affordable(0, 16**3) == 0


def reading_processes() -> list[multiprocessing.Process]:
    """List the processes that read patches, newest last: an earlier test's may just be ending.

    Joblib's, which other tests leave, are of another kind.
    """
    mine = [
        child
        for child in multiprocessing.active_children()
        if type(child) is multiprocessing.Process
    ]
    return sorted(mine, key=lambda child: int(child.name.rpartition("-")[2]))


def test_a_reading_process_is_deaf_to_ctrl_c_and_missed_when_killed(prepared, tmp_path: Path,
                                                                    monkeypatch, faults) -> None:
    stream = batches(PatchDataset(prepared, 16, 0.4, 0), 2, 0, 40, workers=1)
    next(stream)
    os.kill(reading_processes()[-1].pid, signal.SIGINT)
    assert len(list(stream)) == 39
    train(CONFIG, prepared[:3], prepared[3:], tmp_path / "whole", device=CPU)
    monkeypatch.setattr(training, "batches", lambda *known: batches(*known[:4], 1, *known[5:]))
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)

    def kill(history: list[dict]) -> None:
        if len(history) == 1:  # once: a second look would reap it before torch notices
            reading_processes()[-1].kill()

    with pytest.raises(BratsError, match="a process that reads .* was killed .*memory ran out"):
        train(CONFIG, prepared[:3], prepared[3:], tmp_path / "c", kill, CPU)
    assert {"last.pt", "before.pt"} & set(
        os.listdir(tmp_path / "c")
    )  # torch interrupts a saving, too
    train(CONFIG, prepared[:3], prepared[3:], tmp_path / "c", device=CPU)
    one, other = weights(tmp_path / "whole" / "last.pt"), weights(tmp_path / "c" / "last.pt")
    assert all(torch.equal(one[k], other[k]) for k in one)
    faults("signals to reading processes", 2)


def test_an_error_that_hides_a_readers_end_says_so_and_any_other_stays() -> None:
    with (pytest.raises(BratsError, match=r"\(DataLoader worker \(pid 7\) is killed\)"),
          loaders.explain_killed_worker()):
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed")
        finally:
            raise RuntimeError("inline_container: unexpected pos")
    with pytest.raises(RuntimeError, match="^out of memory$"), loaders.explain_killed_worker():
        raise RuntimeError("out of memory")


def test_every_patient_is_shown_equally_often_and_tumor_as_often_as_asked(prepared) -> None:
    assert sorted(patient_of(i, 4, 0) for i in range(400)) == sorted(list(range(4)) * 100)
    always = PatchDataset(prepared, 8, 1.0, 0)
    assert always[range(20)]["volume"][:, 4].flatten(1).any(1).all()


def test_a_patch_larger_than_the_brain_is_padded_with_background(prepared) -> None:
    whole = load_prepared(prepared[0]).volume
    item = PatchDataset(prepared[:1], 48, 0.0, 0)[[0]]["volume"][0].numpy()
    low = np.rint((48 - np.array(whole.shape[1:])) / 2).astype(int)  # in the middle
    around = [(0, 0), *((a, 48 - a - n) for a, n in zip(low, whole.shape[1:], strict=True))]
    assert np.array_equal(item, np.pad(whole, around))


def test_the_plain_step_and_the_real_one_give_the_same_bits(prepared) -> None:
    plain, real = new_state(CONFIG, CPU), new_state(CONFIG, CPU)
    for batch in batches(PatchDataset(prepared, 16, 0.4, seed=1), 2, 0, 4):
        images, target = step.prepare_batch(batch, CONFIG, CPU)
        loss = step.plain_train_step(plain, images, target, CONFIG)
        assert loss == step.train_step(real, batch, CONFIG, CPU)
    assert plain.step == real.step == 4
    for kind in ("model", "ema"):
        one, other = (getattr(state, kind).state_dict() for state in (plain, real))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_state_is_restored_from_its_dictionary(prepared) -> None:
    state, fresh = new_state(CONFIG, CPU), new_state(CONFIG.with_(seed=1), CPU)
    step.train_step(state, next(batches(PatchDataset(prepared, 16, 0.4, 0), 2, 0, 1)), CONFIG, CPU)
    state.seconds, state.rate_factor = 3.0, 0.5
    content = copy.deepcopy(state.state_dict())
    fresh.load_state_dict(content)
    assert fresh.ema.n_averaged == 1 and all(getattr(fresh, n) == content[n] for n in PLAIN_FIELDS)
    assert all(torch.equal(v, content["model"][k]) for k, v in fresh.model.state_dict().items())


def test_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [learning_rate(step, CONFIG) for step in range(12)]
    assert rates[0] == CONFIG.learning_rate / 2 and max(rates) == CONFIG.learning_rate == rates[1]
    assert all(a >= b for a, b in zip(rates[1:], rates[2:])) and learning_rate(
        12, CONFIG
    ) == pytest.approx(0)


def done(folder: Path) -> bool:
    """Whether training has come to its end."""
    with contextlib.suppress(BratsError):
        return read_checkpoint(folder / "last.pt", CPU)["step"] == CONFIG.epochs * CONFIG.steps
    return False


def _child(prepared: list[Path], folder: Path, threads: int) -> None:
    training.SAVE_SECONDS = 0  # a checkpoint after every step: it can be killed at any
    torch.set_num_threads(threads)
    train(CONFIG, prepared[:3], prepared[3:], folder, device=CPU)


def test_killed_at_random_steps_it_ends_with_the_same_bits(prepared, tmp_path: Path,
                                                           faults) -> None:
    train(CONFIG, prepared[:3], prepared[3:], tmp_path / "whole", device=CPU)
    context, rng = multiprocessing.get_context("spawn"), np.random.default_rng(0)
    kills = 0
    while kills < KILLS:
        child = context.Process(target=_child,
                                args=(prepared, tmp_path / "killed", torch.get_num_threads()),
                                daemon=True)
        child.start()
        last, aim = tmp_path / "killed" / "last.pt", int(rng.integers(2, 5))
        seen: set[int] = set()
        while child.is_alive() and len(seen) < aim:
            with contextlib.suppress(
                FileNotFoundError
            ):  # between two checkpoints it is before.pt for a moment
                seen.add(last.stat().st_mtime_ns)
            time.sleep(0.002)
        kills += child.is_alive()
        child.kill()
        child.join()
        if (tmp_path / "killed" / "last.pt").is_file() and done(tmp_path / "killed"):
            shutil.rmtree(tmp_path / "killed")  # it came to its end in between: begin again
    history = train(CONFIG, prepared[:3], prepared[3:], tmp_path / "killed", device=CPU)
    faults("kills in training", kills)
    assert len(history) == CONFIG.epochs
    one, other = weights(tmp_path / "whole" / "last.pt"), weights(tmp_path / "killed" / "last.pt")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert not list((tmp_path / "killed").glob(".part*"))


def test_a_stop_is_heeded_after_the_step_and_goes_on_to_the_same_bits(prepared, tmp_path: Path,
                                                                      monkeypatch, faults) -> None:
    train(CONFIG, prepared[:3], prepared[3:], tmp_path / "whole", device=CPU)
    before = signal.getsignal(signal.SIGINT)
    for number in range(1, 4):  # pressed within the second step, and in the two sessions after it
        with monkeypatch.context() as patch:
            press = iter([False] * number + [True])
            real = step.deep_supervision_loss

            def pressed(*arguments: object, real=real, press=press, **options: object) -> object:
                if next(press, False):
                    os.kill(os.getpid(), signal.SIGINT)
                return real(*arguments, **options)

            patch.setattr(step, "deep_supervision_loss", pressed)
            with pytest.raises(
                Stopped, match=f"after step {sum(range(2, number + 2))} of 12; all is saved in"
            ):
                train(CONFIG, prepared[:3], prepared[3:], tmp_path / "stopped", device=CPU)
    assert signal.getsignal(signal.SIGINT) is before
    train(CONFIG, prepared[:3], prepared[3:], tmp_path / "stopped", device=CPU)
    one, other = weights(tmp_path / "whole" / "last.pt"), weights(tmp_path / "stopped" / "last.pt")
    assert all(torch.equal(one[k], other[k]) for k in one)
    faults("stops in training", 3)


@pytest.fixture
def poisoned(prepared, tmp_path: Path) -> list[Path]:
    """Three patients to learn from, the second of which makes every loss NaN."""
    bad = load_prepared(prepared[1])
    save_prepared(replace(bad, meta=replace(bad.meta, name="BAD", std=(float("nan"),) * 4)),
         tmp_path / "BAD.b2nd")
    return [prepared[0], tmp_path / "BAD.b2nd", prepared[2]]


def test_a_loss_that_is_no_number_names_the_patients_and_keeps_the_last_good_state(
    prepared, poisoned, tmp_path: Path, faults
) -> None:
    with pytest.raises(BratsError, match="the loss became nan.*at step .*BAD.*on_nan=halve"):
        train(CONFIG, poisoned, prepared[3:], tmp_path / "c", device=CPU)
    kept = read_checkpoint(tmp_path / "c" / "last.pt", CPU)
    assert all(torch.isfinite(v).all() for v in kept["model"].values())
    history = train(CONFIG.with_(on_nan="halve", epochs=1), poisoned, prepared[3:], tmp_path / "d",
                    device=CPU)
    content = read_checkpoint(tmp_path / "d" / "last.pt", CPU)
    assert 2**-6 < content["rate_factor"] < 1 and math.isfinite(history[0]["loss"])
    planned = step.learning_rate(CONFIG.steps - 1, CONFIG.with_(epochs=1))
    assert history[0]["learning_rate"] < planned
    assert all(
        torch.isfinite(v).all() for kind in ("model", "average") for v in content[kind].values()
    )
    with pytest.raises(BratsError, match="halved 6 times"):
        train(CONFIG.with_(on_nan="halve"), poisoned, prepared[3:], tmp_path / "e", device=CPU)
    faults("poisoned patients", 3)


def test_other_settings_start_anew_and_keep_the_old(prepared, tmp_path: Path) -> None:
    short = CONFIG.with_(epochs=1)
    train(short, prepared[:3], prepared[3:], tmp_path / "c", device=CPU)
    old = weights(tmp_path / "c" / "last.pt")
    train(short.with_(learning_rate=1e-3), prepared[:3], prepared[3:], tmp_path / "c", device=CPU)
    aside = [p for p in tmp_path.iterdir() if p.name.startswith("c.")]
    assert len(aside) == 1 and all(
        torch.equal(v, old[k]) for k, v in weights(aside[0] / "last.pt").items()
    )
    before = (aside[0] / "last.pt").stat().st_mtime_ns
    train(short, prepared[:3], prepared[3:], tmp_path / "c",
          device=CPU)  # back again: nothing to be done
    assert (tmp_path / "c" / "last.pt").stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("c.")] != [aside[0].name]


def test_what_was_set_aside_comes_back_if_the_other_training_ended_before_a_checkpoint(
    prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = CONFIG.with_(epochs=1)
    history = train(short, prepared[:3], prepared[3:], tmp_path / "c", device=CPU)

    def full(*_: object) -> float:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(training, "train_step", full)
        train(short.with_(patch=32), prepared[:3], prepared[3:], tmp_path / "c", device=CPU)
    assert not (tmp_path / "c" / "last.pt").exists()
    (tmp_path / "c").mkdir(exist_ok=True)  # what a logger may have left
    stamp = next(tmp_path.glob("c.*/last.pt")).stat().st_mtime_ns
    assert train(short, prepared[:3], prepared[3:], tmp_path / "c", device=CPU) == history
    assert (tmp_path / "c" / "last.pt").stat().st_mtime_ns == stamp and not list(
        tmp_path.glob("c.*")
    )


def test_a_checkpoint_of_a_device_without_loss_scaling_goes_on_with_it_and_back(
    prepared, tmp_path: Path
) -> None:
    fp16 = replace(CPU, dtype=torch.float16)
    assert fp16.loss_scaling and not CPU.loss_scaling
    for epochs, device in enumerate((CPU, fp16, CPU), start=1):
        state = new_state(CONFIG, device)
        resume.resume(state, tmp_path, "tag", CONFIG, device)
        assert state.step == epochs - 1 and state.scaler.is_enabled() == device.loss_scaling
        state.step = epochs
        resume.save(state, tmp_path, CONFIG, "tag")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(prepared, tmp_path: Path, capsys) -> None:
    train(CONFIG, prepared[:3], prepared[3:], tmp_path / "whole", device=CPU)
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    path = tmp_path / "damaged" / "last.pt"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(
        path
    ) as archive:  # a single bit, of what it holds and not of the gaps between
        entry = max(archive.infolist(), key=lambda e: e.file_size)
        content[content.index(archive.read(entry)) + entry.file_size // 2] ^= 1
    path.write_bytes(content)
    history = train(CONFIG, prepared[:3], prepared[3:], tmp_path / "damaged", device=CPU)
    assert (
        "does not match its checksum" in capsys.readouterr().out and len(history) == CONFIG.epochs
    )
    one, other = weights(tmp_path / "whole" / "last.pt"), weights(path)
    assert all(torch.equal(one[k], other[k]) for k in one)
    for name in ("last.pt", "before.pt"):
        (tmp_path / "damaged" / name).write_bytes(b"nothing")
    with pytest.raises(BratsError, match="before.pt cannot be read"):
        train(CONFIG, prepared[:3], prepared[3:], tmp_path / "damaged", device=CPU)


def test_best_checkpoint_rebuilds_its_network(prepared, tmp_path: Path) -> None:
    history = train(CONFIG.with_(epochs=1), prepared[:3], prepared[3:], tmp_path, device=CPU)
    assert read_json(tmp_path / training.HISTORY, "training") == history
    model, config = load_checkpoint(tmp_path / "best.pt", CPU)
    assert config == CONFIG.with_(epochs=1) and not model.training
    (tmp_path / "best.pt").write_bytes((tmp_path / "best.pt").read_bytes()[:1000])
    with pytest.raises(BratsError, match="best.pt cannot be read"):
        load_checkpoint(tmp_path / "best.pt", CPU)
    with pytest.raises(BratsError, match="is missing: train first"):
        load_checkpoint(tmp_path / "none.pt", describe_device())
