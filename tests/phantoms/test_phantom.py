"""The synthetic cohort: reproducible, laid out as BraTS, and neither trivial nor absurd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from brats_helpers.basics.constants import ED, ET, NCR
from brats_helpers.data.archive import extract, list_archive
from brats_helpers.data.cases import find_cases, read_case
from brats_helpers.data.preprocessing import brain_mask, normalize, prepare, statistics
from brats_helpers.data.storage import load_prepared
from brats_helpers.evaluation.metrics import threshold_baseline
from brats_helpers.phantoms.anatomy import (
    TEMPLATE_CENTER_MM,
    brats_affine,
    coordinates_mm,
    sample_template,
    template,
)
from brats_helpers.phantoms.archive import TEST, TRAINING, build_cohort
from brats_helpers.phantoms.kinds import make_patient
from brats_helpers.phantoms.plain import _depth_mm, plan
from brats_helpers.phantoms.prepared import prepare_varied


@pytest.fixture(scope="module")
def patients() -> list:
    return [make_patient(3, index, 4.0) for index in range(12)]


def test_the_stored_template_is_nilearns() -> None:
    datasets = pytest.importorskip("nilearn.datasets")
    names = ("gm_template", "wm_template", "brain_mask")
    theirs = [getattr(datasets, f"load_mni152_{name}")(resolution=1) for name in names]
    maps, affine = template()
    assert np.array_equal(maps, [np.asarray(image.dataobj, np.float32) for image in theirs])
    assert np.array_equal(affine, theirs[0].affine)


def test_archives_are_the_same_bytes_for_the_same_seed_and_laid_out_as_brats(
    tmp_path: Path,
) -> None:
    for folder in ("a", "b"):
        build_cohort(tmp_path / folder, seed=5, patients=2, test_patients=1, spacing_mm=8.0, jobs=1)
    for name in (TRAINING, TEST):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (
        list_archive(tmp_path / "a" / TRAINING)[0].name
        == "BraTS2021_00000/BraTS2021_00000_flair.nii.gz"
    )
    for name in (TRAINING, TEST):
        extract(tmp_path / "a" / name, tmp_path / "out" / name.split(".")[0])
    cases = find_cases(tmp_path / "out")
    assert len(cases) == 3 and len({case.name for case in cases}) == 3
    patient, made = read_case(cases[0]), make_patient(5, 0, 8.0)
    assert np.array_equal(patient.images, made.images) and np.array_equal(patient.reference,
                                                                          made.reference)
    assert np.array_equal(patient.affine, brats_affine(8.0)) and patient.orientation == "LPS"


def test_another_seed_builds_anew_and_the_same_one_does_not(tmp_path: Path) -> None:
    first = build_cohort(tmp_path, 0, 1, 0, 8.0, jobs=1)[0].stat().st_mtime_ns
    assert build_cohort(tmp_path, 0, 1, 0, 8.0, jobs=1)[0].stat().st_mtime_ns == first
    content = (tmp_path / TRAINING).read_bytes()
    build_cohort(tmp_path, 1, 1, 0, 8.0, jobs=1)
    assert (tmp_path / TRAINING).read_bytes() != content


def test_intensities_are_what_a_radiologist_expects(patients: list) -> None:
    def level(patient, modality: int, label: int) -> float:
        image = patient.images[modality]
        return image[patient.reference == label].mean() / np.median(
            image[(patient.reference == 0) & (image > 0)]
        )

    whole = [p for p in patients if all((p.reference == n).sum() > 8 for n in (NCR, ED, ET))]
    assert len(whole) >= 4
    for p in whole:
        assert p.images.dtype == np.int16 and (p.images[:, ~brain_mask(p.images)] == 0).all()
        # The rim takes up contrast.
        assert level(p, 2, ET) > 1.2 and level(p, 2, ET) > level(p, 2, NCR)
        assert level(p, 0, ED) > 1.1 and level(p, 3, ED) > 1.1  # edema: bright on FLAIR and T2
        # Necrosis is bright on T2 and dark on T1CE.
        assert level(p, 3, NCR) > level(p, 3, ET) and level(p, 2, NCR) < 1


def test_tumors_of_every_kind_and_of_sizes_over_two_orders_of_magnitude() -> None:
    plans = [plan(np.random.default_rng(i), (i * 0.618) % 1) for i in range(400)]
    rims = np.array([plan[0].rim for plan in plans])
    radii = np.array([plan[0].radius for plan in plans])
    assert 0.03 < (rims == 0).mean() < 0.15 and 0.03 < np.isinf(rims).mean() < 0.2
    assert 0.05 < np.mean([len(plan) == 2 for plan in plans]) < 0.3
    assert (radii.max() / radii.min()) ** 3 > 100


def test_a_threshold_on_flair_does_not_solve_it(patients: list) -> None:
    flair = [normalize(p.images, *statistics(p.images, brain_mask(p.images)))[0] for p in patients]
    scores = threshold_baseline(flair, [p.reference for p in patients], np.linspace(0.2, 3, 15))
    assert 0.3 < scores.mean(0).max() < 0.75


def test_prepared_phantoms_equal_the_two_steps_and_are_made_once(tmp_path: Path) -> None:
    files = prepare_varied(tmp_path, 2, 7, 8.0)
    stored, made = load_prepared(files[1]), prepare(make_patient(7, 1, 8.0, "varied"), 8.0)
    assert np.array_equal(stored.volume, made.volume)
    files[1].write_bytes(b"cut short")
    first = files[0].stat().st_mtime_ns
    assert prepare_varied(tmp_path, 2, 7, 8.0) == files
    assert np.array_equal(load_prepared(files[1]).volume, made.volume)
    assert files[0].stat().st_mtime_ns == first
    assert not set(files) & {*prepare_varied(tmp_path, 1, 8, 8.0), *prepare_varied(tmp_path, 1, 7,
                                                                                   9.0)}


def test_varied_patients_differ_more_than_the_plain_ones_and_still_show_their_tumors(
    tmp_path: Path, patients: list
) -> None:
    def levels(cohort: list) -> np.ndarray:
        """z-scores of edema on FLAIR and T2 and of enhancing tumor on T1CE, a row a patient."""
        rows = []
        for p in cohort:
            z = normalize(p.images, *statistics(p.images, brain_mask(p.images)))
            rows.append(
                [
                    z[m][p.reference == label].mean()
                    for m, label in ((0, ED), (3, ED), (2, ET))
                    if (p.reference == label).sum() > 8
                ]
            )
        return np.array([row for row in rows if len(row) == 3])

    wide = [make_patient(3, index, 4.0, "varied") for index in range(12)]
    narrow_levels, wide_levels = levels(patients), levels(wide)
    spread = [
        levels.std(0) / np.abs(np.median(levels, 0)) for levels in (wide_levels, narrow_levels)
    ]
    assert (spread[0] > spread[1]).all() and (wide_levels.std(0) > narrow_levels.std(0))[:2].all()
    # Seen on FLAIR, and on T1CE.
    assert np.median(wide_levels[:, 0]) > 0.8 and np.median(wide_levels[:, 2]) > 1
    first, _ = build_cohort(tmp_path, 0, 1, 0, 8.0, jobs=1)
    content = first.read_bytes()
    assert build_cohort(tmp_path, 0, 1, 0, 8.0, jobs=1, kind="varied")[0].read_bytes() != content


@pytest.mark.parametrize("stretch", [1.0, 0.3, 1.7])  # of the places: 0.3 is all inside the head
def test_places_outside_the_head_are_what_they_would_be_if_sampled(stretch: float) -> None:
    noise = np.random.default_rng(0).normal(0, 5, (3, 30, 30, 19)).astype(np.float32)
    source = stretch * coordinates_mm(8.0) + noise
    maps, affine = template()
    origin = np.array(TEMPLATE_CENTER_MM, np.float32) - affine[:3, 3]
    voxels = source + origin[:, None, None, None]
    obvious = [ndimage.map_coordinates(m, voxels, order=1, prefilter=False) for m in maps]
    assert np.array_equal(sample_template(source), obvious)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_depth_in_a_box_is_depth_in_the_volume(share: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        mask = np.zeros((14, 11, 9), bool)
        low = rng.integers(0, 6, 3)
        mask[tuple(slice(a, a + n) for a, n in zip(low, rng.integers(2, 9, 3), strict=True))] = True
        mask &= rng.random(mask.shape) < share
        whole = ndimage.distance_transform_edt(mask, sampling=2.0)
        assert np.array_equal(_depth_mm(mask, 2.0), whole)
