"""Windows beside MONAI's, flips, post-processing, and whole patients."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import small_volumes, write_case
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference as monai_inference

from brats_helpers.__main__ import main
from brats_helpers.basics.config import Config
from brats_helpers.basics.constants import ED, ET, NCR
from brats_helpers.basics.device import Device
from brats_helpers.basics.errors import BratsError
from brats_helpers.data.cases import Patient, find_cases, read_case
from brats_helpers.evaluation import metrics, scoring, sliding_window
from brats_helpers.evaluation.checkpoints import write_checkpoint
from brats_helpers.evaluation.metrics import dice
from brats_helpers.evaluation.postprocessing import postprocess
from brats_helpers.evaluation.prediction import segment
from brats_helpers.evaluation.scoring import (
    evaluate,
    read_prediction,
    verify_masks,
    write_model_card,
)
from brats_helpers.evaluation.sliding_window import (
    FLIPS,
    sliding_window_inference,
    window_edge,
    window_starts,
)
from brats_helpers.network.unet import UNet
from brats_helpers.phantoms.anatomy import brats_affine

CPU = Device("cpu", "test", 1.0, torch.float32)
CONFIG = Config(preset="quick", filters=(4, 6, 8), patch=16, tta=False)


@pytest.fixture(scope="module")
def model() -> UNet:
    torch.manual_seed(0)
    return UNet((4, 6, 8)).eval()


@given(st.integers(1, 300), st.integers(4, 64), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_windows_cover_the_axis_and_overlap_enough(length: int, patch: int, overlap: float) -> None:
    starts = window_starts(length, patch, overlap)
    assert (
        starts[0] == 0
        and starts == sorted(starts)
        and max(starts[-1] + patch, length) == starts[-1] + patch
    )
    assert all(b - a <= max(1, np.ceil(patch * (1 - overlap))) for a, b in zip(starts, starts[1:]))
    assert length < patch or starts[-1] + patch == length


def test_windows_equal_monais_where_both_choose_the_same_ones(model) -> None:
    image = torch.randn(5, 24, 32, 16)
    ours = sliding_window_inference(model, image, 16, 0.5, device=CPU)
    with torch.inference_mode():
        theirs = monai_inference(image[None], 16, 1, lambda x: torch.sigmoid(model(x)), 0.5,
                                 "gaussian", sigma_scale=0.125)[0]
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3), st.sampled_from([4, 8, 16]),
       st.sampled_from([0.0, 0.25, 0.5]), st.integers(1, 8))
def test_a_voxelwise_network_is_left_as_it_is_by_windows_and_flips(
    shape, patch: int, overlap: float, flips: int
) -> None:
    torch.manual_seed(0)
    pointwise = torch.nn.Conv3d(5, 3, 1)
    image = torch.randn(5, *shape)
    expected = torch.sigmoid(pointwise(image[None]))[0]
    found = sliding_window_inference(pointwise, image, patch, overlap, FLIPS[:flips], CPU)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert len(set(FLIPS)) == 8


def _blocks(*blocks: tuple[int, int, float]) -> np.ndarray:
    """Probabilities (3, 12, 12, 12): sure of WT and TC inside, ET in (corner, edge, value)."""
    p = np.zeros((3, 12, 12, 12), np.float32)
    p[:2, 1:11, 1:11, 1:11] = 0.99
    for corner, edge, value in blocks:
        p[2, corner : corner + edge, corner : corner + edge, corner : corner + edge] = value
    return p


@pytest.mark.parametrize(
    ("blocks", "spacing", "et"),
    [
        (((2, 2, 0.8), (5, 5, 0.95)), 1.0, 125),  # a component of 8 voxels and doubtful: gone
        (((2, 2, 0.95), (5, 5, 0.95)), 1.0, 133),  # as small, and sure: kept
        (((2, 4, 0.8),), 1.0, 0),  # all of ET is 64 mm3 and doubtful: gone
        (((2, 4, 0.95),), 1.0, 64),  # sure: kept
        (((2, 4, 0.8),), 2.0, 64),
    ],
)  # the same voxels at 2 mm are 512 mm3: kept
def test_small_and_doubtful_et_becomes_necrosis(blocks, spacing: float, et: int) -> None:
    labels = postprocess(_blocks(*blocks), [spacing] * 3)
    assert (
        (labels == ET).sum() == et
        and (labels > 0).sum() == 1000
        and set(np.unique(labels)) <= {0, NCR, ET}
    )


@pytest.mark.parametrize(("kind", "dtype", "patch", "size"), [
    ("cpu", torch.float32, 64, 2), ("cpu", torch.float32, 128, 1), ("cpu", torch.bfloat16, 64, 1),
    ("cuda", torch.float16, 128, 2), ("mps", torch.float32, 64, 1)])
def test_two_views_pass_at_once_where_that_is_faster(kind, dtype, patch: int, size: int) -> None:
    assert sliding_window._batch_size(Device(kind, "test", 1.0, dtype), patch) == size


@pytest.mark.parametrize("count", [1, 3, 8])
def test_views_in_pairs_equal_views_one_by_one(model, monkeypatch, count: int) -> None:
    image, batches = torch.randn(5, 16, 18, 16), []

    class Watched(torch.nn.Module):
        def forward(self, copies: torch.Tensor) -> torch.Tensor:
            batches.append(len(copies))
            return model(copies)

    pairs = sliding_window_inference(Watched(), image, 16, 0.5, FLIPS[:count], CPU)
    assert batches == [2] * count  # two windows
    monkeypatch.setattr(sliding_window, "BATCH", 1)
    single = sliding_window_inference(Watched(), image, 16, 0.5, FLIPS[:count], CPU)
    torch.testing.assert_close(pairs, single, atol=1e-5, rtol=0)  # by different kernels


@given(st.integers(1, 200), st.sampled_from([16, 32, 64]), st.floats(0, 0.9),
       st.sampled_from([1, 4, 16]), st.floats(1, 1.5))
def test_a_longer_window_computes_fewer_voxels(length: int, patch: int, overlap: float,
                                               multiple: int, stretch: float) -> None:
    def computed(edge: int) -> int:
        return edge * len(sliding_window.window_starts(length, edge, overlap))

    edge = window_edge(length, patch, overlap, multiple, stretch)
    assert edge % multiple == 0 and patch <= edge <= stretch * patch
    assert edge == patch or computed(edge) < computed(patch)


def test_an_axis_little_longer_than_a_patch_takes_fewer_windows_except_in_other_networks(
    model) -> None:
    edges = [window_edge(n, 64, 0.5, 8, 1.25) for n in (50, 64, 65, 80, 81, 100, 105, 128)]
    assert edges == [64, 64, 72, 80, 64, 72, 72, 64]
    image, seen = torch.randn(5, 19, 16, 40), []
    watch = model.register_forward_hook(lambda _, x, y: seen.append(tuple(x[0].shape)))
    longer = sliding_window_inference(model, image, 16, 0.5, device=CPU, stretch=1.25)
    watch.remove()
    assert seen == [(2, 5, 20, 16, 20), (1, 5, 20, 16, 20)] and longer.shape == (3, 19, 16, 40)
    single = torch.nn.Conv3d(5, 3, 1)
    theirs = [sliding_window_inference(single, image, 16, 0.5, device=CPU, stretch=stretch)
              for stretch in (1.0, 1.25)]
    assert torch.equal(*theirs)


def test_the_chain_of_thresholds() -> None:
    p = np.array([[0.44, 0.46, 0.46, 0.46], [0.99, 0.39, 0.41, 0.41], [0.99, 0.99, 0.39, 0.95]],
                 np.float32)
    assert postprocess(p.reshape(3, 4, 1, 1), (5, 5, 5)).ravel().tolist() == [0, ED, NCR, ET]


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 3))
def test_background_around_the_tumor_changes_nothing(seed: int, around: tuple) -> None:
    p = np.random.default_rng(seed).random((3, 6, 5, 7), np.float32)
    wide = np.pad(p, [(0, 0), *around])
    assert np.array_equal(postprocess(wide, (3, 3, 3)), np.pad(postprocess(p, (3, 3, 3)), around))
    assert not postprocess(0 * p, (3, 3, 3)).any()


def test_segment_returns_to_the_scans_grid(model) -> None:
    images, labels = small_volumes(shape=(33, 26, 17))
    for spacing in (1.0, 2.0):
        patient = Patient("P", images, None, np.diag([1.0, -1.0, 1.0, 1.0]))
        mask, probabilities = segment([model], patient, CONFIG.with_(spacing_mm=spacing),
                                      device=CPU)
        assert mask.shape == labels.shape and probabilities.shape == (3, *labels.shape)
        assert not mask[~images.any(0)].any()


@pytest.fixture
def checkpoint(tmp_path: Path, model) -> Path:
    path = tmp_path / "checkpoints" / "last.pt"
    write_checkpoint(path, CONFIG, {"average": model.state_dict(), "seconds": 1.0})
    return path


def test_predict_writes_masks_with_the_inputs_geometry(checkpoint: Path, tmp_path: Path,
                                                       capsys) -> None:
    images, _ = small_volumes()
    affine = brats_affine(1.0)
    affine[:3, 3] = (3, 5, 7)
    folder = write_case(tmp_path / "new", "P 1", images, None, affine)
    assert (
        main(
            ["predict", str(folder), "--checkpoint", str(checkpoint), "--out",
             str(tmp_path / "masks")]
        )
        == 0
    )
    mask = nib.load(tmp_path / "masks" / "P 1.nii.gz")
    assert mask.shape == images.shape[1:] and np.array_equal(mask.affine, affine)
    assert mask.get_data_dtype() == np.uint8 and set(np.unique(mask.dataobj)) <= {0, 1, 2, 4}
    assert main(["predict", str(tmp_path), "--checkpoint", "none.pt", "--out", str(tmp_path)]) == 1
    assert "none.pt is missing" in capsys.readouterr().err


def test_several_checkpoints_are_averaged_as_probabilities(checkpoint: Path, tmp_path: Path,
                                                           model) -> None:
    torch.manual_seed(1)
    other = UNet((4, 6, 8)).eval()
    write_checkpoint(tmp_path / "fold1.pt", CONFIG, {"average": other.state_dict(), "seconds": 1.0})
    images, _ = small_volumes()
    folder = write_case(tmp_path / "new", "P1", images, None, brats_affine(1.0))
    patient = read_case(find_cases(folder)[0])
    alone = [segment([one], patient, CONFIG, device=CPU)[1] for one in (model, other)]
    labels, together = segment([model, other], patient, CONFIG, device=CPU)
    np.testing.assert_allclose(together, (alone[0] + alone[1]) / 2, atol=1e-6)
    assert not np.allclose(*alone, atol=1e-3)
    both = ["--checkpoint", str(checkpoint), "--checkpoint", str(tmp_path / "fold1.pt")]
    assert main(["predict", str(folder), *both, "--out", str(tmp_path / "masks")]) == 0
    mask = np.asarray(nib.load(tmp_path / "masks" / "P1.nii.gz").dataobj)
    assert (
        np.mean(mask == np.array([0, NCR, ED, 4])[labels]) > 0.98
    )  # predict works in the device's own precision


def test_evaluation_is_written_and_goes_on_after_a_stop(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("A", "B"):
        write_case(tmp_path / "cohort", name, *small_volumes())
    cases = find_cases(tmp_path / "cohort")
    evaluate(cases[:1], checkpoint, tmp_path, CONFIG, "test", CPU)
    first = (tmp_path / "predictions" / "A.nii.gz").stat().st_mtime_ns
    metrics = evaluate(cases, checkpoint, tmp_path, CONFIG, "test", CPU)
    assert (tmp_path / "predictions" / "A.nii.gz").stat().st_mtime_ns == first
    assert (
        metrics["cases"] == 2
        and set(metrics["dice"]) == {"WT", "TC", "ET"}
        and metrics["set"] == "test"
    )
    assert metrics["per_case"][0]["WT"]["dice"] == metrics["per_case"][1]["WT"]["dice"]
    verify_masks(cases, tmp_path)
    patient, mask = read_prediction(cases[0], tmp_path)
    assert metrics["per_case"][0]["WT"]["dice"] == dice(mask > 0, patient.reference > 0)
    write_model_card(tmp_path / "CARD.md", metrics, CONFIG, 7, True, CPU)
    card = (tmp_path / "CARD.md").read_text()
    assert (
        "not for diagnosis" in card
        and "never seen a real patient" in card
        and f"{metrics['dice']['TC']:.3f}" in card
    )
    assert "7 synthetic patients" in card and "2 test patients" in card and "{" not in card
    evaluate(cases[1:], checkpoint, tmp_path, CONFIG, "test", CPU)
    assert [p.name for p in (tmp_path / "predictions").glob("*.nii.gz")] == ["B.nii.gz"]


def test_a_metric_that_is_added_later_is_computed_for_patients_scored_before(
    checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    write_case(tmp_path / "cohort", "A", *small_volumes())
    cases = find_cases(tmp_path / "cohort")
    evaluate(cases, checkpoint, tmp_path, CONFIG, "test", CPU)

    def with_volume(*pair: object) -> dict:
        return {name: {**row, "volume": 1.0} for name, row in metrics.score_case(*pair).items()}

    names = (*metrics.SCORES, "volume")
    monkeypatch.setattr(metrics, "SCORES", names)
    monkeypatch.setattr(scoring, "SCORES", names)
    monkeypatch.setattr(scoring, "score_case", with_volume)
    assert evaluate(cases, checkpoint, tmp_path, CONFIG, "test", CPU)["volume"]["WT"] == 1.0


def test_a_mask_is_read_whatever_the_scans_are_called(tmp_path: Path) -> None:
    images, labels = small_volumes()
    old, new = ("_flair", "_t1", "_t1ce", "_t2", "_seg"), ("-t2f", "-t1n", "-t1c", "-t2w", "-seg")
    for name, endings in (("old", old), ("new", new)):
        case = find_cases(write_case(tmp_path / "cohort", name, images, None, endings=endings))[0]
        (tmp_path / "predictions").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(labels, brats_affine(1.0)),
                 tmp_path / "predictions" / f"{name}.nii.gz")
        assert np.array_equal(read_prediction(case, tmp_path)[1] == ET, labels == 4)


def test_a_damaged_mask_and_one_of_another_scan_are_explained(tmp_path: Path) -> None:
    case = find_cases(write_case(tmp_path / "cohort", "A", *small_volumes()))[0]
    path = tmp_path / "predictions" / "A.nii.gz"
    path.parent.mkdir()
    for content in (None, b"", b"no mask"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BratsError, match="A.nii.gz cannot be read.*evaluate this patient"):
            read_prediction(case, tmp_path)
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), brats_affine(1.0)), path)
    with pytest.raises(BratsError, match="has the shape .2, 3, 4., and patient A's scan"):
        read_prediction(case, tmp_path)


def test_real_scans_are_segmented_on_their_own_grid(real_cases, checkpoint: Path,
                                                    tmp_path: Path) -> None:
    coarse = CONFIG.with_(spacing_mm=4.0, patch=32)
    for case in real_cases:
        patient = read_case(case)
        labels, _ = segment([UNet(coarse.filters).eval()], patient, coarse, device=CPU)
        assert labels.shape == patient.images.shape[1:] and set(np.unique(labels)) <= {0, 1, 2, 3}
