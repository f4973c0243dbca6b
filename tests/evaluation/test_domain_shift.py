"""What training saw, and the warning for a patient who is unlike it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIG, CPU, write_case
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from brats_helpers.data import fingerprint
from brats_helpers.data.cases import read_case
from brats_helpers.data.preprocessing import prepare
from brats_helpers.data.storage import load_prepared
from brats_helpers.evaluation import domain_shift as shift
from brats_helpers.evaluation.batch import predict_cases
from brats_helpers.evaluation.checkpoints import read_checkpoint, write_checkpoint
from brats_helpers.lessons import compare_cohorts
from brats_helpers.network.unet import UNet
from brats_helpers.phantoms.kinds import make_patient
from brats_helpers.training.loop import train


@pytest.fixture(scope="module")
def patients() -> list:
    return [prepare(make_patient(0, index, 4.0), 4.0) for index in range(16)]


def changed(patient, order: tuple[int, ...] = (0, 1, 2, 3), spacing: float = 4.0,
            scale: int = 1) -> dict[str, float]:
    """A patient's statistics with other orders of modalities, intensities or voxel sizes."""
    mean, std = (
        scale * np.array(values)[list(order)] for values in (patient.meta.mean, patient.meta.std)
    )
    images = patient.images[list(order)].astype(np.int32) * scale
    return fingerprint.scan_fingerprint(images, mean, std, (spacing,) * 3, (spacing,) * 3)


def test_patients_of_the_same_kind_are_not_warned_of_and_strange_ones_are(patients: list) -> None:
    training_ranges = shift.ranges([p.meta.fingerprint for p in patients[:12]])
    assert not any(shift.outside_ranges(p.meta.fingerprint, training_ranges) for p in patients[12:])
    for patient in patients[12:]:
        assert changed(patient) == pytest.approx(patient.meta.fingerprint)
        # A scanner's units mean nothing.
        assert changed(patient, scale=7) == pytest.approx(patient.meta.fingerprint)
        # T1 and T2 mixed up.
        swapped = shift.outside_ranges(changed(patient, (0, 3, 2, 1)), training_ranges)
        assert swapped and any("T1" in text or "T2" in text for text in swapped)
        coarse = shift.outside_ranges(changed(patient, spacing=8.0), training_ranges)
        assert "the longest voxel edge is 8 mm (4 to 4 mm in training)" in coarse
        assert any("volume" in text for text in coarse)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=5, max_size=8))
def test_who_was_in_the_training_is_never_strange(rows: list[list[float]]) -> None:
    figures = [dict(zip(("ml brain", "z t1 0.5", "r t1 t2"), row, strict=True)) for row in rows]
    training_ranges = shift.ranges(figures)
    assert not any(shift.outside_ranges(row, training_ranges) for row in figures)
    both = shift.union_of_ranges([training_ranges, {key: [0.0, 0.0] for key in training_ranges}])
    assert all(low <= 0 <= high for low, high in both.values())
    assert shift.ranges(figures[:4]) == {} and shift.union_of_ranges([training_ranges, {}]) == {}


def test_distances_are_scipys_on_all_voxels_and_none_to_oneself(patients: list) -> None:
    apart = compare_cohorts.distances(patients[:2], patients[2:4])
    for label, name in ((2, "ED"), (3, "ET")):
        values = [[] for _ in range(2)]
        for side, cohort in zip(values, (patients[:2], patients[2:4]), strict=True):
            for p in cohort:
                flair = p.volume[0].astype(float)
                side.extend((flair[p.reference == label] - p.meta.mean[0]) / p.meta.std[0])
        assert apart[name]["FLAIR"] == pytest.approx(wasserstein_distance(*values), abs=0.05)
    assert all(
        value == 0
        for row in compare_cohorts.distances(patients[:2], patients[:2]).values()
        for value in row.values()
    )


def test_training_notes_what_it_saw(prepared, tmp_path: Path) -> None:  # noqa: F811
    paths = [*prepared, *prepared[:1]]
    train(CONFIG, paths, prepared[:1], tmp_path, device=CPU)
    training_ranges = shift.ranges([load_prepared(path).meta.fingerprint for path in paths])
    assert training_ranges and all(
        read_checkpoint(tmp_path / name, CPU)["seen"] == training_ranges
        for name in ("best.pt", "last.pt")
    )


def test_predict_warns_and_segments_all_the_same(patients: list, tmp_path: Path, capsys) -> None:
    config = CONFIG.with_(spacing_mm=4.0, patch=32)
    torch.manual_seed(0)
    content = {
        "average": UNet(config.filters).state_dict(),
        "seen": shift.ranges([p.meta.fingerprint for p in patients[:12]]),
    }
    write_checkpoint(tmp_path / "c.pt", config, content)
    write_checkpoint(tmp_path / "old.pt", config, {"average": content["average"]})
    usual = make_patient(0, 14, 4.0)
    write_case(tmp_path / "in", "usual", usual.images, None, usual.affine)
    write_case(tmp_path / "in", "mixed", usual.images[[0, 3, 2, 1]], None, usual.affine)
    done = predict_cases([tmp_path / "in"], [tmp_path / "c.pt"], tmp_path / "out")
    said = capsys.readouterr().out
    assert "patient mixed is unlike those" in said and "usual" not in said
    assert [row["case"] for row in done if row["status"] == "done"] == ["mixed", "usual"]
    predict_cases([tmp_path / "in" / "usual"], [tmp_path / "old.pt"], tmp_path / "out")
    assert "not compared" in capsys.readouterr().out


def test_real_patients_are_like_each_other_and_not_when_contrasts_are_mixed_up(real_cases) -> None:
    labeled = [prepare(read_case(case), 2.0) for case in real_cases if case.reference]
    held_out, rest = labeled[:2], labeled[2:]
    training_ranges = shift.ranges([p.meta.fingerprint for p in rest])
    assert not any(shift.outside_ranges(p.meta.fingerprint, training_ranges) for p in held_out)
    # T1CE and T2 mixed up.
    assert all(
        shift.outside_ranges(changed(p, (0, 1, 3, 2), 2.0), training_ranges) for p in held_out
    )
