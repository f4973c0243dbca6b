"""Phantoms first, where real patients are few."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import CONFIG, CPU, weights, write_case

from brats_helpers.__main__ import main
from brats_helpers.basics.config import PRESETS, Config
from brats_helpers.data.cohort import read_cohort
from brats_helpers.data.pipeline import fill_work_folder
from brats_helpers.data.storage import load
from brats_helpers.evaluation.checkpoints import read_checkpoint
from brats_helpers.evaluation.domain_shift import ranges
from brats_helpers.phantoms.kinds import make_patient
from brats_helpers.training import loop as training
from brats_helpers.training import stages as pretraining
from brats_helpers.training.loop import rehearsal, train
from brats_helpers.training.resume import InitialWeights
from brats_helpers.training.stages import for_few_patients, on_phantoms, train_work, training_files
from brats_helpers.training.state import State
from brats_helpers.training.step import train_step

TINY = CONFIG.with_(epochs=1, steps=3, warmup=1, validate_every=1, validation=0.4)


@pytest.mark.parametrize("name", PRESETS)
def test_few_real_patients_bring_phantoms_and_a_word_and_others_change_nothing(
    name: str, capsys
) -> None:
    config = PRESETS[name]
    assert for_few_patients(config, 8, True) == for_few_patients(config, 40, False) == config
    assert not capsys.readouterr().out
    few = for_few_patients(config, 8, False)
    assert (
        few.pretrain
        and few.learning_rate < config.learning_rate
        and few.epochs * few.steps <= pretraining.MOST_STEPS
    )
    said = capsys.readouterr().out
    assert (
        said.startswith("8 real patients")
        and str(few.pretrain) in said
        and f"{few.learning_rate:g}" in said
    )
    assert on_phantoms(few).learning_rate == config.learning_rate and not on_phantoms(few).pretrain
    assert (
        on_phantoms(config.with_(pretrain=7)).learning_rate == config.learning_rate
    )  # asked for, with many patients
    assert (
        on_phantoms(few.with_(learning_rate=3 * config.learning_rate)).learning_rate
        == 3 * config.learning_rate
    )


def test_what_was_asked_for_stays(capsys) -> None:
    alone = PRESETS["quick"].with_(pretrain=0)
    assert for_few_patients(alone, 8, False, ("pretrain",)) == alone and not capsys.readouterr().out
    asked = PRESETS["quick"].with_(learning_rate=1e-3, pretrain=7)
    few = for_few_patients(asked, 8, False, ("learning_rate", "pretrain"))
    assert (
        few.learning_rate == 1e-3 and few.pretrain == 7 and "7 synthetic" in capsys.readouterr().out
    )


def test_training_begins_with_the_weights_that_it_is_given(
    prepared: list[Path], tmp_path: Path
) -> None:  # noqa: F811
    train(TINY, prepared[:2], prepared[3:], tmp_path / "before", device=CPU)
    start = tmp_path / "before" / "last.pt"
    average = read_checkpoint(start, CPU)["average"]
    still = TINY.with_(learning_rate=1e-12, weight_decay=0.0)
    train(
        still,
        prepared[:2],
        prepared[3:],
        tmp_path / "after",
        device=CPU,
        start=InitialWeights(start, []),
    )
    for kind in ("model", "average"):
        after = read_checkpoint(tmp_path / "after" / "last.pt", CPU)[kind]
        assert all(torch.allclose(after[key], average[key], atol=1e-9) for key in average)
    before = weights(tmp_path / "after" / "last.pt")
    train(
        still, prepared[:2], prepared[3:], tmp_path / "after", device=CPU
    )  # from nothing: another training
    assert any(
        not torch.equal(value, before[key])
        for key, value in weights(tmp_path / "after" / "last.pt").items()
    )
    assert len(list(tmp_path.glob("after.*"))) == 1  # the other is kept


def test_what_is_rehearsed_fills_half_of_the_patches_and_is_not_what_scans_are_judged_by(
    prepared: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # noqa: F811
    patient, *phantoms = prepared
    train(TINY, phantoms, [], tmp_path / "before", device=CPU)
    shown = []

    def watched(state: State, batch: dict, *others: object) -> float:
        shown.extend(batch["name"])
        return train_step(state, batch, *others)

    monkeypatch.setattr(training, "train_step", watched)
    start = InitialWeights(tmp_path / "before" / "last.pt", phantoms)
    train(TINY, [patient], [], tmp_path / "after", device=CPU, start=start)
    assert sorted(shown) == sorted(
        [load(patient).meta.name] * 3 + [load(path).meta.name for path in phantoms]
    )
    content = read_checkpoint(tmp_path / "after" / "last.pt", CPU)
    assert content["seen"] == ranges([load(patient).meta.fingerprint])
    train(
        TINY,
        [patient],
        [],
        tmp_path / "after",
        device=CPU,
        start=start._replace(patients=phantoms[:2]),
    )
    assert (
        read_checkpoint(tmp_path / "after" / "last.pt", CPU)["fingerprint"]
        != content["fingerprint"]
    )


def test_patients_come_as_often_as_phantoms_and_never_less_than_once() -> None:
    few, many = [Path("p"), Path("q")], [Path(str(n)) for n in range(9)]
    drawn = rehearsal(few, many)
    assert [drawn.count(path) for path in few] == [4, 4] and drawn[8:] == many
    assert rehearsal(many, few) == [*many, *few] and rehearsal(few, []) == few


def test_a_work_folder_of_few_patients_is_trained_on_phantoms_first_and_again_to_the_same_bits(
    tmp_path: Path,
) -> None:
    for index in range(4):
        patient = make_patient(5, index, 8.0)
        write_case(tmp_path / "raw", f"P{index}", patient.images, patient.reference, patient.affine)
    found = []
    for name in ("a", "b"):
        work = tmp_path / name
        config = TINY.with_(pretrain=4)
        fill_work_folder(work, config, str(tmp_path / "raw"), tmp_path / "raw", jobs=1)
        history = train_work(config, work, device=CPU)
        assert len(history) == 1
        phantoms = work / pretraining.FOLDER
        cohort = read_cohort(phantoms)
        assert cohort.synthetic and len(cohort.by_name) == 4
        assert read_checkpoint(phantoms / "checkpoints" / "last.pt", CPU)["config"]["pretrain"] == 0
        first, last = (
            read_checkpoint(f / "checkpoints" / "last.pt", CPU) for f in (phantoms, work)
        )
        assert last["earlier_seconds"] == first["seconds"] > 0 == first["earlier_seconds"]
        stamp = (phantoms / "checkpoints" / "last.pt").stat().st_mtime_ns
        assert (
            train_work(config, work, device=CPU) == history
        )  # done already: nothing is trained again
        assert (phantoms / "checkpoints" / "last.pt").stat().st_mtime_ns == stamp
        found.append(weights(work / "checkpoints" / "last.pt"))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_everyone_is_learnt_from_apart_from_what_is_measured(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    for index in range(4):
        patient = make_patient(5, index, 8.0)
        write_case(tmp_path / "raw", f"P{index}", patient.images, patient.reference, patient.affine)
    work = tmp_path / "work"
    fill_work_folder(work, TINY, str(tmp_path / "raw"), tmp_path / "raw", jobs=1)
    learnt, held_out = training_files(TINY, work, all_data=True)
    assert [path.stem for path in learnt] == ["P0", "P1", "P2", "P3"] and not held_out
    asked: list[int] = []  # patients that the recipe is chosen for: those of what is measured

    def noted(config: Config, patients: int, *others: object) -> Config:
        asked.append(patients)
        return for_few_patients(config, patients, *others)

    monkeypatch.setattr(pretraining, "for_few_patients", noted)
    assert main(["train", "--work", str(work), "--everyone", "-p", "pretrain", "0"]) == 0
    assert asked == [len(training_files(TINY, work)[0])] != [4]
    assert "measured on nobody" in capsys.readouterr().out
    history = read_checkpoint(work / "everyone" / "last.pt", CPU)["history"]
    assert [row["dice"] for row in history] == [None] and not (
        work / "everyone" / "best.pt"
    ).exists()
    assert not (work / "checkpoints").exists()
