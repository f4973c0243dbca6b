"""Training on two processes equals training on one, through stops, poison and a killed process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from conftest import write_case

from benchmarks.cohort import fill_work_folder
from brats_helpers.basics.config import PRESETS, Config
from brats_helpers.basics.device import Device
from brats_helpers.basics.errors import BratsError, Stopped
from brats_helpers.basics.files import read_json, write_json
from brats_helpers.data.loaders import PatchDataset, batches
from brats_helpers.data.splits import make_splits
from brats_helpers.data.storage import load_prepared, save_prepared
from brats_helpers.evaluation.checkpoints import read_checkpoint
from brats_helpers.network.losses import deep_supervision_loss
from brats_helpers.phantoms.kinds import make_patient
from brats_helpers.training import distributed, launch
from brats_helpers.training.launch import choose_processes, for_all_gpus, train_here
from brats_helpers.training.loop import HISTORY, train
from brats_helpers.training.state import new_state
from brats_helpers.training.work_folder import checkpoint_folder

CPU = Device("cpu", "test", 1.0, torch.float32)
CONFIG = Config(preset="quick", filters=(4, 6, 8), patch=16, batch=4, epochs=3, steps=5, warmup=2,
                learning_rate=2e-3, ema=0.9, spacing_mm=8.0, validation=0.4, checkpointing=True)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for index in range(6):
        patient = make_patient(0, index, 8.0)
        write_case(folder, f"P{index}", patient.images, patient.reference, patient.affine)
    return folder


def filled(work: Path, raw: Path) -> Path:
    """A work folder of these patients, split as if all tumors were of one size."""
    fill_work_folder(work, CONFIG, "phantom", raw, jobs=1, synthetic=True)
    names = sorted(path.name for path in raw.iterdir())
    splits = make_splits(names, [1.0] * len(names), CONFIG.seed, CONFIG.validation, CONFIG.folds)
    write_json(work / "splits.json", {**read_json(work / "splits.json", "the test"), **splits})
    return work


@pytest.fixture
def work(raw: Path, tmp_path: Path) -> Path:
    return filled(tmp_path / "work", raw)


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """The history and the weights of a training on one process, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    filled(folder, raw)
    return train_here(CONFIG, folder, device=CPU), weights(folder)


def weights(work: Path) -> dict[str, torch.Tensor]:
    content = read_checkpoint(work / "checkpoints" / "last.pt", CPU)
    return {f"{kind} {k}": v for kind in ("model", "average") for k, v in content[kind].items()}


def moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The distance between the weights of two networks."""
    return (
        sum((one[k] - other[k]).square().sum().item() for k in one if k.startswith("model")) ** 0.5
    )


def same(history: list[dict], work: Path,
         whole: tuple[list[dict], dict[str, torch.Tensor]]) -> None:
    """Assert that a training has the curve and the weights of the one that was whole.

    They cannot be equal: sums in another order differ by float error, and Adam, which divides by
    the size of a gradient, turns one near 0 into a whole step. Measured: losses 5e-6, weights 0.9%
    of the distance to their start. Another order of patches in one process: 2e-7 and 0.2%.
    """
    for mine, other in zip(history, whole[0], strict=True):
        assert (mine["step"], mine["learning_rate"]) == (other["step"], other["learning_rate"])
        assert mine["loss"] == pytest.approx(other["loss"], rel=5e-5)
        assert mine["dice"] == pytest.approx(other["dice"], abs=2e-3)
    start = {f"model {k}": v for k, v in new_state(CONFIG, CPU).model.state_dict().items()}
    assert moved(weights(work), whole[1]) < 0.03 * moved(start, whole[1])


def test_a_stop_before_the_first_step_does_not_bring_back_an_earlier_training(work: Path,
                                                                              monkeypatch) -> None:
    train_here(CONFIG, work, device=CPU)
    monkeypatch.setattr(launch, "run_processes", lambda *_: True)
    with pytest.raises(Stopped, match="stopped before the first step"):
        train_here(CONFIG.with_(learning_rate=1e-4), work, 2, device=CPU)


def test_two_processes_stopped_and_gone_on_are_one_with_the_same_batch(whole, work: Path,
                                                                       faults) -> None:
    seen: list[int] = []

    def stop(history: list[dict]) -> None:
        if not seen:
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(len(history))

    with pytest.raises(Stopped, match="stopped after step .* of 15; all is saved in"):
        train_here(CONFIG, work, 2, stop, CPU)
    assert seen and 5 <= read_checkpoint(work / "checkpoints" / "last.pt", CPU)["step"] < 15
    history = train_here(CONFIG, work, 2, lambda history: seen.append(len(history)), CPU)
    assert seen[-1] == 3
    same(history, work, whole)
    faults("stops in training", 1)


def test_a_killed_process_is_replaced_and_training_ends_as_if_nothing_had_been(whole, work: Path,
                                                                               faults) -> None:
    notes = checkpoint_folder(work) / HISTORY
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts",
               "2", "-m", "brats_helpers", "train", "--work", str(work), "--precision", "float32"]
    child = subprocess.Popen([sys.executable, "-m", *command],
                             env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    while not (notes.is_file() and read_json(notes, "training")) and child.poll() is None:
        time.sleep(0.005)
    victim = max(psutil.Process(child.pid).children(), key=lambda process: process.pid)
    victim.kill()
    assert child.wait(60) == 0
    content = read_checkpoint(work / "checkpoints" / "last.pt", CPU)
    assert content["step"] == 15 and content["history"][0]["step"] == 5
    same(content["history"], work, whole)
    assert read_json(notes, "training")[-1]["epoch"] == 3
    faults("kills in training", 1)


# What goes wrong in process 1, as sitecustomize.py: before it joins, and at the second validation.
TROUBLE = """import os, signal, time
if os.environ.get("RANK") == "1":
    import torch.distributed as dist
    calls = []
    def trouble(*_, **__):
        calls.append(1)
        {0}
        return whole(*_, **__)
    whole, dist.{1} = dist.{1}, trouble
"""
FAILS = TROUBLE.format("raise RuntimeError('no way to rank 0')", "init_process_group")
HANGS = TROUBLE.format("time.sleep(600)", "init_process_group")
DIES = TROUBLE.format("len(calls) == 2 and os.kill(os.getpid(), signal.SIGKILL)",
                      "all_gather_object")


@pytest.mark.parametrize(("trouble", "cause", "seconds"), [
    (FAILS, "RuntimeError: no way to rank 0", 180),
    (HANGS, "they did not connect within 8 seconds", 8),
    (DIES, "one was killed, perhaps for memory|RuntimeError: .*", 180)],
    ids=["fails", "hangs", "dies"])
def test_where_a_group_fails_one_process_trains_alone_to_the_same_end(
    whole, work: Path, tmp_path: Path, monkeypatch, capsys, faults, trouble: str, cause: str,
    seconds: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(trouble)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launch, "START_SECONDS", seconds)
    monkeypatch.setattr(launch, "RESTARTS", 0)
    seen: list[int] = []
    before = set(psutil.Process().children(recursive=True))
    history = train_here(CONFIG, work, 2, lambda history: seen.append(len(history)), CPU)
    assert re.search(rf"2 processes could not train together \(({cause})\), so one trains alone",
                     capsys.readouterr().out)
    same(history, work, whole)
    assert seen[-1] == 3
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE]
    faults("groups that fail", 1)


def test_a_poisoned_patient_is_named_whoever_has_met_it(work: Path, faults) -> None:
    for path in sorted((work / "preprocessed").glob("*.b2nd"))[1:]:
        bad = load_prepared(path)
        save_prepared(replace(bad, meta=replace(bad.meta, std=(float("nan"),) * 4)), path)
    with pytest.raises(
        BratsError,
        match=r"the loss became nan.*at step 0, on patches of P\d, P\d, P\d, P\d: .*on_nan=halve",
    ):
        train_here(CONFIG, work, 2, device=CPU)
    faults("poisoned patients", 1)


def test_a_batch_that_cannot_be_shared_is_refused_or_shared_by_fewer(work: Path, monkeypatch,
                                                                     capsys) -> None:
    with pytest.raises(
        BratsError, match="batch=4 cannot be shared equally by 3 processes: choose a multiple of 3"
    ):
        train_here(CONFIG, work, 3, device=CPU)
    assert (
        choose_processes(2, 2) == 2
        and choose_processes(6, 4) == 3
        and not capsys.readouterr().out.startswith("2 of 2")
    )
    assert choose_processes(1, 2) == 1 and "1 of 2 GPUs" in capsys.readouterr().out
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(BratsError, match="batch=4 cannot be shared"):
        train(CONFIG, [], [], work / "c", device=CPU)


def test_each_process_reads_its_own_patches_and_together_all(work: Path) -> None:
    data = PatchDataset(sorted((work / "preprocessed").glob("*.b2nd")), 16, 0.4, 0)
    hands = [list(batches(data, 4, 1, 3, 0, rank, 2)) for rank in range(2)]
    assert [[item["number"] for item in hand] for hand in hands] == [[[4, 6], [8, 10]],
                                                                     [[5, 7], [9, 11]]]


ONE_STEP = CONFIG.with_(epochs=1, steps=1)


def _on_ranks(rank: int, folder: Path, files: list[Path], results: object) -> None:
    """Compute half a batch on each of two processes: loss, gradient, collectives, and one step."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank,
                                         world_size=2)
    train(ONE_STEP, files[:3], files[3:], folder / "two", device=CPU)
    outputs, target = whole_batch()
    mine = [x[rank::2].detach().requires_grad_() for x in outputs]
    loss = deep_supervision_loss(mine, target[rank::2], reduce=distributed.all_reduce_sum)
    (loss / 2).backward()  # halved, as DistributedDataParallel's mean over processes does
    said = {
        "loss": distributed.all_reduce_mean(loss),
        "gradients": [x.grad for x in mine],
        "agreed": distributed.any_rank(rank == 1, False),
        "gathered": distributed.gather(range(5)[rank::2]),
        "once": distributed.broadcast_from_rank_zero(lambda: rank),
    }
    results.put(
        (
            rank,
            {
                k: [t.numpy() for t in v] if k == "gradients" else v.item() if k == "loss" else v
                for k, v in said.items()
            },
        )
    )
    torch.distributed.destroy_process_group()


def whole_batch() -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = [
        torch.randn(4, 3, edge, edge, edge, generator=generator, requires_grad=True)
        for edge in (8, 4)
    ]
    return outputs, (torch.rand(4, 3, 8, 8, 8, generator=generator) < 0.2).float()


def first_gradient(folder: Path) -> torch.Tensor:
    """Adam's first moment of all weights after one step: a tenth of the (clipped) gradient."""
    state = read_checkpoint(folder / "last.pt", CPU)["optimizer"]["state"]
    return torch.cat([state[i]["exp_avg"].flatten() for i in sorted(state)])


def test_the_loss_of_a_shared_batch_and_its_gradient_are_those_of_the_whole(work: Path,
                                                                            tmp_path: Path) -> None:
    files = sorted((work / "preprocessed").glob("*.b2nd"))
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    children = [
        context.Process(target=_on_ranks, args=(rank, tmp_path, files, results))
        for rank in range(2)
    ]
    for child in children:
        child.start()
    found = dict(results.get(timeout=60) for _ in children)
    for child in children:
        child.join()
    outputs, target = whole_batch()
    loss = deep_supervision_loss(outputs, target)
    loss.backward()
    for rank in range(2):
        assert found[rank]["loss"] == pytest.approx(loss.item(), rel=1e-6)
        for mine, output in zip(found[rank]["gradients"], outputs, strict=True):
            torch.testing.assert_close(torch.from_numpy(mine), output.grad[rank::2], rtol=1e-5,
                                       atol=1e-9)
        assert (found[rank]["agreed"], found[rank]["gathered"], found[rank]["once"]) == (
            [True, False],
            [0, 1, 2, 3, 4],
            0,
        )
    train(ONE_STEP, files[:3], files[3:], tmp_path / "one", device=CPU)
    one, two = first_gradient(tmp_path / "one"), first_gradient(tmp_path / "two")
    assert (one - two).norm() < 1e-5 * one.norm()  # measured: 8e-7


def test_two_gpus_train_the_preset_of_one_with_a_patch_each(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus, one = Device("cuda", "T4", 15.0, torch.float16), PRESETS["kaggle"]
    two = for_all_gpus(one, gpus)
    assert (two.batch, two.steps * two.batch) == (2, one.steps * one.batch)
    assert "2 patches instead of 1" in capsys.readouterr().out
    assert for_all_gpus(PRESETS["full"], gpus) == PRESETS["full"] and for_all_gpus(one, CPU) == one
