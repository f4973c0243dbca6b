"""There and back again: orientation, crop, storage, downsampling."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import small_volumes, write_case
from hypothesis import given, settings
from hypothesis import strategies as st

from brats_helpers.basics.errors import BratsError
from brats_helpers.data import pipeline
from brats_helpers.data.cases import Patient, find_cases, read_case
from brats_helpers.data.pipeline import prepared_files, preprocess_cohort, verify_prepared
from brats_helpers.data.preprocessing import (
    Meta,
    Prepared,
    bounding_box,
    brain_mask,
    lps_spacing,
    normalize,
    prepare,
    restore,
    statistics,
    tumor_rows,
)
from brats_helpers.data.storage import load_prepared, open_volume, read_patch, save_prepared

META = Meta("P", (1, 1, 1), (), (), (1.0,) * 3, (0.0,) * 4, (1.0,) * 4, True, "")
ORIENTATIONS = [codes for axes in itertools.permutations(("LR", "PA", "SI"))
                for codes in itertools.product(*axes)]


def patient_of(shape: tuple[int, int, int], codes: tuple[str, ...], seed: int,
               spacing: float = 1.0) -> Patient:
    images, labels = small_volumes(seed, shape)
    start = nib.orientations.axcodes2ornt(codes)
    matrix = np.zeros((4, 4))
    for axis, (world, flip) in enumerate(start):
        matrix[int(world), axis] = flip * spacing
    matrix[3, 3] = 1
    return Patient("P", images, np.where(labels == 4, 3, labels).astype(np.uint8), matrix)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(7, 30)] * 3), st.sampled_from(ORIENTATIONS), st.integers(0, 99))
def test_restore_undoes_prepare_exactly_in_every_orientation(shape, codes, seed) -> None:
    patient = patient_of(shape, codes, seed)
    prepared = prepare(patient, 1.0)
    back = restore(prepared.volume, prepared.meta)
    assert np.array_equal(back[:4], patient.images)
    assert np.array_equal(back[4], patient.reference * (brain_mask(patient.images) | (back[4] > 0)))
    assert prepared.meta.tumor_voxels.keys() == {"NCR", "ED", "ET"}


def test_every_orientation_gives_the_network_the_same_volume() -> None:
    base = patient_of((13, 17, 11), ("L", "P", "S"), 0)
    image = nib.Nifti1Image(base.images[0], base.affine)
    wanted = prepare(base, 1.0).volume
    for codes in ORIENTATIONS:
        turn = nib.orientations.ornt_transform(nib.io_orientation(base.affine),
                                               nib.orientations.axcodes2ornt(codes))
        turned = Patient("P", np.stack([nib.apply_orientation(i, turn) for i in base.images]),
                         nib.apply_orientation(base.reference, turn),
                         image.as_reoriented(turn).affine)
        assert np.array_equal(prepare(turned, 1.0).volume, wanted), codes


@pytest.mark.parametrize("shape", [(40, 44, 36), (41, 47, 33)])
def test_downsampling_keeps_the_geometry(shape) -> None:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).astype(np.float32)
    # no zero: the box is the volume
    smooth = (1000 + 10 * grid[0] + 7 * grid[1] - 5 * grid[2]).astype(np.float32)
    patient = Patient("P", np.stack([smooth] * 4), None, np.diag([-1.0, -1.0, 1.0, 1.0]))
    prepared = prepare(patient, 2.0)
    back = restore(prepared.images.astype(np.float32), prepared.meta)[0]
    inner = tuple(slice(3, n - 3) for n in shape)
    # a linear ramp: no shift, no bend
    assert back.shape == shape and np.abs(back - smooth)[inner].max() < 0.01
    block = smooth[:2, :2, :2].mean()
    assert abs(prepared.volume[0, 0, 0, 0] - block) < 0.01  # 2 x 2 x 2 voxels, averaged


def test_spacing_turns_with_the_axes() -> None:
    # P S R, of 1, 2 and 3 mm
    turned = np.array([[0, 0, 3.0, 0], [-1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    assert lps_spacing((1.0, 2.0, 3.0), turned) == (3.0, 1.0, 2.0)


@pytest.mark.parametrize("spacing", [0.7, 0.9, 1.0, 1.1])
@pytest.mark.parametrize("target", [1.5, 2.0, 3.0])
def test_every_voxel_size_returns_to_its_grid(spacing: float, target: float) -> None:
    for edge in range(21, 34):
        patient = patient_of((edge, edge + 1, 24), ("L", "P", "S"), 0, spacing)
        prepared = prepare(patient, target)
        for volume in (prepared.volume, prepared.volume.astype(np.float32)):
            assert restore(volume, prepared.meta).shape == (5, *patient.images.shape[1:])


def test_normalize_is_zero_mean_unit_deviation_in_the_brain_alone() -> None:
    images, _ = small_volumes()
    images[0, 10, 13, 8] = 0  # 0 in one modality, and brain
    mask = brain_mask(images)
    scored = normalize(images, *statistics(images, mask))
    assert np.allclose(scored[:4, mask].mean(1), 0, atol=1e-5)
    assert np.allclose(scored[:4, mask].std(1), 1, atol=1e-5)
    assert (scored[:, ~mask] == 0).all()
    assert np.array_equal(scored[4] == 1, mask)
    assert mask[10, 13, 8]
    with pytest.raises(BratsError, match="patient X: t2 has one value"):
        statistics(np.concatenate([images[:3], mask[None] * 7]), mask, "X")


@given(st.lists(st.tuples(*[st.integers(0, 8)] * 3), min_size=1, max_size=5))
def test_brain_box_is_the_smallest(points) -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[tuple(np.array(points).T)] = True
    where = np.argwhere(mask)
    assert bounding_box(mask) == tuple(zip(where.min(0).tolist(), (where.max(0) + 1).tolist()))
    assert tumor_rows(mask.astype(np.int16)) == bounding_box(mask)[1]
    assert tumor_rows(np.zeros((9, 9, 9))) == (0, 0)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(5, 70)] * 3), st.sampled_from([np.int16, np.float32]),
       st.integers(0, 99))
def test_save_and_load_lose_nothing(shape: tuple[int, int, int], dtype: type, seed: int) -> None:
    patient = patient_of(shape, ("R", "A", "S"), seed)
    patient.images = patient.images.astype(dtype) * dtype(1.5 if dtype == np.float32 else 1)
    prepared = prepare(patient, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "P.b2nd"
        save_prepared(prepared, path)
        again, whole = load_prepared(path), open_volume(path)[0][:]  # Blosc2's own way
    assert again.meta == prepared.meta
    assert again.volume.dtype == dtype
    assert np.array_equal(again.volume, prepared.volume)
    assert np.array_equal(whole, prepared.volume)


def test_stored_names_and_their_order_stay_those_of_earlier_versions() -> None:
    meta = prepare(patient_of((9, 10, 11), ("L", "P", "S"), 0), 2.0, "a1b2").meta
    assert list(meta.to_json()) == [
        "name", "shape", "affine", "box", "factor", "mean", "std", "has_reference", "source",
        "tumor_rows", "tumor_voxels", "figures"]
    assert Meta.from_json(json.loads(json.dumps(meta.to_json()))) == meta


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3), st.integers(0, 99), st.data())
def test_a_patch_is_what_slicing_would_give_with_zeros_around(shape: tuple[int, int, int],
                                                              seed: int, data) -> None:
    patch = data.draw(st.tuples(*[st.integers(1, 45)] * 3))
    corner = data.draw(st.tuples(*[st.integers(1 - p, n - 1)
                                   for p, n in zip(patch, shape, strict=True)]))
    # that have a tumor, or none
    rows = sorted(data.draw(st.tuples(*[st.integers(0, shape[1])] * 2)))
    volume = np.random.default_rng(seed).integers(-9, 900, (5, *shape)).astype(np.int16)
    volume[4, :, :rows[0]] = volume[4, :, rows[1]:] = 0
    with tempfile.TemporaryDirectory() as folder:
        save_prepared(Prepared(volume, replace(META, tumor_rows=tumor_rows(volume[4]))),
             Path(folder) / "P.b2nd")
        into = np.full((5, *patch), 7, np.int16)
        read_patch(*open_volume(Path(folder) / "P.b2nd"), corner, into)
    wide = np.pad(volume, [(0, 0), *((p, p) for p in patch)])
    wanted = tuple(slice(p + c, 2 * p + c) for p, c in zip(patch, corner, strict=True))
    assert np.array_equal(into, wide[:, *wanted])


def test_a_damaged_prepared_file_is_noticed_whatever_bit_it_is_and_made_anew(tmp_path: Path,
                                                                             faults) -> None:
    write_case(tmp_path / "raw", "P", *small_volumes(0, (60, 64, 50)))
    cases, path = find_cases(tmp_path / "raw"), tmp_path / "out" / "P.b2nd"
    preprocess_cohort(cases, tmp_path / "out", 1.0, jobs=1)
    good, volume, rng = path.read_bytes(), load_prepared(path).volume, np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(good)
        if number % 3:
            damaged[rng.integers(0, len(good))] ^= 1 << rng.integers(0, 8)
        else:
            del damaged[rng.integers(0, len(good)):]
        path.write_bytes(damaged)
        try:
            again = load_prepared(path).volume  # the bit may be one that nothing is read from
            assert np.array_equal(again, volume)
        except BratsError as error:
            assert "P.b2nd is" in str(error) and "notebook 03 again" in str(error)
            with pytest.raises(BratsError):
                prepared_files(cases, tmp_path / "out", 1.0)
    preprocess_cohort(cases, tmp_path / "out", 1.0, jobs=1)
    assert path.read_bytes() == good
    faults("damaged prepared files", 60)


def test_a_cohort_is_prepared_once_and_again_where_the_files_changed(tmp_path: Path) -> None:
    for name in ("A", "B"):
        write_case(tmp_path / "raw", name, *small_volumes())
    cases = find_cases(tmp_path / "raw")
    metas = preprocess_cohort(cases, tmp_path / "out", 1.0, jobs=1)
    stamps = {p: os.stat(p).st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert preprocess_cohort(cases, tmp_path / "out", 1.0, jobs=1) == metas
    assert stamps == {p: os.stat(p).st_mtime_ns for p in (tmp_path / "out").iterdir()}
    write_case(tmp_path / "raw", "B", *small_volumes(seed=9))
    with pytest.raises(BratsError, match=r"1 prepared file\(s\).*\(B\).*notebook 03"):
        prepared_files(cases, tmp_path / "out", 1.0)
    preprocess_cohort(cases, tmp_path / "out", 1.0, jobs=1)
    assert verify_prepared(cases[1], tmp_path / "out" / "B.b2nd") == []
    assert set(prepared_files(cases, tmp_path / "out", 1.0)) == {"A", "B"}
    with pytest.raises(BratsError, match="another voxel size"):
        prepared_files(cases, tmp_path / "out", 2.0)


def test_a_killed_process_is_told_with_what_to_do(small_case, tmp_path: Path, monkeypatch) -> None:
    def die(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(pipeline, "preprocess_case", die)
    with pytest.raises(BratsError, match="memory ran out.* kept in .*out: run it again, with f"):
        preprocess_cohort([small_case], tmp_path / "out", 1.0, jobs=1)


def test_real_scans_there_and_back(real_cases, tmp_path: Path) -> None:
    for case in (real_cases[0], real_cases[1], real_cases[-2]):
        preprocess_cohort([case], tmp_path, 1.0, jobs=1)
        assert verify_prepared(case, tmp_path / f"{case.name}.b2nd") == []
        coarse = prepare(read_case(case), 2.0)
        assert restore(coarse.volume, coarse.meta).shape == (5, 240, 240, 155)
