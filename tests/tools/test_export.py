"""Export: other tools compute what this module computes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from brats_helpers.__main__ import main
from brats_helpers.basics.config import Config
from brats_helpers.data.cases import read_case
from brats_helpers.data.preprocessing import normalize, prepare
from brats_helpers.evaluation.checkpoints import write_checkpoint
from brats_helpers.network.unet import UNet
from brats_helpers.phantoms.archive import build_cohort
from brats_helpers.tools.export import as_dynunet, export_bundle, export_onnx

CONFIG = Config(filters=(4, 8, 16), patch=32, spacing_mm=4.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("export") / "best.pt"
    write_checkpoint(path, CONFIG, {"average": UNet(CONFIG.filters).state_dict()})
    return path


def test_dynunet_with_the_exported_weights_is_the_same_function() -> None:
    torch.manual_seed(1)
    ours, x = UNet(CONFIG.filters).eval(), torch.randn(2, 5, 32, 40, 32)
    with torch.inference_mode():
        torch.testing.assert_close(as_dynunet(ours, CONFIG)(x), ours(x), atol=1e-5, rtol=1e-4)


def test_onnxruntime_gives_torchs_logits_for_any_batch(checkpoint: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = export_onnx(checkpoint, tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    torch.manual_seed(0)
    model = UNet(CONFIG.filters).eval()
    for batch in (1, 3):
        x = torch.randn(batch, 5, 32, 32, 32)
        with torch.inference_mode():
            wanted = model(x).numpy()
        np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], wanted, atol=1e-3)


def test_monai_verifies_the_bundle_and_it_segments_as_we_do(checkpoint: Path,
                                                            tmp_path: Path) -> None:
    from monai.bundle import ConfigWorkflow, verify_net_in_out

    from brats_helpers.data.archive import extract, find_patients
    root = export_bundle(checkpoint, tmp_path / "bundle")
    config, meta = (str(root / "configs" / f"{name}.json") for name in ("inference", "metadata"))
    verify_net_in_out("network_def", meta, config, device="cpu")
    archive, _ = build_cohort(tmp_path, 0, 1, 0, 4.0)
    extract(archive, tmp_path / "data")
    workflow = ConfigWorkflow(config, meta, logging_file=False, init_id="", final_id="",
                              workflow_type="inference", bundle_root=str(root),
                              dataset_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "eval"))
    workflow.initialize()
    given = workflow.parser.get_parsed_content("dataset")[0]
    case = find_patients(tmp_path / "data").cases[0]
    patient = read_case(case)
    ours = prepare(patient, 4.0)
    wanted = normalize(ours.images, ours.meta.mean, ours.meta.std).transpose(0, 3, 2, 1)
    np.testing.assert_allclose(np.concatenate((given["image"], given["brain"])), wanted, atol=1e-3)
    workflow.run()
    assert torch.is_grad_enabled()  # a bundle is a guest: it leaves the settings as they were
    mask = nib.load(next((tmp_path / "eval").rglob("*_seg.nii.gz")))
    assert mask.shape == patient.images.shape[1:] and set(np.unique(mask.dataobj)) <= {0, 1, 2, 4}
    np.testing.assert_allclose(mask.affine, patient.affine, atol=1e-4)


def test_the_command_writes_both_and_names_a_file_that_is_none(checkpoint: Path, tmp_path: Path,
                                                               capsys) -> None:
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path), "--only",
                 "bundle"]) == 0
    assert (tmp_path / "bundle" / "models" / "model.pt").is_file()
    assert "not for diagnosis" in capsys.readouterr().out
    (tmp_path / "x.pt").write_text("nothing")
    assert main(["export", "--checkpoint", str(tmp_path / "x.pt"), "--out", str(tmp_path)]) == 1
    assert "x.pt" in capsys.readouterr().err
