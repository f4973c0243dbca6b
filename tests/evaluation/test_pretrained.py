"""The network in the box: stored safely, used by default, and for any set of contrasts."""

from __future__ import annotations

import csv
import json
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CONFIG, CPU, write_case
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import zero_shot
from brats_helpers.__main__ import main
from brats_helpers.basics.constants import DISK_ET, ED, MODALITIES, NCR
from brats_helpers.basics.device import describe_device
from brats_helpers.basics.errors import BratsError
from brats_helpers.data.cases import find_cases, incomplete, read_case
from brats_helpers.data.preprocessing import network_input, prepare
from brats_helpers.evaluation.batch import predict_cases
from brats_helpers.evaluation.checkpoints import (
    config_of,
    load_checkpoint,
    read_checkpoint,
    write_checkpoint,
    write_safetensors,
)
from brats_helpers.evaluation.ensemble import load_ensemble
from brats_helpers.evaluation.metrics import dice, regions
from brats_helpers.evaluation.prediction import segment
from brats_helpers.evaluation.pretrained import (
    FINE_TUNING_STEPS,
    REFINER_WEIGHTS,
    WEIGHTS,
    fine_tuned,
    load_pretrained,
)
from brats_helpers.evaluation.refinement import Refiner
from brats_helpers.evaluation.scoring import evaluate
from brats_helpers.evaluation.sliding_window import sliding_window_inference
from brats_helpers.evaluation.trust import expected_dice
from brats_helpers.network.unet import UNet
from brats_helpers.phantoms.kinds import make_patient
from brats_helpers.tools import weights

SUBSETS = [names for n in (1, 2, 3) for names in combinations(range(4), n)]
TEXT = st.binary(max_size=64)


@pytest.fixture(scope="module")
def patient_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("varied")
    patient = make_patient(77, 3, 4.0, "varied")
    on_disk = np.array([0, NCR, ED, DISK_ET], np.uint8)[patient.reference]
    write_case(folder, "P", patient.images, on_disk, patient.affine)
    return folder


def test_the_weights_fit_into_the_package_and_hold_what_predict_needs() -> None:
    content, paths = read_checkpoint(REFINER_WEIGHTS[0], CPU), (WEIGHTS, *REFINER_WEIGHTS)
    assert sum(path.stat().st_size for path in paths) < 16e6
    assert (WEIGHTS.parent / "README.md").is_file()
    assert content["seen"] and content["config"]["modality_dropout"] > 0
    assert len(content["by_modalities"]) == 15 and 0 < content["trust"]["least_dice"] < 1
    for path, config in zip(paths, (weights.CONFIG, *weights.REFINERS), strict=True):
        stored = config_of(read_checkpoint(path, CPU), path)
        assert stored.with_(tta=config.tta) == config  # what `make weights` trains


def test_safetensors_give_back_the_same_network(tmp_path: Path) -> None:
    network = UNet(CONFIG.filters)
    for write, name in ((write_checkpoint, "a.pt"), (write_safetensors, "a.safetensors")):
        write(tmp_path / name, CONFIG, {"average": network.state_dict()})
        loaded, config = load_checkpoint(tmp_path / name, CPU)
        assert config == CONFIG
        for key, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)


@given(TEXT)
def test_any_other_file_called_safetensors_is_refused_in_words(
        tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(BratsError, match="checkpoint"):
        read_checkpoint(path, CPU)


def test_damaged_weights_are_noticed(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", CONFIG,
                      {"average": UNet(CONFIG.filters).state_dict()})
    content = bytearray((tmp_path / "a.safetensors").read_bytes())
    content[-40] ^= 255
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(BratsError, match="checksum"):
        read_checkpoint(tmp_path / "a.safetensors", CPU)


@pytest.mark.parametrize("header", ["null", "[]", "3", '{"format": 1}', "{"])
def test_safetensors_of_another_program_are_refused_in_words(tmp_path: Path, header: str) -> None:
    from safetensors.torch import save_file
    save_file({"w": torch.zeros(2)}, tmp_path / "x.safetensors", {"checkpoint": header})
    with pytest.raises(BratsError, match="checkpoint"):
        read_checkpoint(tmp_path / "x.safetensors", CPU)


def test_predict_without_a_checkpoint_uses_them(patient_folder: Path, tmp_path: Path,
                                                capsys: pytest.CaptureFixture) -> None:
    assert main(["predict", str(patient_folder), "--out", str(tmp_path / "out")]) == 0
    assert "network in the box" in capsys.readouterr().out
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        row, = csv.DictReader(file)
    assert row["status"] == "done" and 0 <= float(row["expected_dice"]) <= 1
    # The benchmark chooses the threshold of the warning on the same figure.
    scores = zero_shot.score(load_ensemble(None, False), find_cases(patient_folder), sets=1)
    assert scores["P"]["expected"] == pytest.approx(float(row["expected_dice"]), abs=6e-4)


def test_predict_adds_the_refiner_to_the_network_in_the_box(tmp_path: Path) -> None:
    patient = make_patient(77, 3, 1.5, "varied")
    write_case(tmp_path, "P", patient.images, None, patient.affine)
    masks, tags = {}, set()
    for name, checkpoints in (("both", None), ("alone", [WEIGHTS])):
        predict_cases([tmp_path / "P"], checkpoints, tmp_path / name)
        masks[name] = np.asarray(nib.load(tmp_path / name / "P.nii.gz").dataobj)
        tags.add(load_ensemble(checkpoints, False).tag)
    assert len(tags) == 2  # so that masks of one are not kept for the other
    first = load_ensemble([WEIGHTS], False)
    loaded = [load_checkpoint(path, first.device) for path in REFINER_WEIGHTS]
    expected, _ = segment(first.models, patient, first.config, False, first.device,
                          refiner=Refiner([model for model, _ in loaded], loaded[0][1]))
    on_disk = np.array([0, NCR, ED, DISK_ET], np.uint8)
    assert np.array_equal(masks["both"], on_disk[expected])
    assert not np.array_equal(masks["both"], masks["alone"])


def test_the_refiner_comes_with_a_network_that_was_trained_briefly_from_the_box(
        tmp_path: Path) -> None:
    content = read_checkpoint(WEIGHTS, CPU)
    config = config_of(content, WEIGHTS).with_(pretrained=True, epochs=1, learning_rate=1e-4)
    for steps in (FINE_TUNING_STEPS, FINE_TUNING_STEPS + 1):
        write_safetensors(tmp_path / f"{steps}.safetensors", config.with_(steps=steps),
                          {name: content[name] for name in ("average", "seen", "step")})
    brief, long = (tmp_path / f"{FINE_TUNING_STEPS + n}.safetensors" for n in (0, 1))
    assert load_ensemble([brief], False).refiner and load_ensemble([brief] * 2, False).refiner
    assert not load_ensemble([long], False).refiner
    assert not load_ensemble([brief, long], False).refiner
    assert not load_ensemble([brief], False).by_modalities  # measured with another network
    assert fine_tuned(config.with_(steps=FINE_TUNING_STEPS))
    for other in ({"pretrained": False}, {"learning_rate": 1e-3}, {"spacing_mm": 1.0}):
        assert not fine_tuned(config.with_(steps=FINE_TUNING_STEPS, **other))


def test_what_is_scored_is_what_predict_writes_with_the_refiner_too(tmp_path: Path) -> None:
    patient, content = make_patient(77, 3, 1.5, "varied"), read_checkpoint(WEIGHTS, CPU)
    write_case(tmp_path / "in", "P", patient.images, patient.reference, patient.affine)
    config = config_of(content, WEIGHTS).with_(pretrained=True, epochs=1, steps=9,
                                               learning_rate=1e-4)
    checkpoint = tmp_path / "last.pt"
    write_checkpoint(checkpoint, config, {"average": content["average"], "seconds": 0.0})
    predict_cases([tmp_path / "in"], [checkpoint], tmp_path / "masks")
    evaluate(find_cases(tmp_path / "in"), checkpoint, tmp_path, config, "test", describe_device())
    one, other = (np.asarray(nib.load(tmp_path / folder / "P.nii.gz").dataobj)
                  for folder in ("masks", "predictions"))
    assert one.any() and np.array_equal(one, other)


@pytest.mark.parametrize("names", [(0, 1, 3), (2,)])
def test_predict_takes_what_is_there_and_says_what_that_costs(
        patient_folder: Path, tmp_path: Path, names: tuple[int, ...]) -> None:
    present = [MODALITIES[n] for n in names]
    for name in present:
        (tmp_path / "P").mkdir(exist_ok=True)
        file = f"P_{name}.nii.gz"
        (tmp_path / "P" / file).write_bytes((patient_folder / "P" / file).read_bytes())
    row, = predict_cases([tmp_path / "P"], None, tmp_path / "out")
    absent = ", ".join(name for name in MODALITIES if name not in present)
    assert row["status"] == "done" and f"has no {absent}: the mask is less exact" in row["warnings"]
    assert "instead of" in row["warnings"]  # the table's figures


def test_what_may_be_the_missing_contrast_and_what_is_odd_is_named(patient_folder: Path,
                                                                   tmp_path: Path) -> None:
    (tmp_path / "P").mkdir()
    for name, file in (("flair", "P_flair"), ("flair", "P_t1"), ("t2", "P_t2 (1)")):
        whole = (patient_folder / "P" / f"P_{name}.nii.gz").read_bytes()
        (tmp_path / "P" / f"{file}.nii.gz").write_bytes(whole)
    row, = predict_cases([tmp_path / "P"], None, tmp_path / "out")
    assert "P_t2 (1).nii.gz is there" in row["warnings"]
    assert "flair and t1 are the same image" in row["warnings"]


def test_a_mask_is_made_anew_when_the_same_file_is_another_contrast(patient_folder: Path,
                                                                    tmp_path: Path) -> None:
    whole = (patient_folder / "P" / "P_flair.nii.gz").read_bytes()
    masks = []
    for name in ("flair", "t1ce"):
        folder = tmp_path / "in" / name
        folder.mkdir(parents=True)
        (folder / "X.nii.gz").write_bytes(whole)
        row, = predict_cases([tmp_path / "in"], None, tmp_path / "out")
        masks.append(row["made_from"])
        (folder / "X.nii.gz").unlink()
    assert masks[0] != masks[1]


def test_a_network_that_never_lacked_a_contrast_refuses(patient_folder: Path,
                                                        tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c.pt", CONFIG, {"average": UNet(CONFIG.filters).state_dict()})
    (tmp_path / "P").mkdir()
    file = "P_flair.nii.gz"
    (tmp_path / "P" / file).write_bytes((patient_folder / "P" / file).read_bytes())
    row, = predict_cases([tmp_path / "P"], [tmp_path / "c.pt"], tmp_path / "out")
    assert row["status"] == "missing contrasts" and "leave out --checkpoint" in row["warnings"]


@pytest.mark.parametrize("names", SUBSETS)
def test_a_missing_contrast_is_zero_for_the_network(patient_folder: Path, tmp_path: Path,
                                                    names: tuple[int, ...]) -> None:
    whole = network_input(prepare(read_case(find_cases(patient_folder)[0]), 4.0), CPU)
    (tmp_path / "P").mkdir()
    for n in names:
        file = f"P_{MODALITIES[n]}.nii.gz"
        (tmp_path / "P" / file).write_bytes((patient_folder / "P" / file).read_bytes())
    case = incomplete(find_cases(tmp_path)[0])
    image = network_input(prepare(read_case(case), 4.0), CPU)
    if image.shape != whole.shape:  # one contrast may end earlier than the others
        return
    for n in range(4):
        assert not image[n].any() if n not in names else (image[n] != 0).any()


def test_expected_dice_of_a_calibrated_network_is_the_dice() -> None:
    rng = np.random.default_rng(0)
    probability = np.clip(1.3 - np.linspace(0, 2, 40)[:, None, None] + np.zeros((40, 40, 40)), 0, 1)
    truth, mask = rng.random(probability.shape) < probability, probability > 0.5
    assert expected_dice(probability, mask) == pytest.approx(dice(mask, truth), abs=0.01)
    assert expected_dice(np.zeros((4, 4, 4)), np.zeros((4, 4, 4), bool)) == 0


def test_it_finds_the_tumor_of_a_varied_phantom() -> None:
    network, config = load_pretrained(CPU)
    prepared = prepare(make_patient(78, 5, 2.0, "varied"), config.spacing_mm)
    found = sliding_window_inference(network, network_input(prepared, CPU), config.patch, 0, [()],
                                     CPU)
    assert dice(found[0].numpy() > 0.5, regions(prepared.reference)[0]) > 0.7


def test_the_header_is_plain_json() -> None:
    size = int.from_bytes(WEIGHTS.read_bytes()[:8], "little")
    header = json.loads(WEIGHTS.read_bytes()[8:8 + size])
    assert set(json.loads(header["__metadata__"]["checkpoint"])) >= {"config", "channels", "seen"}
