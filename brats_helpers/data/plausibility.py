"""Judge whether scans can be what their names say, before a network reads them.

Most figures come from a grid of about 200,000 voxels. The limits were set on 22 patients of BraTS
2018 to 2023, and none of these comes near a limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from ..basics.constants import ET, LABEL_SHORT, MODALITIES
from .labels import doubtful
from .records import Patient

LOOKED_AT = 200_000  # voxels
# Of the nonzero voxels; an adult's brain has 1,100 to 1,700.
LARGEST_ML, LARGE_ML, SMALL_ML = 20_000, 2_500, 800
NOT_STRIPPED = 1.3  # times the other modalities' voxels that are not 0
ALIKE = 0.995  # correlation of two contrasts; T1 and T1CE of one patient stay under 0.95
DARK, BRIGHT = 0.10, 0.98  # quantiles: fluid, dark in T1, and the brightest voxels of T2 and FLAIR
BRIGHTEST = 0.999  # the quantile of vessels and rims that take up contrast agent
FLAIR_MARGIN = 0.1  # by which T1CE may correlate more with FLAIR than T1 (-0.03 in good patients)
SWAPPED = 0.4  # standard deviations, by which FLAIR must exceed T2 in both tests of _flair_is_t2
UNLIKE = 0.25  # by which T1 or T1CE may correlate more with T2 than with each other
# Standard deviations by which T1 may exceed T1CE in its brightest voxels and in the enhancing
# tumor; good patients have at most -1.1 and 0.1.
BRIGHTER = 1.0
NEGATIVE = 0.2  # of the brain
FEW_VOXELS = 20
COVERED = 0.95  # of the brain, by each modality
EMPTY, PARTIAL = 0.5, 0.8  # of what the other modalities cover; good patients have 0.96 or more
BEYOND = 0.1  # of the brain, where one modality alone is not 0; good patients have up to 0.03
MISPLACED = 0.05  # of the brain, both missed and covered in excess; good patients have up to 0.02
FITS, FITS_BETTER = 0.95, 0.01  # Dice after a flip, and its gain; -0.01 in good patients
AXES = {**dict.fromkeys("LR", "from left to right"), **dict.fromkeys("AP", "from front to back"),
        **dict.fromkeys("IS", "upside down")}
OUTSIDE = 0.1  # of a reference
LARGEST_TUMOR = 0.6  # of the brain; no tumor of the 22 patients exceeds 0.17
FAR = 1.25  # half edges, from the volume's middle to the origin
FLAIR, T1, T1CE, T2 = range(4)


def oddities(patient: Patient) -> dict[str, list[str]]:
    """Return `problems`, `warnings` and `notes` about a patient, as sentences."""
    step = max(1, round((patient.images[0].size / LOOKED_AT) ** (1 / 3)))
    some = patient.images[:, ::step, ::step, ::step].reshape(len(MODALITIES), -1)
    nonzero = some != 0
    ml = np.prod(patient.spacing) * patient.images[0].size / some.shape[1] / 1000  # each
    background = backgrounds(patient.images)
    scanned = patient.images.any((1, 2, 3))
    problems, partial = parts({name: mask for name, mask, there in
                               zip(MODALITIES, nonzero, scanned, strict=True)
                               if there and name not in background}, ml)
    warnings = [*background.values(), *repeated(patient.images, some)]
    if not scanned.all() or problems:  # the rest compares all four
        return _of(patient, {"problems": problems, "warnings": [*warnings, *partial],
                             "notes": patient.notes})
    implausible, sizes = volumes(nonzero, ml, background)
    problems = implausible + constant(patient.images, some)
    moved = [] if background or partial or sizes else misplaced(nonzero)
    covered = [] if background or moved else coverage(nonzero)
    notes = [*patient.notes, *covered, *_place(patient)]
    if not warnings:
        warnings, negative = below_zero(some)
        warnings += mirrored(patient, step, nonzero)
        exchanged = [] if warnings else swapped(some, nonzero.all(0), enhancing_mask(patient, step))
        warnings, notes = [*warnings, *exchanged], [*notes, *negative]
    return _of(patient, {"problems": problems,
                         "warnings": [*warnings, *partial, *sizes, *moved, *gaps(patient, step),
                                      *outside(patient, step, nonzero)],
                         "notes": [*notes, *_reference(patient)]})


def _of(patient: Patient, found: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    found = {**found, "warnings": [*patient.doubts, *found["warnings"]]}
    return {kind: [f"patient {patient.name}: {text}" for text in texts]
            for kind, texts in found.items()}


def backgrounds(images: np.ndarray) -> dict[str, str]:
    """Return a sentence for each modality, (4, X, Y, Z), whose corners are not 0."""
    found = {}
    edge = [slice(0, 2), slice(-2, None)]
    for name, image in zip(MODALITIES, images, strict=True):
        corners = np.concatenate([image[x, y, z].ravel() for x in edge for y in edge for z in edge])
        if np.count_nonzero(corners) > corners.size / 2:
            found[name] = (f"{name}'s background is not 0 ({np.median(corners):.4g}): was it "
                           "skull-stripped? Set everything outside the brain to 0")
    return found


def repeated(images: np.ndarray, some: np.ndarray) -> list[str]:
    """Return a sentence for each pair of modalities that are one image, or nearly."""
    found, middle = [], images.shape[-1] // 2
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = some[:, (some != 0).any(0)]
        together = np.nan_to_num(np.corrcoef(inside)) if inside.shape[1] > 2 else np.zeros((4, 4))
    for a, b in combinations(range(len(images)), 2):
        if not (some[a].any() and some[b].any()):
            continue  # one was not scanned
        names = f"{MODALITIES[a]} and {MODALITIES[b]}"
        if (np.array_equal(images[a, ..., middle], images[b, ..., middle])
                and np.array_equal(images[a], images[b])):
            found.append(f"{names} are the same image: one file was given under two names; find "
                         "the other")
        elif together[a, b] > ALIKE:
            found.append(f"{names} are nearly the same image (correlation {together[a, b]:.4f}): "
                         "check whether one was copied from the other")
    return found


def constant(images: np.ndarray, some: np.ndarray) -> list[str]:
    """Return a sentence for each modality with one value in the brain, which has no z-score."""
    return [f"{name} has one value, {values[0]:g}, in all of the brain: is it a mask instead of a "
            "scan?"
            for name, image, values in zip(MODALITIES, images, some[:, (some != 0).any(0)],
                                           strict=True)
            if values.size and np.ptp(values) == 0 and np.ptp(image[(images != 0).any(0)]) == 0]


def volumes(nonzero: np.ndarray, ml: float, background: Mapping) -> tuple[list[str], list[str]]:
    """Return problems and warnings about the brain's size; (4, n) bool, `ml` per voxel."""
    size = float(nonzero.any(0).sum() * ml)
    if size > LARGEST_ML:
        return [f"its nonzero voxels fill {size / 1000:.1f} liters, and a brain 1 to 2; correct "
                "the voxel size in the headers, or set what lies outside the brain to 0"], []
    if background:
        return [], []
    each = nonzero.sum(1)
    usual = np.median(each)
    odd = [f"{name} is not 0 in {count * ml:,.0f} ml, and the other modalities in "
           f"{usual * ml:,.0f} ml: was {name} skull-stripped?"
           for name, count in zip(MODALITIES, each, strict=True) if count > NOT_STRIPPED * usual]
    if not odd and size > LARGE_ML:
        odd.append(f"its nonzero voxels fill {size:,.0f} ml, and a brain up to 2,000: were the "
                   "scans skull-stripped, and is the voxel size right?")
    if size < SMALL_ML:
        odd.append(f"the brain has {size:,.1f} ml, and a brain has 1,000 or more: is the voxel "
                   "size right, and is the scan whole?")
    return [], odd


def below_zero(some: np.ndarray) -> tuple[list[str], list[str]]:
    """Return warnings and notes about modalities, (4, n), with negative values in the brain."""
    warnings, notes = [], []
    for name, values in zip(MODALITIES, some[:, (some != 0).any(0)], strict=True):
        share = np.count_nonzero(values < 0) / max(1, values.size)
        if share > 1 - NEGATIVE / 2:
            warnings.append(f"{name} is negative in {100 * share:.0f}% of the brain: is it "
                            "inverted? Export it again, with 0 for air")
        elif share > NEGATIVE:
            notes.append(f"{name} is negative in {100 * share:.0f}% of the brain: it seems to be "
                         "normalized already")
    return warnings, notes


def swapped(some: np.ndarray, brain: np.ndarray, enhancing: np.ndarray) -> list[str]:
    """Return warnings about exchanged modalities, (4, n); brain and enhancing are (n,) bool."""
    inside = some[:, brain].astype(np.float64)
    if inside.shape[1] < 1000 or not inside.std(1).all():
        return []
    z = (inside - inside.mean(1, keepdims=True)) / inside.std(1, keepdims=True)
    if _flair_is_t2(z):
        return ["FLAIR and T2 look swapped: fluid is bright in flair and dark in t2; exchange the "
                "two files"]
    r = np.corrcoef(z)
    pair, alike = max((("T1 and T2", r[T1CE, T2]), ("T1CE and T2", r[T1, T2])), key=lambda p: p[1])
    if alike > r[T1, T1CE] + UNLIKE:
        return [f"{pair} look swapped: t1 and t1ce should be more alike than either is to t2; "
                "exchange the two files"]
    if r[FLAIR, T1CE] > r[T1, T1CE] + FLAIR_MARGIN:
        return ["FLAIR and T1 may be swapped: t1ce is more like flair than like t1; look at both"]
    t1, t1ce = z[T1, enhancing[brain]], z[T1CE, enhancing[brain]]
    if t1.size >= FEW_VOXELS and (more := t1.mean() - t1ce.mean()) > BRIGHTER:
        return [f"T1 and T1CE may be swapped: the enhancing tumor is {more:.1f} standard "
                "deviations brighter in t1 than in t1ce; exchange the two files"]
    t1, t1ce = np.quantile(z[[T1, T1CE]], BRIGHTEST, axis=1)
    if t1 > t1ce + BRIGHTER:
        return [f"T1 and T1CE may be swapped: the brightest vessels or rim reach {t1:.1f} standard "
                f"deviations in t1 and {t1ce:.1f} in t1ce; look at both"]
    return []


def enhancing_mask(patient: Patient, step: int) -> np.ndarray:
    """Mark the enhancing tumor on the grid, (n,) bool; no voxel without a reference."""
    labels = patient.images[0] if patient.reference is None else patient.reference
    return (labels[::step, ::step, ::step].ravel() == ET) & (patient.reference is not None)


def _flair_is_t2(z: np.ndarray) -> bool:
    """Tell whether fluid, dark in T1, is bright in FLAIR and dark in T2; z is (4, n)."""
    fluid = [z[T2][dark].mean() - z[FLAIR][dark].mean()
             for dark in (z[m] <= np.quantile(z[m], DARK) for m in (T1, T1CE))]
    brightest = (z[FLAIR][z[T2] >= np.quantile(z[T2], BRIGHT)].mean()
                 - z[T2][z[FLAIR] >= np.quantile(z[FLAIR], BRIGHT)].mean())
    return max(fluid) < -SWAPPED and brightest > SWAPPED


def mirrored(patient: Patient, step: int, nonzero: np.ndarray) -> list[str]:
    """Return a sentence for each modality whose brain, (4, n), fits the others after a flip."""
    found = []
    for name, image, mask in zip(MODALITIES, patient.images, nonzero, strict=True):
        others = nonzero.sum(0) - mask >= 2  # of three
        flips = {}
        for axis, letter in enumerate(patient.orientation):
            flipped = np.flip(image, axis)[::step, ::step, ::step].ravel() != 0
            flips[AXES[letter]] = _dice(flipped, others)
        way, best = max(flips.items(), key=lambda item: item[1])
        if best > max(FITS, (stored := _dice(mask, others)) + FITS_BETTER):
            found.append(f"{name} seems mirrored {way}: its brain fits that of the others with a "
                         f"Dice of {best:.3f} after a flip and {stored:.3f} as stored; export it "
                         "again, with the axes of the others")
    return found


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / max(1, np.count_nonzero(one) + other.sum())


def misplaced(nonzero: np.ndarray) -> list[str]:
    """Return a sentence for the modality, (4, n) bool, whose brain lies elsewhere, if one does."""
    shares, beyond = {}, {}
    for n, (name, mask) in enumerate(zip(MODALITIES, nonzero, strict=True)):
        others = nonzero.sum(0) - mask >= 2  # of three
        off = min(np.count_nonzero(mask & ~others), np.count_nonzero(others & ~mask))
        shares[name] = off / max(1, np.count_nonzero(others))
        more = np.count_nonzero(mask & ~np.delete(nonzero, n, 0).any(0))
        beyond[name] = more / max(1, np.count_nonzero(others))
    asked = "is it of another patient, or was it not registered?"
    name, share = max(shares.items(), key=lambda item: item[1])
    if share > MISPLACED:
        return [f"{name}'s brain misses {100 * share:.0f}% of where the brain of the others is, "
                f"and covers as much elsewhere: {asked}"]
    name, share = max(beyond.items(), key=lambda item: item[1])
    return [f"{name}'s brain is {100 * share:.0f}% larger than that of the others: {asked}"
            ] if share > BEYOND else []


def gaps(patient: Patient, step: int) -> list[str]:
    """Return a sentence about slices inside the brain that are 0 in all modalities."""
    empty = 0
    for axis in range(3):
        grid = [slice(None, None, step)] * 3
        grid[axis] = slice(None)
        rest = tuple(other for other in range(4) if other != axis + 1)
        filled = np.flatnonzero(patient.images[(slice(None), *grid)].any(rest))
        empty = max(empty, int(np.ptp(filled)) + 1 - len(filled)) if len(filled) else empty
    return [f"{empty} slices inside the brain are 0 in all contrasts: was a part lost in an export "
            "or a transfer?"] if empty else []


def parts(masks: Mapping[str, np.ndarray], ml: float) -> tuple[list[str], list[str]]:
    """Return problems and warnings about modalities that cover less than the others.

    Each mask is (n,) bool, with `ml` per voxel.
    """
    problems, warnings = [], []
    for name, mask in masks.items():
        others = [np.count_nonzero(other) for key, other in masks.items() if key != name]
        share = np.count_nonzero(mask) / max(1, np.median(others)) if others else 1
        said = f"{name} covers {100 * share:.0f}% of what the other contrasts cover"
        size = np.count_nonzero(mask) * ml
        if share < PARTIAL and size > SMALL_ML and max(others) * ml > LARGE_ML:
            warnings.append(f"{name} is not 0 in {size:,.0f} ml, and others in "
                            f"{max(others) * ml:,.0f} ml: were all skull-stripped?")
        elif share < EMPTY:
            problems.append(f"{said}: too little of it is there; export it again, or remove its "
                            "file (the network in the box works with fewer contrasts)")
        elif share < PARTIAL:
            warnings.append(f"{said}: was it scanned or exported in part? Look at it")
    return problems, warnings


def coverage(nonzero: np.ndarray) -> list[str]:
    """Return a note for each modality that lacks a part of the brain, (4, n) bool."""
    whole = max(1, int(nonzero.any(0).sum()))
    return [f"{name} covers {100 * mask.sum() / whole:.0f}% of the brain"
            for name, mask in zip(MODALITIES, nonzero, strict=True) if mask.sum() < COVERED * whole]


def _place(patient: Patient) -> list[str]:
    shape = np.array(patient.images.shape[1:])
    middle = (patient.affine @ [*(shape - 1) / 2, 1])[:3]
    half = np.abs(patient.affine[:3, :3]) @ shape / 2
    if (np.abs(middle) <= FAR * half + 20).all():
        return []
    return [f"its affine ({patient.orientation}) puts the middle of the volume at "
            f"{np.round(middle).astype(int).tolist()} mm: check whether its axes point the right "
            "way"]


def outside(patient: Patient, step: int, nonzero: np.ndarray) -> list[str]:
    """Return sentences about a reference outside the brain, (4, n) bool, or all over it."""
    if patient.reference is None:
        return []
    marked, brain = patient.reference[::step, ::step, ::step].ravel() > 0, nonzero.any(0)
    share = np.count_nonzero(marked & ~brain) / max(1, np.count_nonzero(marked))
    filled = np.count_nonzero(marked & brain) / max(1, np.count_nonzero(brain))
    said = [f"{100 * share:.0f}% of its reference lies outside the brain: was it drawn on these "
            "scans?"] if share > OUTSIDE else []
    return said + ([f"its reference marks {100 * filled:.0f}% of the brain as tumor, and at most "
                    f"{100 * LARGEST_TUMOR:.0f}% are plausible: is it a mask of the brain?"]
                   if filled > LARGEST_TUMOR else [])


def _reference(patient: Patient) -> list[str]:
    if patient.reference is None:
        return ["no reference"]
    counts = np.bincount(patient.reference.ravel(), minlength=4)
    if not counts[1:].any():
        return ["its reference is empty"]
    return [f"{name} has {counts[label]} voxels" for label, name in LABEL_SHORT.items()
            if 0 < counts[label] < FEW_VOXELS]


def cohort_warnings(rows: Sequence[Mapping]) -> list[str]:
    """Return warnings about the cohort as a whole, from the rows of `cases.check_case`."""
    labeled = [row["volumes_ml"] for row in rows if row["volumes_ml"] and not row["problems"]]
    if labeled and not any(value for one in labeled for value in one.values()):
        return [f"all {len(labeled)} references are empty: are these the tumors' masks?"]
    numbers = {row["name"]: row["enhancing"] for row in rows if row.get("enhancing")}
    absent = [f"{name} occurs in no reference: with these, no network learns it, and no score of "
              "it has a meaning"
              for name in LABEL_SHORT.values()
              if labeled and not any(one[name] for one in labeled)]
    return [*_whole(rows), *absent, *doubtful(numbers)]


def _whole(rows: Sequence[Mapping]) -> list[str]:
    """Return a warning if some references have only one label, and others several."""
    kinds = {row.get("name"): sum(map(bool, row["volumes_ml"].values()))
             for row in rows if row["volumes_ml"]}
    single = [name for name, count in kinds.items() if count == 1]
    if not single or max(kinds.values()) == 1:
        return []
    return [f"the reference of {len(single)} patient(s), such as {single[0]}, has one label alone, "
            "and others have several: is it a mask of the whole tumor? Then leave it out"]
