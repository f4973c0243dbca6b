"""The slices that show a prediction form: at the steps wanted, resumable, and free of effects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIG, CPU, weights

from brats_helpers.basics.errors import Stopped
from brats_helpers.data.storage import load_prepared
from brats_helpers.training import forming
from brats_helpers.training.forming import read_forming
from brats_helpers.training.loop import train


def test_slices_are_kept_at_early_steps_and_the_last_and_change_no_weight(prepared, tmp_path: Path,
                                                                          monkeypatch) -> None:
    train(CONFIG, prepared[:3], prepared[3:], tmp_path / "short", device=CPU)
    assert not read_forming(tmp_path / "short")  # 12 steps are too few
    monkeypatch.setattr(forming, "EARLY", (0, 2, 5))
    train(CONFIG, prepared[:3], prepared[3:], tmp_path / "seen", device=CPU)
    found = read_forming(tmp_path / "seen")
    assert list(found) == [0, 2, 5, 12]
    shape = load_prepared(min(prepared)).volume.shape[2:]
    assert all(p.shape == (3, *shape) and 0 <= p.min() <= p.max() <= 1 for p in found.values())
    assert not np.array_equal(found[0], found[12])
    one, other = (weights(tmp_path / name / "last.pt") for name in ("short", "seen"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_training_that_goes_on_completes_its_slices(prepared, tmp_path: Path,
                                                      monkeypatch) -> None:
    monkeypatch.setattr(forming, "EARLY", (0, 2, 5))
    train(CONFIG, prepared[:3], prepared[3:], tmp_path / "whole", device=CPU)

    def stop(history: list[dict]) -> None:
        raise Stopped("after an epoch")

    with pytest.raises(Stopped):  # nothing is saved yet, so the first epoch is repeated
        train(CONFIG, prepared[:3], prepared[3:], tmp_path / "cut", stop, CPU)
    assert list(read_forming(tmp_path / "cut")) == [0, 2]
    train(CONFIG, prepared[:3], prepared[3:], tmp_path / "cut", device=CPU)
    whole, cut = read_forming(tmp_path / "whole"), read_forming(tmp_path / "cut")
    assert list(cut) == list(whole) == [0, 2, 5, 12]
    assert all(np.array_equal(whole[step], cut[step]) for step in whole)
