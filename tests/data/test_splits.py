"""Splits are disjoint, complete, stratified and reproducible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brats_helpers.basics.errors import BratsError
from brats_helpers.data.splits import make_splits


@given(st.integers(2, 60), st.integers(0, 1000))
def test_disjoint_complete_and_independent_of_order(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names, volumes = [f"P{i:03d}" for i in range(count)], rng.lognormal(3, 1, count).tolist()
    splits = make_splits(names, volumes, seed)
    assert sorted(splits["training"] + splits["validation"]) == names and splits["validation"] and splits["training"]
    assert sorted(sum(splits["folds"], [])) == names
    order = rng.permutation(count)
    assert make_splits([names[i] for i in order], [volumes[i] for i in order], seed) == splits


def test_each_side_gets_its_share_of_every_size() -> None:
    volumes = np.arange(100.0)
    splits = make_splits([f"P{i:03d}" for i in range(100)], volumes, 0)
    assert len(splits["validation"]) == 20
    for low in range(0, 100, 25):
        assert sum(low <= int(name[1:]) < low + 25 for name in splits["validation"]) == 5


def test_one_patient_cannot_be_split() -> None:
    with pytest.raises(BratsError, match="at least two"):
        make_splits(["P"], [1.0], 0)
