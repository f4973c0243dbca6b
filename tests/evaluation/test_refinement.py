"""The second look near the tumor."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CONFIG, CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from brats_helpers.data.cases import Patient
from brats_helpers.data.preprocessing import prepare
from brats_helpers.data.storage import Prepared
from brats_helpers.evaluation.prediction import segment
from brats_helpers.evaluation.refinement import Refiner, refine, tumor_box
from brats_helpers.evaluation.sliding_window import predict_prepared
from brats_helpers.network.unet import UNet
from brats_helpers.phantoms.kinds import make_patient

COARSE = CONFIG.with_(spacing_mm=8.0)
FINE = CONFIG.with_(spacing_mm=6.0)


class Constant(nn.Module):
    """A network that is sure of everything."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 3, *x.shape[2:]), 20.0)


class Bright(nn.Module):
    """A network that takes the brightest voxels of FLAIR for tumor."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 2.5, 20.0, -20.0).expand(-1, 3, -1, -1, -1)


@pytest.fixture(scope="module")
def patient() -> Patient:
    return make_patient(4, 2, 4.0)


@pytest.fixture(scope="module")
def grids() -> tuple[Prepared, Prepared]:
    patient = make_patient(4, 2, 8.0)
    return prepare(patient, 16.0), prepare(patient, 8.0)


def test_where_both_have_looked_their_probabilities_are_averaged(patient: Patient) -> None:
    torch.manual_seed(0)
    others = [UNet(FINE.filters).eval() for _ in range(2)]
    prepared = prepare(patient, COARSE.spacing_mm)
    found = np.ones((3, *prepared.volume.shape[1:]), np.float32)  # tumor everywhere
    first = np.full((3, *patient.images.shape[1:]), 0.25, np.float32)
    together = refine(first, found, prepared.meta, patient, Refiner(others, FINE), False, CPU)
    alone = [predict_prepared([other], prepare(patient, FINE.spacing_mm), FINE.patch, FINE.overlap,
                              False, CPU) for other in others]
    inside = alone[0][0] > 0.01  # farther in than the box's blurred edge
    assert inside.sum() > 1000
    expected = (0.25 + alone[0][:, inside] + alone[1][:, inside]) / 3
    assert np.allclose(together[:, inside], expected, atol=0.02)


def test_far_from_the_tumor_nothing_changes(patient: Patient) -> None:
    prepared = prepare(patient, COARSE.spacing_mm)
    found = np.zeros((3, *prepared.volume.shape[1:]), np.float32)
    first = np.full((3, *patient.images.shape[1:]), 0.25, np.float32)
    refiner = Refiner([Constant()], FINE.with_(patch=16))
    assert refine(first, found, prepared.meta, patient, refiner, False, CPU) is first
    found[:, 2:4, 2:4, 2:4] = 1
    changed = refine(first, found, prepared.meta, patient, refiner, False, CPU) != first
    assert 0 < changed.mean() < 0.3


def test_a_scan_without_smaller_voxels_is_left_as_it_is(patient: Patient) -> None:
    same = CONFIG.with_(spacing_mm=4.0)
    refiner = Refiner([UNet(CONFIG.filters).eval()], same)
    plain = segment([Constant()], patient, same, device=CPU)[1]
    refined = segment([Constant()], patient, same, device=CPU, refiner=refiner)[1]
    assert plain.max() > 0.9 and np.array_equal(plain, refined)


def test_the_refiner_looks_at_the_same_place_in_any_orientation(patient: Patient) -> None:
    torch.manual_seed(1)
    first, second = Bright(), UNet(FINE.filters).eval()
    turn = nib.orientations.axcodes2ornt("SRA")
    turned = [nib.Nifti1Image(image, patient.affine) for image in patient.images]
    turned = [image.as_reoriented(nib.orientations.ornt_transform(
        nib.io_orientation(patient.affine), turn)) for image in turned]
    other = Patient("turned", np.stack([np.asarray(image.dataobj) for image in turned]), None,
                    turned[0].affine)
    refiner = Refiner([second], FINE)
    alone = segment([first], patient, COARSE, device=CPU)[1]
    straight = segment([first], patient, COARSE, device=CPU, refiner=refiner)[1]
    assert 0.005 < (alone != straight).mean() < 0.15  # in a part of the brain
    found = segment([first], other, COARSE, device=CPU, refiner=refiner)[1]
    back = nib.orientations.ornt_transform(turn, nib.io_orientation(patient.affine))
    for mine, its in zip(straight, found, strict=True):
        assert np.allclose(nib.orientations.apply_orientation(its, back), mine, atol=1e-5)


@settings(deadline=None)
@given(corner=st.tuples(*[st.integers(0, 12)] * 3), edge=st.integers(1, 12))
def test_the_box_holds_the_tumor_and_is_as_long_as_a_patch(
        grids: tuple[Prepared, Prepared], corner: tuple[int, int, int], edge: int) -> None:
    coarse, fine = grids
    tumor = np.zeros(coarse.volume.shape[1:], bool)
    low = [min(c, n - 1) for c, n in zip(corner, tumor.shape, strict=True)]
    tumor[tuple(slice(c, c + edge) for c in low)] = True
    box = tumor_box(tumor, coarse.meta, fine, CONFIG.with_(spacing_mm=8.0, patch=16))
    for axis, (piece, size) in enumerate(zip(box, fine.volume.shape[1:], strict=True)):
        rows = np.flatnonzero(tumor.any(tuple({0, 1, 2} - {axis})))
        assert piece.start <= 2 * rows[0] and piece.stop >= min(size, 2 * rows[-1] + 2)
        assert piece.stop - piece.start >= min(size, 16) and piece.stop <= size
