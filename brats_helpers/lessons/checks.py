"""Judge the answers to the exercises: right, not yet right and why, or not tried yet.

Each check takes the student's answer and the data that it is about, and names the typical mistake.
A blank is Python's own `...`. In a headless run a wrong answer is an error, so that the solutions
in the notebooks stay right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..basics.constants import REGION_THRESHOLDS

Function = Callable[..., Any]
PREFIX = {"right": "Right. ", "wrong": "Not yet right. ", "open": "Not tried yet. "}


@dataclass(frozen=True)
class Verdict:
    """The result of a check: "right", "wrong" or "open", and a sentence for the student."""

    state: str
    message: str

    def __repr__(self) -> str:
        return PREFIX[self.state] + self.message


BLANK = Verdict("open", "Replace the `...` with your answer and run this cell again.")


def judge(answer: object, right: bool, praise: str, wanted: str, *mistakes: tuple,
          tolerance: float = 1e-6) -> Verdict:
    """Judge an answer by its value, never by how it was found.

    `mistakes` are (hint, wrong, ...), tried in this order; the first that fits is shown. `wrong` is
    a value, equal to the answer up to `tolerance`, or a function that returns a bool. Functions run
    only if no earlier mistake fits, and one that raises does not fit. If none fits, `wanted` says
    what the exercise asks for. In a headless run a wrong answer raises AssertionError.
    """
    if is_blank(answer):
        return BLANK
    if right:
        return Verdict("right", praise)
    hint = next((hint for hint, *wrongs in mistakes
                 if any(fits(answer, wrong, tolerance) for wrong in wrongs)), None)
    hint = hint or f"Your answer: {shown(answer)} Asked for: {wanted}"
    if "BRATS_HEADLESS" in os.environ:
        raise AssertionError(hint)
    return Verdict("wrong", hint)


def fits(answer: object, wrong: object, tolerance: float) -> bool:
    """Tell whether a mistake explains an answer."""
    if not callable(wrong):
        return near(answer, wrong, tolerance)
    found = attempt(wrong)
    return not isinstance(found, Exception) and bool(found)


def is_blank(answer: object) -> bool:
    """Tell whether an answer, or a part of it, is `...`, or None as an empty function returns."""
    if answer is ... or answer is None:
        return True
    parts = list(answer.values()) if isinstance(answer, dict) else answer
    return isinstance(parts, (list, tuple, set)) and any(part is ... for part in parts)


def attempt(function: Function, *arguments: object) -> object:
    """Return what a function returns, or the error that it raises."""
    try:
        return function(*arguments)
    except Exception as error:  # a student's code may raise anything; the verdict quotes it
        return error


def near(answer: object, value: object, tolerance: float = 1e-6) -> bool:
    """Tell whether a number or array has the shape of `value` and equals it, up to a tolerance."""
    try:
        given, wanted = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, float)
                         for x in (answer, value))
    except (TypeError, ValueError):
        return False
    return given.shape == wanted.shape and np.allclose(given, wanted, rtol=tolerance, atol=1e-7)


def shown(answer: object) -> str:
    """Quote an answer, or the error that it raised, in at most 120 characters."""
    error = isinstance(answer, Exception)
    text = f"it raised {type(answer).__name__}: {answer}" if error else repr(answer)
    return text if len(text) < 120 else text[:117] + "..."


# ---- 01

def check_float_gigabytes(answer: object, shape: Sequence[int], patients: int) -> Verdict:
    """Check the GB (1e9 bytes) that all patients need: five float32 channels of this shape each."""
    gb = float(np.prod(shape)) * patients / 1e9  # of one channel with one byte per voxel
    return judge(
        answer, near(answer, gb * 20, 0.01), "More than four times what Kaggle keeps.",
        "voxels x channels x bytes x patients / 1e9.",
        ("A float32 has 4 bytes.", gb * 5),
        ("There are five channels: the four contrasts and the reference.", gb * 4, gb * 16),
        ("That is in GiB (2**30 bytes); disks and quotas count in GB (1e9).", gb * 20e9 / 2**30),
        ("That is one patient.", gb * 20 / patients), tolerance=0.01)


def check_contrasts(answer: object, order: Sequence[str]) -> Verdict:
    """Check which contrast is A, B, C, D."""
    found = attempt(lambda: [name.lower() for name in answer])
    given = found if isinstance(found, list) else []
    pairs = dict(zip(order, given, strict=False))
    return judge(
        answer, given == list(order), "You can read the four contrasts.",
        "names out of flair, t1, t1ce, t2.",
        ("Give four different names, in the order A, B, C, D.",
         lambda: sorted(given) != sorted(order)),
        ("T2 and FLAIR both show edema bright. In one of them the fluid in the ventricles is dark: "
         "that is FLAIR.", lambda: pairs["t2"] == "flair" or pairs["flair"] == "t2"),
        ("T1 and T1CE differ by the contrast agent: look for the bright rim.",
         lambda: pairs["t1"] == "t1ce"))


# ---- 02

def check_position(answer: object, affine: np.ndarray, index: Sequence[int]) -> Verdict:
    """Check where a voxel is, in mm."""
    right, turned = (affine @ [*index, 1])[:3], affine[:3, :3] @ index
    return judge(
        answer, near(answer, right, 1e-4), "Three rows of the affine, and the 1 adds the shift.",
        "three millimeters, affine @ (i, j, k, 1).",
        ("The shift is missing: it is the last column of the affine, and it needs the 1 in "
         "(i, j, k, 1).", turned),
        ("Those are the indices. The affine turns them into millimeters.", index),
        ("The last of the four numbers is always 1 and no coordinate: keep three.", [*right, 1]),
        ("A sign is wrong: indices grow to the left and to the back, millimeters to the right and "
         "to the front.", lambda: near(np.abs(answer), np.abs(right), 1e-4)), tolerance=1e-4)


def check_tumor_volume(answer: object, labels: np.ndarray, spacing: Sequence[float]) -> Verdict:
    """Check the volume of the whole tumor in ml."""
    voxels, ml = int(np.count_nonzero(labels)), float(np.prod(spacing)) / 1000
    return judge(
        answer, near(answer, voxels * ml, 1e-3), "Count, times the volume of a voxel, over 1,000.",
        "milliliters of everything that is not background.",
        ("That is in mm3; a milliliter has 1,000 of them.", voxels * ml * 1000),
        ("Labels are names, not amounts: count the voxels that are not 0 instead of adding the "
         "labels up.", float(labels.sum()) * ml, float(labels.sum())),
        ("A voxel is not 1 mm3 here: multiply the count by the product of the spacing.",
         voxels / 1000, voxels),
        ("That is only one of the three labels; the whole tumor is all of them.",
         *(np.count_nonzero(labels == n) * ml for n in (1, 2, 3))), tolerance=1e-3)


def check_to_disk(function: Function) -> Verdict:
    """Check that labels 0, 1, 2, 3 are turned into 0, 1, 2, 4."""
    given = np.array([[0, 1], [2, 3]], np.uint8)
    before, answer = given.copy(), attempt(function, given)
    array = isinstance(answer, np.ndarray)
    same = array and answer.tolist() == [[0, 1], [2, 4]]
    return judge(
        answer, same and np.array_equal(given, before), "3 became 4, and the original still has 3.",
        "an array of the same shape, with 4 wherever there was 3.",
        ("Right values, but your function changed the array: work on a copy.", lambda: same),
        ("3 should become 4 on its way to disk, not 4 become 3.",
         lambda: array and np.array_equal(answer, given)),
        ("Only 3 changes; 1 and 2 stay what they are.",
         lambda: array and answer.tolist()[0] != [0, 1]))


# ---- 03

def check_shape(answer: object, images: np.ndarray) -> Verdict:
    """Check the shape of the stacked array, (modality, z, y, x)."""
    modalities, x, y, z = images.shape
    return judge(
        answer, near(answer, (modalities, z, y, x)),
        "Modality first, then z, y, x; the last index varies fastest.", "four numbers.",
        ("Those are NIfTI's axes, x, y, z. The array is turned to z, y, x.", (modalities, x, y, z)),
        ("The four modalities come first.", (z, y, x), (z, y, x, modalities)))


def check_zscore(function: Function) -> Verdict:
    """Check the z-score over the brain, 0 outside."""
    image = np.array([0.0, 0.0, 0.0, 100.0, 200.0, 600.0])
    brain = image > 0
    answer, inside = attempt(function, image, brain), image[brain]
    centered, whole = image - inside.mean(), (image - image.mean()) / image.std()
    right = np.where(brain, centered / inside.std(), 0)
    return judge(
        answer, near(answer, right), "Computed in the brain alone, and the background stays 0.",
        "an array of the image's shape.",
        ("The background is in your mean and standard deviation: use image[brain].",
         whole, np.where(brain, whole, 0)),
        ("Right in the brain, but the background is no longer 0: np.where(brain, ..., 0).",
         centered / inside.std()),
        ("Divide by the standard deviation, not by the variance.",
         np.where(brain, centered / inside.var(), 0)),
        ("The mean is subtracted, but the result is not yet divided by the standard deviation.",
         np.where(brain, centered, 0)))


def check_first_and_last(function: Function) -> Verdict:
    """Check the first plane with brain, and one past the last."""
    line = np.isin(np.arange(12), (3, 4, 8))
    answer, whole = attempt(function, line), attempt(function, np.ones(5, bool))
    return judge(
        answer, near(answer, (3, 9)) and near(whole, (0, 5)), "line[first:stop] holds all of it.",
        "two numbers, (3, 9) for True at 3, 4 and 8.",
        ("The last True would be cut off: in line[a:b], b is one past the last.",
         (3, 8)),
        ("Counting the True values is not enough: there may be gaps, as here.", (3, 6)))


# ---- 04

def check_soft_dice(function: Function) -> Verdict:
    """Check 2 sum(p r) / (sum(p) + sum(r)), which is 1 for two empty masks."""
    p, r = torch.tensor([0.9, 0.6, 0.2, 0.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    answer, empty = attempt(function, p, r), attempt(function, 0 * p, 0 * r)
    both, total = (p * r).sum(), p.sum() + r.sum()
    right = 2 * both / total
    return judge(
        answer, near(answer, right, 1e-3) and near(empty, 1, 1e-3),
        "And two empty masks agree completely.", "one number, 0 to 1.",
        ("Right unless both masks are empty: that gives 0 / 0. Add a small number to numerator and "
         "denominator.", right),
        ("The 2 is missing: two equal masks should give 1.", right / 2),
        ("That is the intersection over the union (IoU), a cousin of Dice.", both / (total - both)),
        ("That is the loss; Dice itself is 1 minus it.", 1 - right), tolerance=1e-3)


def check_receptive_field(function: Function) -> Verdict:
    """Check how many voxels a stack of 3-wide convolutions sees, by their strides."""
    strides = [1, 2, 1, 2, 1]
    answer, two = attempt(function, strides), attempt(function, [1, 1])
    # The distance of a layer's neighbors, in input voxels.
    before, after = np.cumprod([1, *strides[:-1]]).sum(), np.cumprod(strides).sum()
    right = 1 + 2 * int(before)
    return judge(
        answer, near(answer, right) and near(two, 5),
        "Each layer adds two steps, and each stride of 2 doubles the width of later steps.",
        f"{right} for strides 1, 2, 1, 2, 1, and 5 for two of stride 1.",
        ("That ignores the strides: after a stride of 2, a step is twice as wide.",
         1 + 2 * len(strides)),
        ("A layer's own stride widens the steps of the layers after it, not its own: add first, "
         "then multiply.", 1 + 2 * int(after)),
        ("Begin with 1, the voxel itself.", right - 1))


def check_own_network(function: Function) -> Verdict:
    """Check another network instead of the U-Net: five channels in, logits of three regions out."""
    model = attempt(function)
    if is_blank(model):
        return BLANK
    answer = attempt(lambda: model.eval()(torch.zeros(1, 5, 32, 32, 32)))
    error = str(answer) if isinstance(answer, Exception) else ""
    size = tuple(getattr(answer, "shape", ()))
    fitting = size == (1, 3, 32, 32, 32)
    right = fitting and not isinstance(list(model.modules())[-1], torch.nn.Sigmoid)
    return judge(
        model, right, "It replaces the U-Net: loss, sliding window and regions stay the same.",
        "a network that turns (1, 5, 32, 32, 32) into (1, 3, 32, 32, 32).",
        ("Return an object of the class, SegResNet(...), and not the class.",
         lambda: isinstance(model, type)),
        ("Its convolutions are 2D: spatial_dims must be 3.", lambda: "conv2d" in error),
        ("Five channels go in: four contrasts and the brain.",
         lambda: "expected input[1, 5" in error),
        ("Three channels come out, one for each region. Labels are computed from them later, and "
         "the background needs none.", lambda: size[1] != 3),
        ("The output is smaller than the input: every voxel needs its three logits.",
         lambda: size[2] < 32),
        ("The loss takes the sigmoid itself: give it logits.", lambda: fitting))


# ---- 05

def check_mirror_average(function: Function) -> Verdict:
    """Check the mean of a network's answers to a volume and to its mirror image, flipped back."""
    x = torch.arange(12.0).reshape(1, 1, 3, 4)

    def network(volume: torch.Tensor) -> torch.Tensor:
        return volume * torch.tensor([1.0, 2.0, 3.0, 4.0])  # not symmetric, as no network is

    answer, plain, mirrored = attempt(function, network, x), network(x), network(x.flip(-1))
    back = mirrored.flip(-1)
    return judge(
        answer, near(answer, (plain + back) / 2), "Two opinions of the same voxel, averaged.",
        "a tensor of the shape of x.",
        ("The second answer is still mirrored: each voxel is averaged with its mirror image. Flip "
         "it back first.", (plain + mirrored) / 2),
        ("That is the sum; the mean is half of it.", plain + back),
        ("That is the mirrored view alone.", back),
        ("That is the plain answer; where is the second opinion?", plain))


def check_threshold_chain(function: Function) -> Verdict:
    """Check labels computed from the probabilities of WT, TC and ET."""
    whole, core, enhancing = np.array(
        [[0.1, 0.9, 0.9, 0.9, 0.44], [0.9, 0.2, 0.9, 0.9, 0.9], [0.9, 0.9, 0.2, 0.9, 0.9]])
    answer = attempt(function, whole, core, enhancing)
    wt, tc, et = REGION_THRESHOLDS.values()
    inner_first = np.select([enhancing >= et, core >= tc, whole >= wt], [3, 1, 2])
    return judge(
        answer, near(answer, [0, 2, 1, 3, 0]), "The larger region decides first.",
        "an array of labels 0 to 3.",
        ("The innermost region decided first. What is not whole tumor cannot be enhancing: begin "
         "at the outside.", inner_first),
        ("Inside the project the enhancing tumor is 3; 4 is for the disk.", [0, 2, 1, 4, 0]),
        ("1 is the necrotic core and 2 the edema (Baid et al. 2021).", [0, 1, 2, 3, 0]),
        ("The threshold of the whole tumor is 0.45: the last voxel, with 0.44, is background.",
         [0, 2, 1, 3, 3]))


def check_hd95(function: Function) -> Verdict:
    """Check the larger of the two directions' 95th percentiles."""
    there, back = np.arange(101.0), np.r_[np.arange(50.0), 400.0]
    answer, both = attempt(function, there, back), [np.percentile(d, 95) for d in (there, back)]
    return judge(
        answer, near(answer, max(both)) and near(attempt(function, back, there), max(both)),
        "A single far voxel does not decide it, and neither direction is lost.",
        "one distance in mm.",
        ("That is the largest distance of all, the plain Hausdorff distance: one stray voxel "
         "decides it.", max(there.max(), back.max())),
        ("Pooled, the direction with more voxels hides the other. Take a percentile of each, and "
         "then the larger.", np.percentile(np.r_[there, back], 95)),
        ("That is the mean of the two directions; take the larger.", np.mean(both)),
        ("That is one direction only. On other surfaces, the other is larger.", both[0]),
        ("That is one direction only, or the smaller of the two: take the larger.", both[1]))
