"""What the numbers in a reference mean, by data set and year."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import small_volumes, write_case

from brats_helpers.basics.constants import ED, ET, NCR
from brats_helpers.basics.errors import BratsError
from brats_helpers.data.cases import Case, check_cohort, find_cases, read_case, write_mask
from brats_helpers.data.labels import (
    NO_CLASS,
    as_written,
    label_table,
    lookup,
    scheme_of,
    unnamed,
)
from brats_helpers.data.plausibility import cohort_warnings

OLD, NEW = ("_flair", "_t1", "_t1ce", "_t2", "_seg"), ("-t2f", "-t1n", "-t1c", "-t2w", "-seg")
IMAGES, LABELS = small_volumes()
INSIDE = np.where(LABELS == 4, 3, LABELS)
SETS = {  # name, endings, labels of NCR, ED and ET on disk
    "BraTS-PED-00001-000": (NEW, (2, 4, 1)),
    "BraTS-MEN-00004-000": (NEW, (1, 2, 3)),
    "BraTS-MET-00110-000": (NEW, (1, 2, 3)),
    "BraTS-SSA-00002-000": (NEW, (1, 2, 3)),
    "BraTS-GLI-00005-100": (NEW, (1, 2, 3)),
    "BraTS-GoAT-00001": (NEW, (1, 2, 3)),
    "hospital": (NEW, (1, 2, 3)),
    "BraTS2021_00001": (OLD, (1, 2, 4)),
    "Brats18_2013_11_1": (OLD, (1, 2, 4)),
    "FeTS22_Training_1": (OLD, (1, 2, 4)),
    "UCSF-PDGM-0004": (OLD, (1, 2, 4)),
    "brats_2013_pat0001_1": (OLD, (1, 2, 4)),
    "P": (OLD, (1, 2, 4)),
}


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_read_by_its_own_labels_and_written_so_that_it_is_read_again(tmp_path: Path,
                                                                                 name: str) -> None:
    endings, numbers = SETS[name]
    on_disk = np.array([0, *numbers], np.uint8)[INSIDE]
    folder = write_case(tmp_path, name, IMAGES, on_disk, endings=endings)
    case = find_cases(tmp_path)[0]
    patient = read_case(case)
    assert np.array_equal(patient.reference, INSIDE) and scheme_of(case).on_disk[3] == numbers[2]
    write_mask(folder / f"{name}{endings[4]}.nii.gz", patient.reference, patient.affine, case)
    assert np.array_equal(np.asarray(nib.load(case.reference).dataobj), on_disk)
    assert np.array_equal(read_case(case).reference, INSIDE)


def test_net_and_cystic_core_of_children_are_core(tmp_path: Path) -> None:
    write_case(tmp_path, "BraTS-PED-1", IMAGES, np.where(LABELS == 1, 3, LABELS).astype(np.uint8),
               endings=NEW)
    assert set(np.unique(read_case(find_cases(tmp_path)[0]).reference)) == {
        0,
        1,
        2,
    }  # 3 core, 4 edema, 2 core


def test_label_3_of_the_oldest_sets_is_core_that_does_not_enhance(tmp_path: Path) -> None:
    write_case(tmp_path, "brats_tcia_pat105_0001", IMAGES, np.array([0, 3, 2, 4], np.uint8)[INSIDE])
    assert np.array_equal(read_case(find_cases(tmp_path)[0]).reference, INSIDE)


@pytest.mark.parametrize(
    ("name", "endings", "table", "message"),
    [("BraTS-GLI-02063-100", NEW, (1, 2, 4), "resection cavity.*enhancing tumor"),
     ("h", NEW, (1, 2, 4), "resection cavity"),
     ("UCSD-PTGBM-1", OLD, (1, 2, 4), "resection cavity"),
     ("PatientID_0003_Timepoint_1", OLD, (1, 2, 4), "resection cavity"),
     ("BraTS-MEN-RT-1", NEW, (1, 1, 1), "irradiated"),
     ("P", OLD, (3, 2, 4), "both 3 and 4.*non-enhancing core.*resection cavity"),
     ("P", OLD, (1, 2, 255), r"labels \[255")],
)
def test_uncertain_labels_are_refused_with_their_readings(tmp_path: Path, name: str, endings: tuple,
                                                          table: tuple, message: str) -> None:
    write_case(tmp_path, name, IMAGES, np.array([0, *table], np.uint8)[INSIDE], endings=endings)
    with pytest.raises(BratsError, match=f"patient {name}, .*{message}"):
        read_case(find_cases(tmp_path)[0])


@pytest.mark.parametrize("shift", [0.0009, -0.0009, 1e-7])
def test_labels_near_a_whole_number_are_rounded(tmp_path: Path, shift: float) -> None:
    write_case(tmp_path, "P", IMAGES, np.where(LABELS > 0, LABELS + shift, shift))
    assert np.array_equal(read_case(find_cases(tmp_path)[0]).reference, INSIDE)


def test_labels_farther_from_a_whole_number_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path, "P", IMAGES, LABELS * 1.01)
    with pytest.raises(BratsError, match=r"labels \[1.01"):
        read_case(find_cases(tmp_path)[0])


def test_a_list_of_its_own_comes_before_names() -> None:
    case = Case("BraTS-PED-1", (), None, labels=((1, 2), (2, 1), (3, 3)))
    assert scheme_of(case).title == "its list of labels" and scheme_of(case).on_disk == (0, 2, 1, 3)
    assert as_written(case)[1] == 2 and lookup(scheme_of(case).table)[1:4].tolist() == [2, 1, 3]
    assert "4 refused" in label_table() and "1 ET, 2 NCR, 3 NCR, 4 ED" in label_table()


def test_a_class_that_the_list_lacks_gets_a_free_number_and_a_warning() -> None:
    case = Case("P", (), None, labels=((1, ED), (2, ET), (3, NO_CLASS)))  # a cavity
    on_disk = scheme_of(case).on_disk
    assert len({3, *on_disk}) == 5 and (on_disk[ED], on_disk[ET]) == (1, 2)
    (said,) = unnamed(case, [NCR, ED, ET])
    assert f"which the mask has as {on_disk[NCR]}" in said
    assert unnamed(case, [ED]) == unnamed(Case("P", (), None), [NCR, ED, ET]) == []


def test_label_3_for_4_is_read_and_the_cohort_is_warned_of_once(tmp_path: Path) -> None:
    for name, number in (("BraTS2021_00001", 3), ("Brats18_2013_2_1", 4), ("UPENN-GBM-00001_11", 4),
                         ("BraTS-GLI-00001-000", 3), ("A", 3), ("D", 3)):
        on_disk = np.array([0, 1, 2, number], np.uint8)[INSIDE]
        write_case(tmp_path, name, IMAGES, on_disk, endings=NEW if "GLI" in name else OLD)
    rows = check_cohort(find_cases(tmp_path), 1)
    assert not any(row["problems"] for row in rows)
    (brats,) = cohort_warnings(rows)
    assert "tumor in 1 patient(s), such as BraTS2021_00001, and their data set has 4" in brats
    for name in ("BraTS2021_00002", "B", "C"):
        write_case(tmp_path, name, IMAGES, LABELS)
    own, brats = cohort_warnings(check_cohort(find_cases(tmp_path), 1))
    assert "in 2 patient(s), such as A, and label 4 in 2, such as B" in own
    assert "such as BraTS2021_00001, and label 4 in 1, such as BraTS2021_00002" in brats


def test_pediatric_references_without_label_4_bring_a_warning(tmp_path: Path) -> None:
    def warnings() -> list[str]:
        rows = check_cohort(find_cases(tmp_path), 1)
        return [text for text in cohort_warnings(rows) if "2023" in text]

    for number in range(2):
        write_case(tmp_path, f"BraTS-PED-0000{number}-000", IMAGES, LABELS % 4, endings=NEW)
    (said,) = warnings()
    assert "(2 patient(s), such as BraTS-PED-00000-000)" in said and "1 may be NCR, 2 ED" in said
    write_case(tmp_path, "BraTS-PED-00002-000", IMAGES, LABELS, endings=NEW)
    assert not warnings()


def test_a_reference_with_one_label_among_others_is_asked_about(tmp_path: Path) -> None:
    write_case(tmp_path, "P1", IMAGES, LABELS)
    write_case(tmp_path, "P2", IMAGES, (LABELS > 0).astype(np.uint8))
    (said,) = cohort_warnings(check_cohort(find_cases(tmp_path), 1))
    assert "such as P2, has one label alone" in said and "a mask of the whole tumor" in said
