"""What notebooks hand to each other, and that a step left out is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import small_volumes, write_case

from brats_helpers.basics.config import Config
from brats_helpers.basics.errors import BratsError
from brats_helpers.data.cases import check_cohort, find_cases
from brats_helpers.data.cohort import read_cohort, write_patients, write_source
from brats_helpers.data.splits import make_splits


def hand_over(work: Path, raw: Path, config: Config) -> None:
    """What notebooks 01 and 02 do."""
    write_source(work, config, str(raw), raw, None)
    cases = find_cases(raw)
    splits = make_splits(
        [case.name for case in cases],
        [1.0] * len(cases),
        config.seed,
        config.validation,
        config.folds,
    )
    write_patients(work, {"training": raw, "test": None},
                   {"training": check_cohort(cases, 1), "test": []}, splits)


def test_who_was_left_out_is_known_and_not_used(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for name in ("A", "B", "C"):
        write_case(raw, name, *small_volumes())
    (raw / "B" / "B_t2.nii.gz").write_bytes(b"damaged")
    cases = find_cases(raw)
    write_source(tmp_path, Config(), str(raw), raw, None)
    write_patients(tmp_path, {"training": raw, "test": None},
                   {"training": check_cohort(cases, 1), "test": []},
                   make_splits(["A", "C"], [1.0, 1.0], 0))
    cohort = read_cohort(tmp_path)
    assert sorted(cohort.by_name) == ["A", "C"] and cohort.left_out == ["B"]


def test_what_is_written_is_read_and_another_seed_or_source_is_noticed(tmp_path: Path) -> None:
    raw, config = tmp_path / "raw", Config(validation=0.5)
    for name in ("A", "B", "C"):
        write_case(raw, name, *small_volumes())
    hand_over(tmp_path / "work", raw, config)
    cohort = read_cohort(tmp_path / "work")
    assert (
        sorted(cohort.by_name) == ["A", "B", "C"]
        and cohort.test_names == []
        and not cohort.synthetic
    )
    for fold in (-1, 0, 1, 2):
        chosen = config.with_(fold=fold)
        assert sorted(cohort.training_names(chosen) + cohort.held_out(chosen)) == ["A", "B", "C"]
    with pytest.raises(BratsError, match="fold=4 cannot work.*0 to 2"):
        cohort.held_out(config.with_(fold=4))
    (raw / "B").rename(tmp_path / "B")
    with pytest.raises(
        BratsError,
        match=r"1 patient.* no longer in .*raw \(B\): put them back, or run notebooks 02",
    ):
        read_cohort(tmp_path / "work")
    (tmp_path / "B").rename(raw / "B")
    for other, source in ((config.with_(seed=1), raw), (config, raw / "A")):
        write_source(tmp_path / "work", other, str(source), source, None)
        with pytest.raises(BratsError, match="run notebooks 02 and 03 again"):
            read_cohort(tmp_path / "work")
