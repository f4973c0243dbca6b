"""The two kinds of phantoms, plain and varied. Every picture of one says "synthetic"."""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

from ..data.cases import Patient
from ..data.preprocessing import Prepared, prepare
from . import plain, varied

KINDS: dict[str, Callable[[int, int, float], Patient]] = {
    "phantom": plain.make_plain, "varied": varied.make_varied}  # the synthetic sources
VERSIONS = {"phantom": plain.VERSION, "varied": varied.VERSION}


def make_patient(seed: int, index: int, spacing_mm: float = 2.0, kind: str = "phantom") -> Patient:
    """Make patient number `index` of a synthetic cohort; the same numbers give the same voxels.

    `kind` is one of KINDS; "phantom" means the plain kind.
    """
    return KINDS[kind](seed, index, spacing_mm)


def some_phantoms(kind: str, number: int, spacing_mm: float, seed: int = 9) -> list[Prepared]:
    """Make and prepare a few phantoms of a kind, in memory, to compare with a cohort."""
    made = (make_patient(seed, n, spacing_mm, kind) for n in range(number))
    progress = tqdm(made, total=number, desc="phantoms", unit="patient")
    return [prepare(patient, spacing_mm) for patient in progress]
