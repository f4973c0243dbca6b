"""Investigations: data with something to find in it, and checks that name the typical mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ..basics.constants import ET
from ..data.cases import Case, Patient, read_case
from ..data.preprocessing import slice_with_most_tumor
from ..evaluation.metrics import counts, dice
from .checks import BLANK, Verdict, is_blank, judge
from .outline import outline_mask
from .plots import upright

if TYPE_CHECKING:
    from .budget import Lab

ENOUGH_DICE = 0.8


def _verdict(answer: object, right: bool, praise: str, mistakes: Mapping[str, bool],
             otherwise: str) -> Verdict:
    """Judge an answer; `otherwise` is the hint if no mistake fits."""
    hints = [*(hint for hint, fits in mistakes.items() if fits), otherwise]
    return judge(answer, right, praise, otherwise, (hints[0], lambda: True))


# ---- 01: an outline by hand

def check_outline(corners: object, patient: Patient) -> Verdict:
    """Score an outline, a list of (x, y), against the reference on the slice with most tumor."""
    labels = upright(patient.reference, patient.affine)
    labels = labels[..., slice_with_most_tumor(labels)]
    truth = labels > 0
    try:
        points = np.asarray(corners, float).reshape(-1, 2)
    except (TypeError, ValueError):
        points = np.empty((0, 2))
    mask, turned, core = np.zeros_like(truth), np.zeros_like(truth), 0.0
    if len(points) > 2:
        mask, turned = outline_mask(points, truth.shape), outline_mask(points[:, ::-1], truth.shape)
        core = dice(mask, labels == ET)
    score = dice(mask, truth)
    return _verdict(corners, score >= ENOUGH_DICE, f"Your Dice is {score:.2f}.", {
        "Give at least three corners, each as (x, y).": len(points) < 3,
        "x and y are swapped: x runs to the right, y downward.": dice(turned, truth) > score + 0.2,
        "You outlined the enhancing rim. The whole tumor includes the edema around it.":
        core > score and core > 0.5,
        "Your outline is too large: it takes in healthy brain.": mask.sum() > 1.3 * truth.sum(),
        "Your outline is too small: follow the border of the bright region on FLAIR.":
        mask.sum() < 0.75 * truth.sum()},
        f"Your Dice is {score:.2f}. Aim at {ENOUGH_DICE}: compare each corner with the picture.")


def check_best_threshold(best_threshold: Callable, patients: Sequence[Patient]) -> Verdict:
    """Check that a function finds each patient's FLAIR threshold with the highest Dice."""
    chosen, gaps = [], []
    for patient in patients:
        image, tumor = patient.images[0], patient.reference > 0
        answer = best_threshold(image, tumor)
        if is_blank(answer):
            return BLANK
        cuts = np.percentile(image[image > 0], range(2, 100, 2))
        scores = [dice(image > cut, tumor) for cut in cuts]
        chosen.append((float(answer), dice(image > float(answer), tumor)))
        gaps.append(max(scores) - chosen[-1][1])
    listed = ", ".join(f"{cut:.0f} (Dice {score:.2f})" for cut, score in chosen)
    same = len({cut for cut, _ in chosen}) == 1 < len(chosen)
    return _verdict(chosen, max(gaps) < 0.03, f"The best thresholds differ: {listed}.", {
        "Your function returns one number for every patient. Search again for each.": same},
        f"A better threshold exists. You chose {listed}. Try more candidates.")


# ---- 02: leakage

@dataclass(frozen=True)
class Slice:
    """One axial slice: whose it is, its FLAIR as a unit vector, and its whole-tumor mask."""

    patient: str
    flair: np.ndarray
    tumor: np.ndarray


def tumor_slices(cases: Sequence[Case]) -> list[Slice]:
    """Return every axial slice with tumor of some patients."""
    found = []
    for case in tqdm(cases, desc="slices", unit="patient"):
        patient = read_case(case)
        image = upright(patient.images[0], patient.affine).astype(np.float32)
        labels = upright(patient.reference, patient.affine) > 0
        for at in np.flatnonzero(labels.any((0, 1))):
            inside = image[..., at] != 0
            flair = np.where(inside, image[..., at] - image[..., at][inside].mean(), 0).ravel()
            found.append(Slice(case.name, flair / np.linalg.norm(flair), labels[..., at]))
    return found


def copying_machine(slices: Sequence[Slice], held_out: np.ndarray) -> float:
    """Copy the mask of the most similar training slice; return the Dice over all held-out slices.

    held_out: (n,) bool. Slices with a shape unlike the first are left out. NaN if a side is empty.
    """
    shape = slices[0].tumor.shape
    same = np.array([piece.tumor.shape == shape for piece in slices])
    known = [p for p, out, fits in zip(slices, held_out, same, strict=True) if fits and not out]
    asked = [p for p, out, fits in zip(slices, held_out, same, strict=True) if fits and out]
    if not known or not asked:
        return float("nan")
    likeness = np.stack([p.flair for p in asked]) @ np.stack([p.flair for p in known]).T
    copied = np.stack([known[n].tumor for n in likeness.argmax(1)])
    return dice(copied, np.stack([p.tumor for p in asked]))


def slice_and_neighbor(slices: Sequence[Slice]) -> dict[str, np.ndarray]:
    """Return the middle slice and the one most like it, by title, as pictures (rows, columns)."""
    chosen = slices[len(slices) // 2]
    shape = chosen.tumor.shape
    others = [p for p in slices if p is not chosen and p.tumor.shape == shape] or [chosen]
    nearest = max(others, key=lambda other: float(other.flair @ chosen.flair))
    return {title: np.where(p.flair == 0, p.flair.min(), p.flair).reshape(shape).T for title, p in (
        (f"a slice of {chosen.patient}", chosen), (f"most like it: {nearest.patient}", nearest))}


def leaky_cohort(seed: int) -> tuple[dict[str, np.ndarray], set[str]]:
    """Make eight small brains, one of them twice: {name: volume}, and the twin's two names."""
    from scipy import ndimage
    rng = np.random.default_rng(seed)
    common = ndimage.gaussian_filter(rng.standard_normal((16, 16, 16)), 3)
    own = [ndimage.gaussian_filter(rng.standard_normal(common.shape), 1) for _ in range(8)]
    volumes = [common / common.std() + piece / piece.std() for piece in own]
    volumes.append(rng.uniform(2, 5) * volumes[3] + 0.1 * rng.standard_normal(common.shape))
    names = [f"P{n}" for n in rng.permutation(len(volumes))]
    return dict(sorted(zip(names, volumes, strict=True))), {names[3], names[-1]}


def check_twin(find_twin: Callable[[Mapping[str, np.ndarray]], object]) -> Verdict:
    """Check that a function finds the patient who is in a cohort twice, in five cohorts."""
    answers, right, closest = [], [], []
    for seed in range(5):
        cohort, twins = leaky_cohort(seed)
        answer = find_twin(cohort)
        if is_blank(answer):
            return BLANK
        names = list(cohort)
        gaps = {(a, b): np.abs(cohort[a] - cohort[b]).mean() for a in names for b in names if a < b}
        closest.append(set(min(gaps, key=gaps.get)))
        answers.append(set(answer) if isinstance(answer, (set, list, tuple)) else {answer})
        right.append(twins)
    wrong = [(a, r, c) for a, r, c in zip(answers, right, closest, strict=True) if a != r]
    return _verdict(answers, not wrong, "You found the twin in five cohorts out of five.", {
        "You compared differences. One copy was multiplied by a number: use the correlation.":
        any(a == c for a, _, c in wrong),
        "Return exactly two names.": any(len(a) != 2 for a, _, _ in wrong)},
        "Those two are different people. Compare every pair, and take the most similar one.")


# ---- 03: repairs

def broken_patients(patient: Patient) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Break copies of a patient in three ways: {what is wrong: (images, labels)}."""
    images, labels = patient.images, patient.reference
    lifted = images.copy()
    lifted[1][images[1] == 0] = -7
    return {"labels 0, 1, 2, 4": (images, np.where(labels == ET, 4, labels)),
            "T1's background is not 0": (lifted, labels),
            "FLAIR and T2 are swapped": (images[[3, 1, 2, 0]], labels)}


def check_repairs(repaired: object, patient: Patient) -> Verdict:
    """Check that three broken patients are repaired: {what was wrong: (images, labels)}."""
    if not isinstance(repaired, Mapping) or any(map(is_blank, repaired.values())):
        return BLANK
    found = {}
    for name, (images, labels) in repaired.items():
        found[name] = (np.array_equal(images, patient.images),
                       np.array_equal(labels, patient.reference))
    left = [name for name, same in found.items() if not all(same)]
    brain_lost = any(np.asarray(images).shape == patient.images.shape
                     and ((patient.images != 0) & (np.asarray(images) == 0)).any()
                     for images, _ in repaired.values())
    return _verdict(repaired, not left and len(found) == 3, "All three are as they were.", {
        "Some voxels of the brain became 0. Change only voxels where every other contrast is 0.":
        brain_lost,
        "FLAIR comes first and T2 last: reorder the four volumes, do not rename them.":
        "FLAIR and T2 are swapped" in left and len(left) == 1,
        "The enhancing tumor is 3 inside this project.": "labels 0, 1, 2, 4" in left},
        f"Not yet repaired: {', '.join(left) or 'one is missing'}.")


# ---- 04: the forward pass

def check_forward(forward: Callable) -> Verdict:
    """Check that a function is the forward pass of `UNet` in evaluation mode."""
    import torch

    from ..network.unet import UNet
    torch.manual_seed(0)
    model, x = UNet((4, 6, 8)).eval(), torch.randn(1, 5, 16, 16, 16)
    with torch.inference_mode():
        try:
            answer = forward(model, x)
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            return _verdict("raised", False, "", {
                "The sizes do not match: a skip must join the decoder at its own resolution. "
                "Take the last one that you saved first, and leave out the bottom level.":
                "size" in str(error).lower()}, f"Your function raised: {error}")
        if is_blank(answer):
            return BLANK
        right = model(x)
    same = isinstance(answer, torch.Tensor) and answer.shape == right.shape
    return _verdict(answer, same and torch.allclose(answer, right, atol=1e-5),
                 "Your forward pass gives the same logits as the module's.", {
        "Those are features. The last head turns them into three logits.":
        isinstance(answer, torch.Tensor) and answer.shape[1] != right.shape[1],
        "Return one tensor, the logits at full resolution.": not isinstance(answer, torch.Tensor)},
        "The shape is right and the numbers are not: concatenate (upsampled, skip) in that order.")


# ---- 05: the worst patient

def errors_of(predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> dict:
    """Return ml that a mask missed, marked falsely and found: {"missed", "false", "found"}."""
    found, false, missed, _ = counts(predicted, reference)
    ml = float(np.prod(spacing)) / 1000
    return {"missed": missed * ml, "false": false * ml, "found": found * ml}


def check_explanation(answer: object, row: Mapping,
                      errors: Mapping[str, Mapping[str, float]]) -> Verdict:
    """Check that (region, kind) names the worst region of a patient and its larger error."""
    region = min(errors, key=lambda name: row[name]["dice"])
    kind = max(("missed", "false"), key=lambda k: errors[region][k])
    given = tuple(answer) if isinstance(answer, (list, tuple)) and not is_blank(answer) else answer
    return _verdict(answer, given == (region, kind),
                 f"{region} scores lowest, and most of its error is {kind} voxels.", {
        'Give two words, such as ("ET", "false").':
        not (isinstance(given, tuple) and len(given) == 2 and given[0] in errors),
        "Another region has a lower Dice.": isinstance(given, tuple) and given[0] != region},
        "The region is right. Compare its missed ml with its false ml.")


# ---- 05: two minutes to improve

def check_budget(chosen: object, lab: Lab, before: float) -> Verdict:
    """Check that a plan was chosen on practice patients alone, and score it on the test once.

    `before` is the mean Dice of the test patients without a plan.
    """
    from .budget import complete, describe_plan
    if not isinstance(chosen, Mapping):
        hint = "Give one plan, such as {\"steps\": 40}."
        return _verdict(chosen, False, "", {}, hint)
    chosen = complete(chosen)
    practice = [(plan, score) for who, plan, score in lab.tried
                if who == "practice" and not np.isnan(score)]
    known = {describe_plan(plan): score for plan, score in practice}
    peeks = sum(who == "test" for who, _, _ in lab.tried)
    best = max(known, key=known.get, default="")
    mistakes = {
        f"You looked at the test patients {peeks} time(s) before you chose. A plan that was chosen "
        "on them is tuned to them, and its score says nothing about others. Make a new Lab and "
        "choose on practice patients.": peeks > 0,
        "Score at least two plans on the practice patients, or there is nothing to choose from.":
        len(known) < 2,
        "You have not scored the plan that you chose.": describe_plan(chosen) not in known,
        f"On the practice patients another plan was better: {best}.":
        known.get(describe_plan(chosen), 0.0) < known.get(best, 0.0)}
    if any(mistakes.values()):
        return _verdict(chosen, False, "", mistakes, "")
    after = lab.judge(chosen, "test")
    return _verdict(chosen, True, "On the test patients, who had no part in the choice, the mean "
                    f"Dice went from {before:.2f} to {after:.2f}.", {}, "")
