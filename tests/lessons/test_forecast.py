"""The forecast of notebook 01: what was chosen, and how long the rest takes."""

from __future__ import annotations

import pytest
import torch
from conftest import CONFIG, CPU

from brats_helpers.basics.config import preset
from brats_helpers.lessons import forecast


def test_it_says_what_was_chosen_and_leaves_the_random_numbers_alone(capsys) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    minutes = forecast.forecast_minutes(CONFIG, CPU, seconds=0.1)
    assert torch.equal(torch.rand(2), expected)
    said = capsys.readouterr().out
    assert f"cpu, float32, {torch.get_num_threads()} threads; 12 steps of 2 patches of 16" in said
    assert f"about {minutes:.0f} minutes for notebooks 02 to 05" in said and minutes > 1


def test_another_preset_is_not_measured(monkeypatch, capsys) -> None:
    monkeypatch.setattr(forecast, "step_seconds", None)
    assert forecast.forecast_minutes(preset("full"), CPU) is None
    assert "costs.md" in capsys.readouterr().out


def test_the_forecast_agrees_with_a_run_that_was_measured() -> None:
    step, took = 0.495, 492  # seconds, in the run of docs/costs.md
    assert forecast.minutes_left(preset("quick"), step) == pytest.approx(took / 60, rel=0.15)
