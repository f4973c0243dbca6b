"""Other networks than the U-Net: any can be trained, and a checkpoint runs none unasked."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import CONFIG, CPU, small_volumes, write_case
from torch import nn

from brats_helpers.__main__ import main
from brats_helpers.basics.errors import BratsError
from brats_helpers.evaluation.build import build_network
from brats_helpers.evaluation.checkpoints import load_checkpoint, write_checkpoint
from brats_helpers.network.losses import deep_supervision_loss
from brats_helpers.network.unet import UNet
from brats_helpers.tools.export import export_bundle, export_onnx
from brats_helpers.training.loop import train
from brats_helpers.training.state import new_state

SEGRESNET = "monai.networks.nets:SegResNet"
MODULE = """import torch

class Flat(torch.nn.Conv3d):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 1)

NOTHING = 1
"""


class Point(nn.Module):
    """The smallest network that there is, in training with a coarse output beside the fine one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.head = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor] | torch.Tensor:
        return [self.head(x), self.head(x[..., ::2, ::2, ::2])] if self.training else self.head(x)


@pytest.fixture
def module(tmp_path: Path, monkeypatch) -> str:
    """A module that is to be found and that nobody has imported."""
    (tmp_path / "elsewhere.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "elsewhere"
    sys.modules.pop("elsewhere", None)


def test_one_parameter_changes_the_network_and_the_default_is_ours() -> None:
    torch.backends.cudnn.benchmark = False
    assert isinstance(build_network(CONFIG, CPU), UNet) and torch.backends.cudnn.benchmark
    torch.manual_seed(0)
    model = build_network(CONFIG.with_(network=SEGRESNET), CPU)
    assert type(model).__name__ == "SegResNet" and model.training
    assert tuple(model(torch.zeros(1, 5, 16, 16, 16)).shape) == (1, 3, 16, 16, 16)


def test_a_single_tensor_is_a_list_of_one_for_the_loss() -> None:
    logits, target = torch.randn(2, 3, 8, 8, 8), torch.randint(0, 2, (2, 3, 8, 8, 8)).float()
    assert torch.equal(deep_supervision_loss(logits, target),
                       deep_supervision_loss([logits], target))


def test_monais_network_trains_resumes_and_comes_back_from_its_checkpoint(
    prepared, tmp_path: Path
) -> None:  # noqa: F811
    config = CONFIG.with_(network=SEGRESNET, epochs=1, steps=2)
    history = train(config, prepared[:3], prepared[3:], tmp_path, device=CPU)
    assert history == train(config, prepared[:3], prepared[3:], tmp_path, device=CPU)
    model, again = load_checkpoint(tmp_path / "best.pt", CPU)
    assert again == config and type(model).__name__ == "SegResNet"
    with pytest.raises(BratsError, match="describes the U-Net.*--only onnx"):
        export_bundle(tmp_path / "best.pt", tmp_path / "bundle")


def test_a_class_of_the_notebook_itself_trains(prepared, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "Point", Point, raising=False)
    # The U-Net would not take a patch of 15.
    config = CONFIG.with_(network="__main__:Point", epochs=1, steps=2, patch=15)
    train(config, prepared[:3], prepared[3:], tmp_path, device=CPU)
    assert isinstance(load_checkpoint(tmp_path / "best.pt", CPU)[0], Point)
    if importlib.util.find_spec("onnxscript"):
        assert export_onnx(tmp_path / "best.pt", tmp_path / "m.onnx").stat().st_size > 1000
    monkeypatch.delattr(sys.modules["__main__"], "Point")
    with pytest.raises(BratsError, match="define the class in the notebook"):
        load_checkpoint(tmp_path / "best.pt", CPU)


def test_a_checkpoint_imports_nothing_until_its_reader_has(module: str, tmp_path: Path,
                                                           capsys) -> None:
    config = CONFIG.with_(network=f"{module}:Flat")
    write_checkpoint(tmp_path / "c.pt", config, {"average": nn.Conv3d(5, 3, 1).state_dict()})
    with pytest.raises(BratsError, match="trust it, import elsewhere first"):
        load_checkpoint(tmp_path / "c.pt", CPU)
    assert module not in sys.modules
    write_case(tmp_path / "P00", "P00", *small_volumes())
    arguments = ["predict", str(tmp_path / "P00"), "--checkpoint", str(tmp_path / "c.pt"), "--out",
                 str(tmp_path / "masks")]
    assert (
        main(arguments) == 1
        and "--import elsewhere" in capsys.readouterr().err
        and module not in sys.modules
    )
    shutil.rmtree(tmp_path / "P00")  # no patient is left
    assert main([*arguments, "--import", module]) == 1 and "trust" not in capsys.readouterr().err
    assert type(load_checkpoint(tmp_path / "c.pt", CPU)[0]).__name__ == "Flat"


@pytest.mark.parametrize(
    "name",
    ["os:system", "builtins:eval", "torch:load", "torch:nn", "torch.nn:Missing",
     "monai.networks.nets:sys", "subprocess:Popen", "elsewhere:NOTHING"],
)
def test_what_is_no_network_is_never_called(name: str, module: str) -> None:
    for from_checkpoint in (True, False):
        with pytest.raises(BratsError, match="no torch.nn.Module of that name|trust it"):
            build_network(CONFIG.with_(network=name), CPU, from_checkpoint)


@pytest.mark.parametrize(
    ("name", "message"),
    [("SegResNet", "must be 'unet', or 'module:Class'"), ("a/b:C", "must be 'unet'"),
     ("nowhere_at_all:Net", "is not there"),
     ("monai.networks.nets:UNet", "channels, strides.*class of your own"),
     ("monai.networks.nets:DenseNet121", "into .1, 3."),
     ("torch.nn:Identity", "differs in in_channels, out_channels"),
     ("torch.nn:Conv3d", "kernel_size")],
)
def test_networks_that_do_not_fit_are_explained_before_training(name: str, message: str) -> None:
    with pytest.raises(BratsError, match=message):
        new_state(CONFIG.with_(network=name, patch=32), CPU)


def test_a_patch_that_a_network_cannot_take_is_said_at_once() -> None:
    with pytest.raises(BratsError, match="SwinUNETR cannot take a patch of 16.*multiple of 32"):
        build_network(CONFIG.with_(network="monai.networks.nets:SwinUNETR"), CPU)


@pytest.mark.parametrize(("name", "said"), [
    ("no.such.module", "No module named 'no'.*for a file of your own.*no/such/module.py"),
    ("../x.py", "not the name of a module: write --import x; .*PYTHONPATH"),
    ("", "not the name of a module"),
    ("broken", "failed .ValueError: odd.: correct the module"),
    ("leaves", "failed .SystemExit: 3.: correct"),
    ("needs", "No module named 'elsewhere_2'.: correct the module, or install what it needs")])
def test_a_module_that_cannot_be_imported_is_named(name: str, said: str, tmp_path: Path,
                                                   monkeypatch, capsys) -> None:
    for module, text in (("broken", "raise ValueError('odd')"), ("leaves", "raise SystemExit(3)"),
                         ("needs", "import elsewhere_2")):
        (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["predict", "in", "--out", str(tmp_path / "out"), "--import", name]) == 1
    assert re.search(f"--import '?{name}.*{said}", capsys.readouterr().err)
