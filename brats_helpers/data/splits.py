"""Who is learnt from and who is only tested on: patients are split, never slices or patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..basics.errors import BratsError


def deal(order: Sequence[str], volumes: Sequence[float], groups: int, rng: np.random.Generator) -> list[list[str]]:
    """Deal patients into `groups` so that each gets its share of every tumor size.

    Sorted by volume, each run of `groups` neighbors is dealt one to a group, in random order.
    """
    ranked = [order[i] for i in np.argsort(volumes, kind="stable")]
    hands: list[list[str]] = [[] for _ in range(groups)]
    for start in range(0, len(ranked), groups):
        for hand, name in zip(rng.permutation(groups), ranked[start:start + groups], strict=False):
            hands[hand].append(name)
    return [sorted(hand) for hand in hands]


def make_splits(names: Sequence[str], volumes_ml: Sequence[float], seed: int, validation: float = 0.2,
                folds: int = 5) -> dict:
    """Training and validation patients, and cross-validation folds, both stratified by whole tumor volume.

    Returns {"seed", "training", "validation", "folds"}: names; each fold is the list that is held out. The order of
    the input does not matter. BratsError for fewer than two patients.
    """
    if len(names) < 2:
        raise BratsError(f"{len(names)} patient(s) with a reference: at least two are needed, one to learn from and one "
                         "to validate on.")
    if len(set(names)) < len(names):
        raise BratsError("two patients have the same name: rename one.")
    pairs = sorted(zip(names, volumes_ml, strict=True))
    ordered, volumes = [n for n, _ in pairs], [v for _, v in pairs]
    rng = np.random.default_rng(seed)
    groups = min(len(names), max(2, round(1 / validation)))
    held_out = deal(ordered, volumes, groups, rng)[0]
    held_out = held_out or ordered[:1]
    return {"seed": seed, "training": sorted(set(ordered) - set(held_out)), "validation": held_out,
            "folds": deal(ordered, volumes, min(folds, len(names)), rng)}
