"""Test every check on the right answer, a blank, errors, and typical mistakes and their hints."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNet

from brats_helpers.lessons import checks

AFFINE = np.array([[-2.0, 0, 0, 90], [0, -2.0, 0, 126], [0, 0, 2.0, -72], [0, 0, 0, 1]])
LABELS = np.zeros((4, 4, 4), np.uint8)
LABELS[0, 0] = (1, 2, 2, 3)
IMAGES = np.zeros((4, 24, 25, 26))
CONFIG = SimpleNamespace(learning_rate=0.004)
SHAPE = (140, 175, 140)
GB = 140 * 175 * 140 * 1251 / 1e9


def field(order: str, first: int = 1) -> Callable:
    """Receptive fields, right and wrong."""
    def function(strides: list[int]) -> int:
        total, step = first, 1
        for stride in strides:
            step *= stride if order == "before" else 1
            total += 2 * (1 if order == "none" else step)
            step *= stride if order == "after" else 1
        return total
    return function


def nested(inner: Callable) -> Callable:
    """A chain of thresholds whose labels are changed afterwards."""
    return lambda w, c, e: inner(
        np.where(w < 0.45, 0, np.where(c < 0.4, 2, np.where(e < 0.4, 1, 3))))


def segresnet(dims: int, channels: int, regions: int) -> Callable:
    """MONAI's network, right and wrong."""
    return lambda: SegResNet(dims, 8, channels, regions)


def standing(labels: np.ndarray) -> np.ndarray:
    labels[labels == 3] = 4
    return labels


# check, its other arguments, the right answer, and wrong ones: (answer, a part of the hint)
EXERCISES = [
    (checks.check_float_gigabytes, (SHAPE, 1251), GB * 20, [
        (GB * 5, "4 bytes"), (GB * 16, "five channels"), (GB * 20e9 / 2**30, "GiB"),
        (GB * 20 / 1251, "one patient")]),
    (checks.check_contrasts, (["t1ce", "flair", "t2", "t1"],), ["T1CE", "FLAIR", "T2", "T1"], [
        (["t1ce", "t2", "flair", "t1"], "ventricles is dark"),
        (["t1", "flair", "t2", "t1ce"], "bright rim"),
        (["t1", "t1", "t2", "t1ce"], "four different names")]),
    (checks.check_position, (AFFINE, (10, 20, 30)), (AFFINE @ [10, 20, 30, 1])[:3], [
        ((AFFINE[:3, :3] @ [10, 20, 30]), "shift is missing"),
        ([10, 20, 30], "Those are the indices"),
        (AFFINE @ [10, 20, 30, 1], "keep three"), ([-70, 86, -12], "sign"),
        (3, "three millimeters")]),
    (checks.check_tumor_volume, (LABELS, (2, 2, 2)), 0.032, [
        (32, "mm3"), (8 * 8 / 1000, "names, not amounts"), (4, "not 1 mm3"),
        (0.016, "one of the three")]),
    (checks.check_to_disk, (), lambda x: np.where(x == 3, 4, x), [
        (standing, "changed the array"), (lambda x: np.where(x == 4, 3, x), "3 should become 4"),
        (lambda x: x + 1, "Only 3 changes"), (lambda x: 1 / 0, "ZeroDivisionError")]),
    (checks.check_shape, (IMAGES,), (4, 26, 25, 24),
     [((4, 24, 25, 26), "turned to z"), ((26, 25, 24), "come first")]),
    (checks.check_zscore, (), lambda x, b: np.where(b, (x - x[b].mean()) / x[b].std(), 0), [
        (lambda x, b: (x - x.mean()) / x.std(), "background is in"),
        (lambda x, b: (x - x[b].mean()) / x[b].std(), "no longer 0"),
        (lambda x, b: np.where(b, (x - x[b].mean()) / x[b].var(), 0), "variance"),
        (lambda x, b: np.where(b, x - x[b].mean(), 0), "not yet divided")]),
    (checks.check_first_and_last, (), lambda x: (np.flatnonzero(x)[0], np.flatnonzero(x)[-1] + 1), [
        (lambda x: (np.flatnonzero(x)[0], np.flatnonzero(x)[-1]), "cut off"),
        (lambda x: (np.flatnonzero(x)[0], np.flatnonzero(x)[0] + x.sum()), "gaps")]),
    (checks.check_soft_dice, (),
     lambda p, r: (2 * (p * r).sum() + 1e-5) / (p.sum() + r.sum() + 1e-5), [
        (lambda p, r: 2 * (p * r).sum() / (p.sum() + r.sum()), "0 / 0"),
        (lambda p, r: (p * r).sum() / (p.sum() + r.sum()), "2 is"),
        (lambda p, r: (p * r).sum() / (p.sum() + r.sum() - (p * r).sum()), "IoU"),
        (lambda p, r: 1 - 2 * (p * r).sum() / (p.sum() + r.sum()), "the loss")]),
    (checks.check_receptive_field, (), field("after"), [
        (field("none"), "ignores the strides"), (field("before"), "add first"),
        (field("after", 0), "Begin with 1")]),
    (checks.check_own_network, (), segresnet(3, 5, 3), [
        (segresnet(3, 4, 3), "Five channels go in"), (segresnet(3, 5, 4), "one for each region"),
        (segresnet(2, 5, 3), "must be 3"), (lambda: SegResNet, "not the class"),
        (lambda: torch.nn.Conv3d(5, 3, 3, stride=2, padding=1), "smaller than the input"),
        (lambda: torch.nn.Sequential(torch.nn.Conv3d(5, 3, 1), torch.nn.Sigmoid()),
         "takes the sigmoid itself"),
        (lambda: SegResNet(channels=5), "TypeError")]),
    (checks.check_mirror_average, (), lambda f, x: (f(x) + f(x.flip(-1)).flip(-1)) / 2, [
        (lambda f, x: (f(x) + f(x.flip(-1))) / 2, "still mirrored"),
        (lambda f, x: f(x) + f(x.flip(-1)).flip(-1), "the sum"),
        (lambda f, x: f(x), "second opinion"), (lambda f, x: f(x.flip(-1)).flip(-1), "alone")]),
    (checks.check_threshold_chain, (), nested(lambda x: x), [
        (lambda w, c, e: np.where(e >= 0.4, 3, np.where(c >= 0.4, 1, np.where(w >= 0.45, 2, 0))),
         "at the outside"),
        (nested(lambda x: np.where(x == 3, 4, x)), "for the disk"),
        (nested(lambda x: np.array([0, 2, 1, 3])[x]), "2 the"),
        (lambda w, c, e: np.where(w < 0.4, 0, np.where(c < 0.4, 2, np.where(e < 0.4, 1, 3))),
         "0.45")]),
    (checks.check_hd95, (), lambda a, b: max(np.percentile(a, 95), np.percentile(b, 95)), [
        (lambda a, b: max(a.max(), b.max()), "stray voxel"),
        (lambda a, b: np.percentile(np.r_[a, b], 95), "Pooled"),
        (lambda a, b: (np.percentile(a, 95) + np.percentile(b, 95)) / 2, "take the larger"),
        (lambda a, b: np.percentile(a, 95), "one direction"),
        (lambda a, b: np.percentile(b, 95), "one direction")]),
]


@pytest.fixture(autouse=True)
def live(monkeypatch) -> None:
    """As in a notebook that somebody works in."""
    monkeypatch.delenv("BRATS_HEADLESS", raising=False)


@pytest.mark.parametrize(("check", "others", "right", "wrong"), EXERCISES,
                         ids=lambda x: getattr(x, "__name__", ""))
def test_right_blank_and_typically_wrong_answers(check: Callable, others: tuple, right: object,
                                                 wrong: list,
                                                 monkeypatch) -> None:
    assert check(right, *others).state == "right", check(right, *others)
    takes_function = callable(right)
    assert check((lambda *_: None) if takes_function else ..., *others).state == "open"
    hints = []
    for answer, hint in wrong:
        verdict = check(answer, *others)
        assert verdict.state == "wrong" and hint in repr(verdict), (hint, repr(verdict))
        hints.append(verdict.message)
    assert len(set(hints)) == len(hints)  # each mistake is told apart
    monkeypatch.setenv("BRATS_HEADLESS", "1")  # a solution that is wrong must stop the series
    with pytest.raises(AssertionError):
        check(wrong[0][0], *others)


def test_there_is_a_case_for_every_check() -> None:
    named = {name for name in dir(checks) if name.startswith("check_")}
    assert named == {case[0].__name__ for case in EXERCISES}


def test_tensors_are_answers_too() -> None:
    answer = torch.tensor(GB * 20, requires_grad=True)
    assert checks.check_float_gigabytes(answer, SHAPE, 1251).state == "right"
