"""The exercises' checks: right, not yet right and why, or not tried yet.

Each takes the student's answer, and the data that it is about, and says what a typical wrong answer has missed. A blank
is Python's own `...`. In a headless run a wrong answer is an error, so that the solutions in the notebooks stay right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..basics.constants import REGION_THRESHOLDS

Function = Callable[..., Any]


@dataclass(frozen=True)
class Verdict:
    """What a check says."""

    state: str                                        # "right", "wrong" or "open"
    message: str

    def __repr__(self) -> str:
        return {"right": "Right. ", "wrong": "Not yet right. ", "open": "Not tried yet. "}[self.state] + self.message


def judge(answer: object, right: bool, because: str, mistakes: Mapping[str, bool], otherwise: str) -> Verdict:
    """Right, or the first typical mistake that holds, or `otherwise`; blanks are not judged.

    `mistakes`: a hint -> whether it fits. Exercises are judged on what they return, never on how.
    """
    if is_blank(answer):
        return Verdict("open", "Put your answer in the place of the `...` and run this cell again.")
    if right:
        return Verdict("right", because)
    hint = next((hint for hint, fits in mistakes.items() if fits), otherwise)
    if "BRATS_HEADLESS" in os.environ:
        raise AssertionError(hint)
    return Verdict("wrong", hint)


def is_blank(answer: object) -> bool:
    """Whether an answer, or anything in it, is the `...` of the empty exercise; None is what an empty function returns."""
    if answer is ... or answer is None:
        return True
    return isinstance(answer, (list, tuple, set, dict)) and any(part is ... for part in answer)


def attempt(function: Function, *arguments: object) -> object:
    """What a student's function returns, or the error that it raises."""
    try:
        return function(*arguments)
    except Exception as error:                        # a student's code may raise anything; the verdict says what
        return error


def near(answer: object, value: object, tolerance: float = 1e-6) -> bool:
    """Whether an answer is a number, or an array of the same shape, that is equal up to a relative tolerance."""
    try:
        given, wanted = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, float) for x in (answer, value))
    except (TypeError, ValueError):
        return False
    return given.shape == wanted.shape and bool(np.allclose(given, wanted, rtol=tolerance, atol=1e-7))


def told(answer: object, wanted: str) -> str:
    """The general hint: what came out, and what is asked for."""
    shown = f"it raised {type(answer).__name__}: {answer}" if isinstance(answer, Exception) else repr(answer)
    return f"Your answer: {shown if len(shown) < 120 else shown[:117] + '...'} Asked for: {wanted}"


# ---------------------------------------------------------------- 01

def check_next_bf16(answer: object) -> Verdict:
    """The smallest bf16 number above 1."""
    return judge(answer, near(answer, 1 + 2**-7), "bf16 has 7 bits after the point, so the step above 1 is 1/128.", {
        "That is the step; the number after 1 is 1 plus the step.": near(answer, 2**-7),
        "That is fp16's, which has 10 bits after the point. bf16 has 7.": near(answer, 1 + 2**-10),
        "The 7 bits do not count the leading 1: the step is 1/2**7.": near(answer, 1 + 2**-8) or near(answer, 1 + 2**-6)},
        told(answer, "1 plus the value of the last of 7 binary digits."))


def check_patches(answer: object, candidates: Sequence[int]) -> Verdict:
    """Which patch edges a network of four levels can take: multiples of 8, at least 16."""
    given = {int(n) for n in answer} if isinstance(answer, (list, tuple, set)) and not is_blank(answer) else set()
    right = {n for n in candidates if n % 8 == 0 and n >= 16}
    return judge(answer, given == right, "Halved three times, each stays whole, and more than one voxel is left.", {
        "A power of two is not needed: 48 = 8 x 6 can be halved three times, too.": bool(given) and given < right,
        "8 would be a single voxel at the bottom, and a norm over one voxel is undefined.": given == right | {8},
        f"{sorted(given - right)} cannot be halved three times without a remainder.": bool(given - right)},
        told(answer, f"those of {list(candidates)} that the rule in the error message allows."))


def check_float_gigabytes(answer: object, shape: Sequence[int], patients: int) -> Verdict:
    """GB (1e9 bytes) of five float32 channels of this shape for all patients."""
    voxels = float(np.prod(shape)) * patients
    return judge(answer, near(answer, voxels * 5 * 4 / 1e9, 0.01), "More than four times what Kaggle keeps.", {
        "A float32 has 4 bytes.": near(answer, voxels * 5 / 1e9, 0.01),
        "There are five channels: the four contrasts and the foreground.": near(answer, voxels * 4 / 1e9, 0.01)
        or near(answer, voxels * 16 / 1e9, 0.01),
        "That is in GiB (2**30 bytes); disks are sold, and quotas set, in GB (1e9).":
        near(answer, voxels * 20 / 2**30, 0.01),
        "That is one patient.": near(answer, voxels * 20 / 1e9 / patients, 0.01)},
        told(answer, "voxels x channels x bytes x patients / 1e9."))


def check_contrasts(answer: object, order: Sequence[str]) -> Verdict:
    """Which contrast is A, B, C, D."""
    given = [str(name).lower() for name in answer] if isinstance(answer, (list, tuple)) and not is_blank(answer) else []
    pairs = dict(zip(order, given, strict=False))
    return judge(answer, given == list(order), "You can read the four contrasts.", {
        "Give four different names, in the order A, B, C, D.": sorted(given) != sorted(order),
        "T2 and FLAIR both show edema bright. In one of them the fluid in the ventricles is dark: that is FLAIR.":
        pairs.get("t2") == "flair" or pairs.get("flair") == "t2",
        "T1 and T1CE differ by the contrast agent: look for the bright rim.": pairs.get("t1") == "t1ce"},
        told(answer, "names out of flair, t1, t1ce, t2."))


# ---------------------------------------------------------------- 02

def check_position(answer: object, affine: np.ndarray, index: Sequence[int]) -> Verdict:
    """Where a voxel is, in mm."""
    right, turned = (affine @ [*index, 1])[:3], affine[:3, :3] @ index
    return judge(answer, near(answer, right, 1e-4), "Three rows of the affine, and the 1 that brings in the shift.", {
        "The shift is missing: it is the last column of the affine, and it needs the 1 in (i, j, k, 1).":
        near(answer, turned, 1e-4) and not near(right, turned),
        "Those are the indices. The affine turns them into millimeters.": near(answer, list(index)),
        "The last of the four numbers is always 1 and no coordinate: keep three.": near(answer, [*right, 1], 1e-4),
        "A sign is lost: indices grow to the left and to the back, millimeters to the right and to the front.":
        near(np.abs(np.asarray(answer, float)) if near(np.shape(answer), (3,)) else 0, np.abs(right), 1e-4)},
        told(answer, "three millimeters, affine @ (i, j, k, 1)."))


def check_tumor_volume(answer: object, labels: np.ndarray, spacing: Sequence[float]) -> Verdict:
    """Whole tumor in ml."""
    voxels, mm3 = int(np.count_nonzero(labels)), float(np.prod(spacing))
    return judge(answer, near(answer, voxels * mm3 / 1000, 1e-3), "Count, times the volume of a voxel, over 1,000.", {
        "That is in mm3; a millilitre has 1,000 of them.": near(answer, voxels * mm3, 1e-3),
        "Labels are names, not amounts: count the voxels that are not 0 instead of adding the labels up.":
        near(answer, float(labels.sum()) * mm3 / 1000, 1e-3) or near(answer, float(labels.sum()), 1e-3),
        "A voxel is not 1 mm3 here: multiply the count by the product of the spacing.":
        near(answer, voxels / 1000, 1e-3) or near(answer, voxels, 1e-3),
        "That is only one of the three labels; the whole tumor is all of them.":
        any(near(answer, np.count_nonzero(labels == n) * mm3 / 1000, 1e-3) for n in (1, 2, 3))},
        told(answer, "millilitres of everything that is not background."))


def check_to_disk(function: Function) -> Verdict:
    """Labels 0, 1, 2, 3 to 0, 1, 2, 4."""
    inside = np.array([[0, 1], [2, 3]], np.uint8)
    before, answer = inside.copy(), attempt(function, inside)
    same = isinstance(answer, np.ndarray) and answer.tolist() == [[0, 1], [2, 4]]
    return judge(answer, same and np.array_equal(inside, before), "3 became 4, and the original is as it was.", {
        "Right values, but your function changed the array that it was given: work on a copy.": same,
        "3 should become 4 on its way to disk, not 4 become 3.": isinstance(answer, np.ndarray)
        and np.array_equal(answer, inside),
        "Only 3 changes; 1 and 2 stay what they are.": isinstance(answer, np.ndarray) and answer.tolist()[0] != [0, 1]},
        told(answer, "an array of the same shape, with 4 wherever there was 3."))


def check_shared_patients(function: Function) -> Verdict:
    """Who is on both sides of a split of slices."""
    training, validation = [("A", 1), ("A", 2), ("B", 1), ("C", 7)], [("A", 3), ("B", 9), ("D", 1)]
    answer = attempt(function, training, validation)
    return judge(answer, answer in ({"A", "B"}, ["A", "B"]), "Their neighboring slices are on the other side: that is "
                 "leakage.", {
        "No slice is on both sides, but patients are: compare the names, the first of each pair.":
        answer in (set(), []),
        "Those are all patients; which are in both lists?": answer in ({"A", "B", "C", "D"}, ["A", "B", "C", "D"])},
        told(answer, "the set of names that occur in both lists."))


# ---------------------------------------------------------------- 03

def check_shape(answer: object, images: np.ndarray) -> Verdict:
    """The shape of the stacked array, (modality, z, y, x)."""
    modalities, x, y, z = images.shape
    return judge(answer, near(answer, (modalities, z, y, x)), "Modality first, then z, y, x; the last one is the quickest.", {
        "Those are NIfTI's axes, x, y, z. The array is turned to z, y, x.": near(answer, (modalities, x, y, z)),
        "The four modalities come first.": near(answer, (z, y, x)) or near(answer, (z, y, x, modalities))},
        told(answer, "four numbers."))


def check_zscore(function: Function) -> Verdict:
    """The z-score over the brain, 0 outside."""
    image = np.array([0.0, 0.0, 0.0, 100.0, 200.0, 600.0])
    brain = image > 0
    answer = attempt(function, image, brain)
    inside = image[brain]
    right = np.where(brain, (image - inside.mean()) / inside.std(), 0)
    return judge(answer, near(answer, right), "Mean and deviation of the brain alone, and air stays 0.", {
        "The air is in your mean and deviation: take them over image[brain].":
        near(answer, (image - image.mean()) / image.std())
        or near(answer, np.where(brain, (image - image.mean()) / image.std(), 0)),
        "Right in the brain, but the air is no longer 0: np.where(brain, ..., 0).":
        near(answer, (image - inside.mean()) / inside.std()),
        "Divide by the standard deviation, not by the variance.": near(answer, np.where(
            brain, (image - inside.mean()) / inside.var(), 0)),
        "The mean is taken off; it is not divided by the deviation yet.":
        near(answer, np.where(brain, image - inside.mean(), 0))}, told(answer, "an array of the image's shape."))


def check_first_and_last(function: Function) -> Verdict:
    """First plane with brain, and one past the last."""
    line = np.zeros(12, bool)
    line[[3, 4, 8]] = True
    answer = attempt(function, line)
    whole = attempt(function, np.ones(5, bool))
    return judge(answer, near(answer, (3, 9)) and near(whole, (0, 5)), "line[first:stop] holds all of it.", {
        "The last plane with brain would be cut off: in line[a:b], b is one past the last.": near(answer, (3, 8)),
        "Counting the planes does not do: there may be gaps, as here.": near(answer, (3, 6))},
        told(answer, "two numbers, (3, 9) for True at 3, 4 and 8."))


def check_paste(function: Function) -> Verdict:
    """A cropped array back in its place."""
    whole = np.zeros((4, 5, 6), int)
    box = ((1, 3), (2, 5), (0, 4))
    place = tuple(slice(*edge) for edge in box)
    whole[place] = np.arange(1, 25).reshape(2, 3, 4)
    answer = attempt(function, whole[place].copy(), box, whole.shape)
    return judge(answer, near(answer, whole), "Cropped and pasted back, nothing is lost outside of what was empty.", {
        "It has the size of the box: begin with zeros of the full shape.": np.shape(answer) == (2, 3, 4),
        "The shape is right and the place is not: the box says first and stop for each axis, in order.":
        np.shape(answer) == whole.shape}, told(answer, f"an array of shape {whole.shape}."))


# ---------------------------------------------------------------- 04

def check_bottom_edge(answer: object, patch: int, levels: int) -> Verdict:
    """The edge of the volume at the lowest level."""
    return judge(answer, near(answer, patch / 2 ** (levels - 1)), "The first level keeps the edge, each other halves it.", {
        "The first level keeps the patch as it is: halve once less.": near(answer, patch / 2**levels),
        "Each level halves the edge; it does not take a level's number off.": near(answer, patch / levels)
        or near(answer, patch / (levels - 1))}, told(answer, f"{patch}, halved by {levels - 1} of the {levels} levels."))


def check_soft_dice(function: Function) -> Verdict:
    """2 sum(p r) / (sum(p) + sum(r)), 1 for two empty ones."""
    p, r = torch.tensor([0.9, 0.6, 0.2, 0.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    answer, empty = attempt(function, p, r), attempt(function, 0 * p, 0 * r)
    both = (p * r).sum()
    right = 2 * both / (p.sum() + r.sum())
    return judge(answer, near(answer, right, 1e-3) and near(empty, 1, 1e-3), "And two empty masks agree completely.", {
        "Right where there is something; two empty masks give 0 / 0. Add a small number above and below the line.":
        near(answer, right, 1e-3),
        "The 2 is missing: two equal masks should give 1.": near(answer, right / 2, 1e-3),
        "That is the intersection over the union (IoU), a cousin of Dice.":
        near(answer, both / (p.sum() + r.sum() - both), 1e-3),
        "That is the loss; Dice itself is 1 minus it.": near(answer, 1 - right, 1e-3)}, told(answer, "one number, 0 to 1."))


def check_receptive_field(function: Function) -> Verdict:
    """How many voxels a stack of 3-wide convolutions sees, by their strides."""
    strides = [1, 2, 1, 2, 1]
    answer, two = attempt(function, strides), attempt(function, [1, 1])
    before = np.cumprod([1, *strides[:-1]])           # how far apart, in input voxels, a layer's neighbors are
    right = 1 + 2 * int(before.sum())
    return judge(answer, near(answer, right) and near(two, 5), "Each adds two steps, and steps widen with every stride.", {
        "That ignores the strides: after a stride of 2, a step is twice as wide.": near(answer, 1 + 2 * len(strides)),
        "A layer's own stride widens the steps of the layers after it, not its own: add first, multiply then.":
        near(answer, 1 + 2 * int(np.cumprod(strides).sum())),
        "Begin with 1, the voxel itself.": near(answer, right - 1)},
        told(answer, f"{right} for strides 1, 2, 1, 2, 1, and 5 for two of stride 1."))


def check_own_network(function: Function) -> Verdict:
    """Another network in the place of the U-Net: five channels in, the logits of three regions out."""
    model = attempt(function)
    if is_blank(model):
        return judge(model, False, "", {}, "")
    answer = attempt(lambda: model.eval()(torch.zeros(1, 5, 32, 32, 32)))
    said = str(answer) if isinstance(answer, Exception) else ""
    size = tuple(answer.shape) if isinstance(answer, torch.Tensor) else ()
    right = size == (1, 3, 32, 32, 32) and not isinstance(list(model.modules())[-1], torch.nn.Sigmoid)
    return judge(model, right, "It fits where the U-Net fitted: the loss, the windows and the regions stay as they are.", {
        "Return an object of the class, SegResNet(...), and not the class.": isinstance(model, type),
        "Its convolutions are flat: spatial_dims has to be 3.": "conv2d" in said,
        "Five channels go in: four contrasts and the brain.": "expected input[1, 5" in said,
        "Three channels come out, one for each region. Labels are made of them later, and the background needs none.":
        len(size) == 5 and size[1] != 3,
        "The output is smaller than the input: every voxel needs its three logits.": len(size) == 5 and size[2] < 32,
        "The loss takes the sigmoid itself: give it logits.": size == (1, 3, 32, 32, 32)},
        told(answer, "a network that makes (1, 3, 32, 32, 32) of (1, 5, 32, 32, 32)."))


# ---------------------------------------------------------------- 05

def check_half_rate(answer: object, config: object) -> Verdict:
    """The learning rate half way between the end of the warm-up and the last step."""
    peak = config.learning_rate
    return judge(answer, near(answer, peak / 2, 0.02), "Half a cosine falls through its middle at half its height.", {
        "That is the peak, at the end of the warm-up.": near(answer, peak, 0.02),
        "It is 0 at the last step only.": near(answer, 0),
        "Half a cosine is flat at both ends and steep between: at its middle it has lost exactly half.":
        near(answer, peak * 0.25, 0.02) or near(answer, peak * 0.7071, 0.02)}, told(answer, f"a rate from 0 to {peak}."))


def check_mirror_average(function: Function) -> Verdict:
    """The mean of a network's answers to a volume and to its mirror image, the second mirrored back."""
    x = torch.arange(12.0).reshape(1, 1, 3, 4)

    def network(volume: torch.Tensor) -> torch.Tensor:
        return volume * torch.tensor([1.0, 2.0, 3.0, 4.0])           # not symmetric, as no network is

    answer = attempt(function, network, x)
    back = network(x.flip(-1)).flip(-1)
    return judge(answer, near(answer, (network(x) + back) / 2), "Two opinions of the same voxel, averaged.", {
        "The second answer is still mirrored: each voxel is averaged with its mirror image. Flip it back first.":
        near(answer, (network(x) + network(x.flip(-1))) / 2),
        "That is the sum; the mean is half of it.": near(answer, network(x) + back),
        "That is the mirrored view alone.": near(answer, back),
        "That is the plain answer; where is the second opinion?": near(answer, network(x))},
        told(answer, "a tensor of the shape of x."))


def check_threshold_chain(function: Function) -> Verdict:
    """Labels from the probabilities of WT, TC and ET."""
    whole, core, enhancing = np.array([[0.1, 0.9, 0.9, 0.9, 0.44], [0.9, 0.2, 0.9, 0.9, 0.9], [0.9, 0.9, 0.2, 0.9, 0.9]])
    answer = attempt(function, whole, core, enhancing)
    wt, tc, et = REGION_THRESHOLDS.values()
    each = np.where(enhancing >= et, 3, np.where(core >= tc, 1, np.where(whole >= wt, 2, 0)))
    return judge(answer, near(answer, [0, 2, 1, 3, 0]), "The larger region decides first.", {
        "The innermost region decided first. What is not whole tumor cannot be enhancing: begin at the outside.":
        near(answer, each),
        "Inside the project the enhancing tumor is 3; 4 is for the disk.": near(answer, [0, 2, 1, 4, 0]),
        "1 is the necrotic core and 2 the edema (Baid et al. 2021).": near(answer, [0, 1, 2, 3, 0]),
        "The whole tumor's threshold is 0.45: the last voxel, with 0.44, is background.": near(answer, [0, 2, 1, 3, 3])},
        told(answer, "an array of labels 0 to 3."))


def check_hd95(function: Function) -> Verdict:
    """The larger of the two directions' 95th percentiles."""
    there, back = np.arange(101.0), np.r_[np.arange(50.0), 400.0]
    answer = attempt(function, there, back)
    right = max(np.percentile(there, 95), np.percentile(back, 95))
    return judge(answer, near(answer, right), "A single far voxel does not decide it, and neither direction is lost.", {
        "That is the largest distance of all, the plain Hausdorff distance: one stray voxel decides it.":
        near(answer, max(there.max(), back.max())),
        "Pooled, the direction with more voxels hides the other. A percentile for each, and then the larger.":
        near(answer, np.percentile(np.r_[there, back], 95)),
        "That is the mean of the two directions; take the larger.":
        near(answer, (np.percentile(there, 95) + np.percentile(back, 95)) / 2),
        "That is one direction only: from the reference to the prediction counts, too.":
        near(answer, np.percentile(back, 95)),
        "That is the smaller of the two.": near(answer, min(np.percentile(there, 95), np.percentile(back, 95)))},
        told(answer, "one distance in mm."))
