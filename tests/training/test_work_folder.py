"""What a training starts from: random weights, given ones, or the network in the box."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import CONFIG, CPU, weights, write_case

from benchmarks.cohort import fill_work_folder
from brats_helpers.__main__ import main
from brats_helpers.basics.config import PRESETS, Config
from brats_helpers.basics.errors import BratsError
from brats_helpers.evaluation.checkpoints import read_checkpoint
from brats_helpers.evaluation.pretrained import (
    FINE_TUNING_STEPS,
    load_pretrained,
    pretrained_config,
)
from brats_helpers.phantoms.kinds import make_patient
from brats_helpers.training import work_folder
from brats_helpers.training.loop import train
from brats_helpers.training.work_folder import (
    for_few_patients,
    train_work,
    training_files,
)

TINY = CONFIG.with_(epochs=1, steps=3, warmup=1, validate_every=1, validation=0.4)


QUICK = PRESETS["quick"]


def test_few_real_patients_start_from_the_network_in_the_box_and_others_change_nothing(
        capsys: pytest.CaptureFixture) -> None:
    assert for_few_patients(QUICK, 8, True) == for_few_patients(QUICK, 40, False) == QUICK
    assert not capsys.readouterr().out
    few, box = for_few_patients(QUICK, 8, False), pretrained_config()
    assert few.pretrained and (few.filters, few.patch) == (box.filters, box.patch)
    assert few.learning_rate < QUICK.learning_rate
    said = capsys.readouterr().out
    assert said.startswith("8 real patients") and f"{few.learning_rate:g}" in said


def test_what_was_asked_for_stays(capsys: pytest.CaptureFixture) -> None:
    alone = QUICK.with_(pretrained=False)
    assert for_few_patients(alone, 8, False, ("pretrained",)) == alone
    assert not capsys.readouterr().out
    slow = for_few_patients(QUICK.with_(learning_rate=1e-3), 8, False, ("learning_rate",))
    assert slow.learning_rate == 1e-3 and slow.pretrained
    for asked in ({"filters": (4, 8)}, {"spacing_mm": 1.0}):
        other = QUICK.with_(**asked)
        assert for_few_patients(other, 8, False, asked) == other
        assert f"but {next(iter(asked))}=" in capsys.readouterr().out


def test_a_short_training_warms_up_and_keeps_half_of_the_weights_that_it_starts_from() -> None:
    for name in ("quick", "full"):
        few = for_few_patients(PRESETS[name].with_(spacing_mm=2.0), 8, False)
        total = few.epochs * few.steps
        assert total <= FINE_TUNING_STEPS and few.warmup <= total / 5
        assert few.ema**total == pytest.approx(0.5)  # the share of the weights it began with
    longer = for_few_patients(QUICK.with_(epochs=20), 8, False, ("epochs",))
    assert (longer.epochs, longer.steps) == (20, QUICK.steps)
    odd = QUICK.with_(filters=(4, 8), pretrained=True)
    assert not for_few_patients(odd, 8, False, ("filters", "pretrained")).pretrained


def test_a_work_folder_is_trained_from_the_network_in_the_box(tmp_path: Path) -> None:
    for index in range(4):
        patient = make_patient(5, index, 8.0)
        write_case(tmp_path / "raw", f"P{index}", patient.images, patient.reference, patient.affine)
    work = tmp_path / "work"
    few = for_few_patients(TINY.with_(spacing_mm=2.0), 3, False)
    still = few.with_(epochs=1, learning_rate=1e-12, weight_decay=0.0)
    fill_work_folder(work, still, str(tmp_path / "raw"), tmp_path / "raw", jobs=1)
    history = train_work(still, work, device=CPU)
    assert len(history) == 1 and train_work(still, work, device=CPU) == history
    average = read_checkpoint(work / "checkpoints" / "last.pt", CPU)["average"]
    for name, value in load_pretrained(CPU)[0].state_dict().items():
        assert torch.allclose(average[name], value, atol=1e-6), name


def test_another_network_than_the_one_in_the_box_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BratsError, match=r"box, whose filters is \(16, 32, .*, not \(.*=False"):
        train_work(TINY.with_(pretrained=True), tmp_path, device=CPU)


def test_training_begins_with_the_weights_that_it_is_given(prepared: list[Path],
                                                           tmp_path: Path) -> None:  # noqa: F811
    train(TINY, prepared[:2], prepared[3:], tmp_path / "before", device=CPU)
    start = tmp_path / "before" / "last.pt"
    average = read_checkpoint(start, CPU)["average"]
    still = TINY.with_(learning_rate=1e-12, weight_decay=0.0)
    train(still, prepared[:2], prepared[3:], tmp_path / "after", device=CPU, start=start)
    for kind in ("model", "average"):
        after = read_checkpoint(tmp_path / "after" / "last.pt", CPU)[kind]
        assert all(torch.allclose(after[key], average[key], atol=1e-9) for key in average)
    before = weights(tmp_path / "after" / "last.pt")
    train(still, prepared[:2], prepared[3:], tmp_path / "after",
          device=CPU)  # from nothing: another training
    assert any(
        not torch.equal(value, before[key])
        for key, value in weights(tmp_path / "after" / "last.pt").items()
    )
    assert len(list(tmp_path.glob("after.*"))) == 1  # the other is kept


def test_everyone_is_learnt_from_apart_from_what_is_measured(tmp_path: Path, capsys,
                                                             monkeypatch) -> None:
    for index in range(4):
        patient = make_patient(5, index, 8.0)
        write_case(tmp_path / "raw", f"P{index}", patient.images, patient.reference, patient.affine)
    work = tmp_path / "work"
    fill_work_folder(work, TINY, str(tmp_path / "raw"), tmp_path / "raw", jobs=1)
    learned, held_out, synthetic = training_files(TINY, work, all_data=True)
    assert [path.stem for path in learned] == ["P0", "P1", "P2", "P3"]
    assert not held_out and not synthetic
    asked: list[int] = []  # patients that the recipe is chosen for: those of what is measured

    def noted(config: Config, patients: int, *others: object) -> Config:
        asked.append(patients)
        return for_few_patients(config, patients, *others)

    monkeypatch.setattr(work_folder, "for_few_patients", noted)
    assert main(["train", "--work", str(work), "--everyone", "-p", "pretrained", "false"]) == 0
    assert asked == [len(training_files(TINY, work)[0])] != [4]
    assert "measured on nobody" in capsys.readouterr().out
    history = read_checkpoint(work / "everyone" / "last.pt", CPU)["history"]
    assert [row["dice"] for row in history] == [None] and not (
        work / "everyone" / "best.pt"
    ).exists()
    assert not (work / "checkpoints").exists()
