"""The two kinds of phantoms, plain and varied. Every picture of one says "synthetic"."""

from __future__ import annotations

from collections.abc import Callable

from ..data.cases import Patient
from . import plain, varied

KINDS: dict[str, Callable[[int, int, float], Patient]] = {
    "phantom": plain.make_plain, "varied": varied.make_varied}  # the synthetic sources
VERSIONS = {"phantom": plain.VERSION, "varied": varied.VERSION}


def make_patient(seed: int, index: int, spacing_mm: float = 2.0, kind: str = "phantom") -> Patient:
    """Make patient number `index` of a synthetic cohort; the same numbers give the same voxels.

    `kind` is one of KINDS; "phantom" means the plain kind.
    """
    return KINDS[kind](seed, index, spacing_mm)
