"""The investigations: right answers pass, each typical mistake has its hint, blanks stay open."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from brats_helpers.evaluation.metrics import dice
from brats_helpers.lessons import investigations as look
from brats_helpers.lessons.diagnosis import compare_masks, diagnose
from brats_helpers.phantoms import make_patient

OUTLINE = [(90, 66), (86, 50), (70, 46), (56, 58), (52, 70), (60, 72), (67, 80), (75, 82), (83, 78)]


@pytest.fixture(autouse=True)
def in_class(monkeypatch) -> None:
    """A student's session: a wrong answer is a verdict, not an error."""
    monkeypatch.delenv("BRATS_HEADLESS", raising=False)


@pytest.fixture(scope="module")
def patient():
    """The phantom that notebook 01 lets students outline."""
    return make_patient(0, 7, 2.0)


def forward(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    skips = []
    for stage in net.encoder:
        x = stage(x)
        skips.append(x)
    skips.pop()
    for upsample, stage in zip(net.upsample, net.decoder, strict=True):
        x = stage(torch.cat((upsample(x), skips.pop()), dim=1))
    return net.heads[-1](x)


def closest(cohort: dict[str, np.ndarray], likeness: object) -> set[str]:
    return set(max(combinations(cohort, 2), key=lambda pair: likeness(*map(cohort.get, pair))))


@pytest.mark.parametrize(("corners", "said"), [
    (OUTLINE, "Your Dice is 0.9"), ([(y, x) for x, y in OUTLINE], "swapped"),
    ([(1, 2)], "at least three"), ([(62, 60), (75, 52), (87, 62), (75, 74)], "rim"),
    ([(40, 40), (100, 40), (100, 100), (40, 100)], "too large"),
    ([(70, 50), (85, 52), (70, 54)], "too small"), (..., "Replace")])
def test_an_outline_is_scored_and_its_mistake_named(patient, corners: object, said: str) -> None:
    assert said in repr(look.check_outline(corners, patient))


def test_the_twin_is_found_by_correlation_and_not_by_differences() -> None:
    alike = lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1]  # noqa: E731
    near = lambda a, b: -np.abs(a - b).mean()  # noqa: E731
    assert look.check_twin(lambda cohort: closest(cohort, alike)).state == "right"
    assert "multiplied" in repr(look.check_twin(lambda cohort: closest(cohort, near)))
    assert "exactly two" in repr(look.check_twin(lambda cohort: set(cohort)))
    assert look.check_twin(lambda cohort: ...).state == "open"


def test_repairs_bring_every_broken_patient_back(patient) -> None:
    broken = look.broken_patients(patient)
    assert look.check_repairs(broken, patient).state == "wrong"
    fixed = dict(broken)
    (_, labels), (lifted, _), (swapped, _) = broken.values()
    first, second, third = broken
    fixed[first] = (patient.images, np.where(labels == 4, 3, labels))
    assert look.check_repairs(fixed, patient).state == "wrong"
    fixed[second] = (lifted * (lifted[[0, 2, 3]] != 0).any(0), patient.reference)
    assert "FLAIR comes first" in repr(look.check_repairs(fixed, patient))
    fixed[third] = (swapped[[3, 1, 2, 0]], patient.reference)
    assert look.check_repairs(fixed, patient).state == "right"
    fixed[second] = (np.where(lifted < 700, 0, lifted), patient.reference)
    assert "brain became 0" in repr(look.check_repairs(fixed, patient))
    assert look.check_repairs({first: (..., labels)}, patient).state == "open"


def test_the_forward_pass_is_that_of_the_module() -> None:
    assert look.check_forward(forward).state == "right"
    assert look.check_forward(lambda net, x: None).state == "open"
    assert "last head" in repr(look.check_forward(lambda net, x: net.encoder[0](x)))


def test_the_best_threshold_is_searched_anew_for_each_patient() -> None:
    patients = [make_patient(0, n, 4.0) for n in (1, 2)]

    def best(image: np.ndarray, tumor: np.ndarray) -> float:
        return max(np.percentile(image[image > 0], range(2, 100, 2)),
                   key=lambda cut: dice(image > cut, tumor))

    assert look.check_best_threshold(best, patients).state == "right"
    assert "every patient" in repr(look.check_best_threshold(lambda *_: 1e9, patients))
    assert look.check_best_threshold(lambda *_: None, patients).state == "open"


def test_a_machine_that_copies_is_unmasked_by_a_split_of_patients() -> None:
    rng = np.random.default_rng(0)
    slices = []
    for person in range(6):
        picture, mask = rng.standard_normal(400), rng.random((20, 20)) < 0.3
        for _ in range(8):
            noisy = picture + 0.2 * rng.standard_normal(400)
            slices.append(look.Slice(f"P{person}", noisy / np.linalg.norm(noisy), mask))
    shuffled = rng.random(len(slices)) < 0.2
    people = np.array([piece.patient in ("P0", "P1") for piece in slices])
    one, other = look.slice_and_neighbor(slices)
    assert one.removeprefix("a slice of ") == other.removeprefix("most like it: ")
    assert look.copying_machine(slices, shuffled) == 1
    assert look.copying_machine(slices, people) < 0.5
    assert np.isnan(look.copying_machine(slices, np.zeros(len(slices), bool)))


def test_a_diagnosis_names_the_milliliters_and_shows_every_region(patient) -> None:
    mask = patient.reference.copy()
    mask[mask == 3] = 0
    said = diagnose(patient, mask)
    ml = (patient.reference == 3).sum() * np.prod(patient.spacing) / 1000
    assert f"{ml:.1f} ml missed, 0.0 ml false" in said[2]
    one = np.argwhere(patient.reference == 1)[0]  # a single voxel is not 0.0 ml
    mask[tuple(one)] = 3
    assert f"{np.prod(patient.spacing) / 1000:.2g} ml false" in diagnose(patient, mask)[2]
    assert len(compare_masks(patient, mask, True).axes) == 6


def test_the_explanation_is_the_lowest_region_and_its_larger_error() -> None:
    row = {"WT": {"dice": 0.9}, "TC": {"dice": 0.5}, "ET": {"dice": 0.7}}
    errors = {name: {"missed": 1.0, "false": 2.0, "found": 3.0} for name in row}
    check = look.check_explanation
    assert check(("TC", "false"), row, errors).state == "right"
    assert "Another region" in repr(check(("ET", "false"), row, errors))
    assert "Compare" in repr(check(("TC", "missed"), row, errors))
    assert "two words" in repr(check("TC", row, errors))
