"""Event files: TensorBoard reads the history, once; nothing is written unless asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIG, CPU

from brats_helpers.basics.errors import BratsError
from brats_helpers.data.storage import load_prepared
from brats_helpers.evaluation.metrics import regions
from brats_helpers.training import tensorboard as tracking
from brats_helpers.training.loop import train
from brats_helpers.training.resume import hash_run


def read(folder: Path) -> object:
    """The events of a training, by TensorBoard's own reader."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                  reason="no tensorboard")
    events = reading.EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    return events


def test_tensorboard_reads_the_history_and_a_resumed_training_writes_no_step_twice(
    prepared,
    tmp_path: Path,  # noqa: F811
    monkeypatch,
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.setattr(tracking, "EVERY", 2)
    config = CONFIG.with_(tensorboard=True)
    train(config, prepared[:3], prepared[3:], tmp_path / "c", device=CPU)
    shutil.copyfile(tmp_path / "c" / "before.pt",
                    tmp_path / "c" / "last.pt")  # killed before its last epoch was saved
    history = train(config, prepared[:3], prepared[3:], tmp_path / "c", device=CPU)
    events = read(tmp_path / "c")
    steps = [record["step"] for record in history]
    assert steps == [4, 8, 12] and len(list((tmp_path / "c" / "tensorboard").iterdir())) == 2
    for tag, wanted in {
        "loss/epoch": [r["loss"] for r in history],
        "learning_rate/epoch": [r["learning_rate"] for r in history],
        **{f"dice/{name}": [r["dice"][name] for r in history] for name in ("WT", "TC", "ET")},
    }.items():
        points = events.Scalars(tag)
        assert [p.step for p in points] == steps and [p.value for p in points] == pytest.approx(
            wanted
        )
    single = events.Scalars("loss/step")
    assert (
        [p.step for p in single]
        == [2, 4, 6, 8, 10, 12]
        == [p.step for p in events.Scalars("learning_rate/step")]
    )
    assert all(p.value > 0 for p in events.Scalars("speed/patches_per_second"))
    (tag,) = events.Tags()["images"]
    assert len(events.Images(tag)) == 3
    assert tag.startswith("patient/") and "not_for_diagnosis" in tag
    assert hash_run(config, prepared) == hash_run(CONFIG, prepared)  # it may be switched on midway


def test_outlines_of_reference_and_prediction_are_side_by_side(prepared) -> None:
    patient = load_prepared(prepared[0])
    reference = regions(patient.reference)
    picture = tracking.overlay(patient, reference)
    _, height, width = patient.volume.shape[1:]
    assert picture.shape == (height * tracking.ENLARGE, 2 * width * tracking.ENLARGE, 3)
    left, right = np.split(picture, 2, axis=1)
    assert np.array_equal(left, right) and (np.ptp(left, 2) > 0).any()
    left, right = np.split(tracking.overlay(patient, np.zeros_like(reference)), 2, axis=1)
    assert (np.ptp(left, 2) > 0).any() and not np.ptp(right, 2).any()


def test_pictures_of_phantoms_say_so(tmp_path: Path) -> None:
    assert tracking.Tracker(tmp_path, CONFIG, 0, synthetic=True).prefix == "synthetic_patient"


def test_without_being_asked_nothing_is_written_and_tensorboard_is_not_imported(
    prepared, tmp_path: Path
) -> None:  # noqa: F811
    train(CONFIG.with_(epochs=1), prepared[:3], prepared[3:], tmp_path, device=CPU)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "history.json", "last.pt"]
    code = (
        "import sys, brats_helpers.training.loop; "
        "assert not [m for m in sys.modules if m.startswith('tensorboard')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_where_it_is_not_installed_the_way_to_get_it_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BratsError, match="pip install tensorboard"):
        tracking.Tracker(tmp_path, CONFIG.with_(tensorboard=True), 0)
