"""What the benchmark of the network in the box computes from its scores."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import few_patients, zero_shot
from brats_helpers.basics.constants import MODALITIES
from brats_helpers.data.cases import Case
from brats_helpers.data.preprocessing import prepare
from brats_helpers.phantoms.kinds import make_patient


def rows(expected: list[float], wt: list[float]) -> dict[str, dict]:
    return {f"P{n}": {"dice": [d, d, d], "expected": e,
                      "sets": {" ".join(names): [d * len(names) / 4] * 3 + [e]
                               for names in zero_shot.SETS}}
            for n, (e, d) in enumerate(zip(expected, wt, strict=True))}


def test_the_threshold_finds_failures_and_keeps_false_alarms_rare() -> None:
    expected = np.array([0.2, 0.3, 0.7, 0.8, 0.9, 0.95, 0.96])
    failed = np.array([True, True, False, False, False, False, False])
    assert 0.3 < zero_shot.threshold(expected, failed) <= 0.7
    overlapping = np.array([0.9, 0.3, 0.7, 0.8, 0.85, 0.95, 0.96])
    least = zero_shot.threshold(overlapping, failed)  # the failure at 0.9 is out of reach
    assert (overlapping < least)[~failed].mean() <= zero_shot.FALSE_ALARMS and least > 0.3


def test_the_warning_is_judged_on_patients_that_did_not_set_it() -> None:
    clear = rows([0.1, 0.2, 0.3, 0.8, 0.9, 0.9, 0.95], [0.2, 0.3, 0.1, 0.9, 0.8, 0.9, 0.9])
    for row in clear.values():  # every set of contrasts gives the same mask
        row["sets"] = dict.fromkeys(row["sets"], [*row["dice"], row["expected"]])
    _, failures, found, fine, alarms = zero_shot.leave_one_out(clear)
    assert (failures, fine) == (45, 60) and found >= 30 and alarms <= 15
    assert "of the 45 masks" in zero_shot.warning_text(clear)


def test_tables_hold_the_means() -> None:
    scores = rows([0.9] * 4, [0.5, 0.7, 0.9, 0.7])
    assert "| 4 | 0.700 (" in zero_shot.summary_table({zero_shot.BOX: scores})
    lacking = {f"{zero_shot.ABLATION}no rims": rows([0.9] * 4, [0.4, 0.6, 0.8, 0.6])}
    both = {zero_shot.EARLIER: scores} | lacking
    assert "no rims" not in zero_shot.summary_table(both)
    assert "| no rims | 0.600 | 0.600 | 0.600 | 0.600 | -0.100 (-0.100 to -0.100) |" in (
        zero_shot.ablation_table(both))
    assert zero_shot.sets_table(scores).splitlines()[-1].endswith("| 0.17 | -0.52 |")


def test_the_curve_counts_each_patient_once() -> None:
    box = rows([0.9] * 4, [0.5, 0.7, 0.9, 0.7])
    draws = [{"system": "ours", "learnt": ["P3"], "draw": n, "minutes": 1, "scores": scores}
             for n, scores in enumerate((
                 {"P0": [0.6] * 3, "P1": [0.8] * 3, "P2": [1.0] * 3}, {"P0": [0.8] * 3}))]
    line = few_patients.table(draws, box).splitlines()[-1]
    assert line.startswith("| 1 | from the network in the box | 2 | 0.800 | 0.800 | 0.800 | "
                           "0.800 | 0.800, 0.800 | +0.133 (")
    assert few_patients.gains([d["scores"] for d in draws], box) == pytest.approx([0.2, 0.1, 0.1])


def test_draws_are_repeatable_and_differ() -> None:
    cases = [Case(f"P{n}", (), None) for n in range(20)]
    assert few_patients.draw(cases, 4, 0) == few_patients.draw(cases, 4, 0)
    assert few_patients.draw(cases, 4, 0) != few_patients.draw(cases, 4, 1)
    assert len(zero_shot.SETS) == 15 == len(set(zero_shot.SETS))


@pytest.mark.parametrize("names", [("flair",), ("t1", "t2")])
def test_taking_a_contrast_away_equals_not_having_scanned_it(names: tuple[str, ...]) -> None:
    patient = make_patient(0, 1, 8.0)
    taken = prepare(zero_shot.with_only(patient, names), 8.0)
    for n, name in enumerate(MODALITIES):
        if name not in names:
            patient.images[n] = 0
    scanned = prepare(patient, 8.0)
    assert taken.volume.shape == scanned.volume.shape
    assert np.array_equal(taken.volume, scanned.volume)
    assert taken.meta.mean == scanned.meta.mean and taken.meta.std == scanned.meta.std
