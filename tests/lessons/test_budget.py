"""The two minutes: what a lab counts and remembers, and what the check says of a choice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CONFIG, CPU

from brats_helpers.basics.errors import BratsError
from brats_helpers.data.cases import Patient
from brats_helpers.lessons import budget
from brats_helpers.lessons.budget import DEFAULT_PLAN, Lab, complete, describe_plan, labels_of
from brats_helpers.lessons.investigations import check_budget
from brats_helpers.network.unet import UNet
from brats_helpers.phantoms import make_patient


@pytest.fixture(scope="module")
def strangers() -> list[Patient]:
    return [make_patient(9, n, 8.0, "varied") for n in range(3)]


@pytest.fixture
def lab(monkeypatch, strangers) -> Lab:
    """A lab with an untrained network, one stranger to learn from and one to practice on."""
    monkeypatch.delenv("BRATS_HEADLESS", raising=False)
    torch.manual_seed(0)
    made = Lab(UNet(CONFIG.filters), CONFIG, CPU, strangers[:1], "varied")
    made.learned, made.practice = strangers[1:2], strangers[2:]
    return made


def test_steps_train_a_copy_and_what_was_computed_costs_nothing_again(lab: Lab, capsys) -> None:
    before = {name: weight.clone() for name, weight in lab.model.state_dict().items()}
    first = lab.score({"steps": 2})
    spent = lab.spent
    assert spent > 0 and "steps 2: Dice" in capsys.readouterr().out
    assert all(torch.equal(before[name], w) for name, w in lab.model.state_dict().items())
    assert not all(torch.equal(before[name], w)
                   for name, w in lab.trained(2, True).state_dict().items())
    assert lab.score({"steps": 2}) == first and lab.spent - spent < spent / 2
    assert lab.score({"steps": 2, "augment": False}) != first
    lab.spent = budget.BUDGET_S
    assert np.isfinite(lab.score({"steps": 2, "threshold": 0.6}))  # nothing new is computed
    assert np.isnan(lab.score({"steps": 3})) and "used up" in capsys.readouterr().out


def test_settings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(BratsError, match="a plan has no stepz; it may set: steps, augment"):
        complete({"stepz": 3})
    with pytest.raises(BratsError, match="views=4"):
        complete({"views": 4})
    assert describe_plan(complete({})) == "nothing changed"


def test_the_threshold_and_the_largest_piece_change_the_mask() -> None:
    probabilities = np.zeros((3, 8, 8, 8), np.float32)
    probabilities[0, 1:4, 1:4, 1:4], probabilities[0, 6, 6, 6] = 0.6, 0.9
    assert (labels_of(probabilities, DEFAULT_PLAN) > 0).sum() == 28
    assert (labels_of(probabilities, DEFAULT_PLAN | {"threshold": 0.7}) > 0).sum() == 1
    assert (labels_of(probabilities, DEFAULT_PLAN | {"largest": True}) > 0).sum() == 27


def test_the_check_names_the_typical_mistakes(lab: Lab) -> None:
    assert check_budget(..., lab, 0.3).state == "open"
    assert "one plan" in repr(check_budget([1], lab, 0.3))
    assert "at least two plans" in repr(check_budget({"steps": 1}, lab, 0.3))
    scores = {0.2: lab.score({"threshold": 0.2}), 0.99: lab.score({"threshold": 0.99})}
    assert scores[0.2] > scores[0.99]  # an untrained network, so a low threshold finds more
    assert "not scored the plan" in repr(check_budget({"threshold": 0.7}, lab, 0.3))
    assert "another plan was better: threshold 0.2" in repr(check_budget({"threshold": 0.99}, lab,
                                                                        0.3))
    verdict = check_budget({"threshold": 0.2}, lab, 0.3)
    assert verdict.state == "right" and "from 0.30 to" in verdict.message
    lab.score({"threshold": 0.2}, "test")
    assert "looked at the test patients 1 time" in repr(check_budget({"threshold": 0.2}, lab, 0.3))
