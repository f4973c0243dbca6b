"""Splits are disjoint, complete, stratified, reproducible, and keep a person on one side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brats_helpers.basics.errors import BratsError
from brats_helpers.data.splits import find_persons, make_splits, person_of, read_persons


@given(st.integers(2, 60), st.integers(0, 1000))
def test_disjoint_complete_and_independent_of_order(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names, volumes = [f"P{i:03d}" for i in range(count)], rng.lognormal(3, 1, count).tolist()
    splits = make_splits(names, volumes, seed)
    assert (
        sorted(splits["training"] + splits["validation"]) == names
        and splits["validation"]
        and splits["training"]
    )
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


def split_of_brats_2021(names: Sequence[str], volumes: Sequence[float], seed: int,
                        validation: float, folds: int) -> tuple[list[str], list[list[str]]]:
    """The validation patients and folds as they were before persons were grouped."""
    rng, pairs = np.random.default_rng(seed), sorted(zip(names, volumes, strict=True))
    ranked = [pairs[i][0] for i in np.argsort([v for _, v in pairs], kind="stable")]

    def deal(groups: int) -> list[list[str]]:
        hands: list[list[str]] = [[] for _ in range(groups)]
        for start in range(0, len(ranked), groups):
            for hand, name in zip(rng.permutation(groups), ranked[start : start + groups],
                                  strict=False):
                hands[hand].append(name)
        return [sorted(hand) for hand in hands]

    held_out = deal(min(len(names), max(2, round(1 / validation))))[0]
    return held_out or [pairs[0][0]], deal(min(folds, len(names)))


@settings(max_examples=300, deadline=None)
@given(st.sets(st.integers(0, 1666), min_size=2, max_size=80), st.integers(0, 10_000),
       st.sampled_from([0.1, 0.2, 0.33, 0.5]), st.integers(2, 8))
def test_brats_2021_is_split_as_before(numbers: set[int], seed: int, validation: float,
                                       folds: int) -> None:
    names = [f"BraTS2021_{i:05d}" for i in numbers]
    volumes = np.random.default_rng(seed).lognormal(3, 1, len(names)).round().tolist()  # with ties
    splits = make_splits(names, volumes, seed, validation, folds)
    assert (splits["validation"], splits["folds"]) == split_of_brats_2021(names, volumes, seed,
                                                                          validation, folds)
    assert splits["persons"] == {}


FORMS = ("BraTS-GLI-{p:05d}-1{v:02d}", "BraTS-MET-{p:05d}-{v:03d}", "BraTS-MEN-RT-{p:04d}-{v}",
         "BraTS-SSA-{p:05d}-{v:03d}", "BraTS-PED-{p:05d}-{v:03d}", "UCSF-PDGM-{p:04d}_FU{v:03d}d",
         "UPENN-GBM-{p:05d}_{v}1", "sub-{p}_ses-{v}", "sub-{p:03d}_ses-{v}_run-1",
         "RHUH-{p:04d}_{v}", "brats_tcia_pat{p:03d}_{v:04d}", "PatientID_{p:04d}_Timepoint_{v}",
         "Patient-{p:03d}_week-{v:03d}-1", "P{p}_2019-01-0{v}", "TCGA-02-{p:04d}_1996.08.0{v}")


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(FORMS),
       st.sets(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=2, max_size=60),
       st.integers(0, 1000))
def test_no_person_is_on_both_sides(form: str, visits: set[tuple[int, int]], seed: int) -> None:
    person = {form.format(p=p, v=v): p for p, v in visits}
    volumes = np.random.default_rng(seed).lognormal(3, 1, len(person)).tolist()
    if len(set(person.values())) < 2:
        with pytest.raises(BratsError, match="at least two persons"):
            make_splits(list(person), volumes, seed)
        return
    splits = make_splits(list(person), volumes, seed)
    assert (
        sorted(splits["training"] + splits["validation"])
        == sorted(sum(splits["folds"], []))
        == sorted(person)
    )
    for sides in ((splits["training"], splits["validation"]), splits["folds"]):
        seen = [{person[name] for name in side} for side in sides]
        assert sum(map(len, seen)) == len(set().union(*seen)) and all(seen)
    assert all(
        len({person[name] for name in group}) == 1 < len(group)
        for group in splits["persons"].values()
    )


@pytest.mark.parametrize(
    "name",
    ["BraTS2021_00000", "BraTS20_Training_001", "P1", "TCGA-02-0006", "UPENN-GBM-00001", "sub-07",
     "case_0012", "IXI002-Guys-0828", "BRATS_001", "00000057_brain", "scan_2", "FeTS2022_00000",
     "week_3", "MR-1", "20190501", ""],
)
def test_a_name_without_a_visit_is_a_person(name: str) -> None:
    assert person_of(name) == name


ONE = ("p05_pre p05_post", "p07-V1 p07-V2", "p08_scan1 p08_scan2 P08_Scan3", "p09 p09_post",
       "BraTS-GLI-00005-100 brats-gli-00005-101", "sub-01 SUB-01 sub-01_ses-2", "x10.v1 x10_v2_pre "
       "x10_v2_post", "pt5_day0 pt5_day90", "x11.visit1 x11.visit2",
       "UCSD-PTGBM-0002_01 UCSD-PTGBM-0002_02", "BraTSReg_001_00_0000 BraTSReg_001_01_0106",
       "BraTS_GLI_00005_100 BraTS_GLI_00005_101", "P7_20190105T1030 P7_20200105T1100",
       "P2_m0 P2_m6", "P8_y1 P8_y2", "P3_1st P3_2nd", "P12_initial P12_recurrence",
       "P13_MR1 P13_MR2")
SEVERAL = ("site1_001 site1_002", "BRATS_001 BRATS_002", "patient_1 patient_11", "p1_pre p2_post",
           "p07-V1 p17-V1", "scan_1 scan_2", "case_1 case_2", "p1_t1 p1_t2", "v1 v2")


@pytest.mark.parametrize("names", ONE + SEVERAL)
def test_names_that_differ_in_a_visit_or_in_capitals_alone_are_one_person(names: str) -> None:
    split = names.split()
    persons = find_persons([*split, "Q3-V1"])
    assert len(set(persons.values())) == 1 + (1 if names in ONE else len(split))
    assert persons["Q3-V1"] == "Q3-V1" and persons == find_persons(["Q3-V1", *split[::-1]])
    if names in ONE:  # who is listed takes the other visits along
        assert set(find_persons(split, {split[-1]: "Ann"}).values()) == {"Ann"}


def test_twins_and_listed_persons_are_one(tmp_path: Path) -> None:
    names = ["A", "B", "C", "D", "BraTS-GLI-00001-100", "BraTS-GLI-00001-101"]
    persons = find_persons(names, {"A": "Ann", "BraTS-GLI-00001-100": "Ann"},
                           [["B", "C"], ["C", "elsewhere"]])
    assert persons["B"] == persons["C"] and persons["D"] == "D"
    assert {persons[name] for name in ("A", *names[4:])} == {"Ann"}
    splits = make_splits(names, [1.0] * 6, 0, persons=persons)
    assert splits["persons"] == {"Ann": ["A", *names[4:]], "B": ["B", "C"]}
    # A twin joins all visits of both persons.
    assert set(find_persons(names, twins=[["A", names[4]], ["A", "B"]]).values()) == {"A", "C", "D"}


@pytest.mark.parametrize(
    "content",
    [b"patient,person\nA,x\nB,x\n", b"\xef\xbb\xbfPatient,Person\r\nA,x\r\n\r\nB,x\r\n",
     b"person;patient;age\nx;A;3\nx;B;4\n", b"patient\tperson\nA\tx\nB\tx",
     b'patient,person\n"A"," x"\nB,x\nB,x\n,,\n'],
)
def test_lists_of_persons_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    assert read_persons(tmp_path / "p.csv", ["A", "B", "C"]) == {"A": "x", "B": "x"}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"patient,who\nA,x\n", "no column person; its first line is 'patient,who'"),
     (b"patient person\nA x\n", "no column patient and no column person.*commas"),
     (b"", "no column patient"),
     (b"patient,person\nA1,x\n", "line 2: there is no patient A1 in this cohort; did you mean A11"),
     (b"patient,person\nzzz,x\n", "no patient zzz in this cohort. Correct"),
     (b"patient,person\nA11\n", "line 2: it needs a patient and a person"),
     (b"patient,person\nA11,x\nA11,y\n", "line 3: A11 is both x and y"),
     (b"PK\x03\x04\x14\0", 'is an Excel workbook .*save it as "CSV UTF-8"'),
     (b"\xd0\xcf\x11\xe0\xa1", "is an Excel workbook"),
     (b"\xff\xfep\0a\0", "not a CSV in UTF-8"),
     (b'patient,person\nA11,"' + b"x" * 200_000, "not a CSV")],
)
def test_a_wrong_list_of_persons_is_a_sentence(tmp_path: Path, content: bytes,
                                               message: str) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(BratsError, match=message) as caught:
        read_persons(tmp_path / "p.csv", ["A11", "B"])
    assert "p.csv" in str(caught.value)


def test_a_list_of_persons_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(BratsError, match="cannot be read .*columns patient and person"):
            read_persons(path, [])
