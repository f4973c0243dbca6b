"""The network beside MONAI's DynUNet."""

from __future__ import annotations

import copy
import weakref
from functools import partialmethod

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from brats_helpers.basics.config import PRESETS, Config
from brats_helpers.basics.device import Device, describe_device
from brats_helpers.basics.errors import BratsError
from brats_helpers.evaluation.build import WORTH_COMPILING, compile_for_training, for_inference
from brats_helpers.network import unet
from brats_helpers.network.unet import UNet, count_parameters


def dynunet(filters: tuple[int, ...], supervised: bool = False) -> DynUNet:
    """MONAI's implementation of the same topology."""
    n = len(filters)
    return DynUNet(3, 5, 3, [3] * n, [1] + [2] * (n - 1), [2] * (n - 1), filters=filters,
                   trans_bias=True, norm_name=("INSTANCE", {"affine": True}),
                   act_name=("leakyrelu", {"negative_slope": 0.01}), deep_supervision=supervised,
                   deep_supr_num=2)


def copy_weights(ours: UNet, theirs: DynUNet) -> None:
    """Give both networks the same weights."""

    def pair(stage, block) -> list:
        return [(stage[0][0], block.conv1.conv), (stage[0][1], block.norm1),
                (stage[1][0], block.conv2.conv), (stage[1][1], block.norm2)]

    pairs = []
    for stage, block in zip(
        ours.encoder, [theirs.input_block, *theirs.downsamples, theirs.bottleneck], strict=True
    ):
        pairs += pair(stage, block)
    for up, stage, block in zip(ours.upsample, ours.decoder, theirs.upsamples, strict=True):
        pairs += [(up, block.transp_conv.conv), *pair(stage, block.conv_block)]
    for a, b in [*pairs, (ours.heads[-1], theirs.output_block.conv.conv)]:
        b.load_state_dict(a.state_dict())


def test_full_network_has_dynunets_parameters() -> None:
    with torch.device("meta"):
        assert count_parameters(UNet(PRESETS["full"].filters)) == 50_838_665
        assert count_parameters(dynunet(PRESETS["full"].filters, supervised=True)) == 50_838_665


def test_same_weights_same_output_as_dynunet() -> None:
    torch.manual_seed(0)
    ours, theirs = UNet((4, 8, 12, 16)).eval(), dynunet((4, 8, 12, 16)).eval()
    copy_weights(ours, theirs)
    x = torch.randn(2, 5, 16, 32, 24)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_full_network_runs_forward_and_backward_without_memory() -> None:
    with FakeTensorMode():  # shapes, no numbers
        model = UNet(PRESETS["full"].filters).train()
        outputs = model(torch.empty(1, 5, 128, 64, 64))
        sum(o.mean() for o in outputs).backward()
        assert all(p.grad.shape == p.shape for p in model.parameters())
    assert [tuple(o.shape) for o in outputs] == [(1, 3, 128, 64, 64), (1, 3, 64, 32, 32),
                                                 (1, 3, 32, 16, 16)]


def test_seven_levels_run_forward_and_backward_on_the_smallest_patch() -> None:
    model = UNet([channels // 8 for channels in PRESETS["full"].filters]).train()
    with describe_device().autocast():  # where no hardware knows bf16, it takes minutes a layer
        outputs = model(torch.randn(1, 5, 128, 64, 64))
    assert [tuple(o.shape) for o in outputs] == [(1, 3, 128, 64, 64), (1, 3, 64, 32, 32),
                                                 (1, 3, 32, 16, 16)]
    sum(o.float().mean() for o in outputs).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_checkpointing_changes_nothing_but_memory() -> None:
    plain, frugal = UNet((4, 8, 16)), UNet((4, 8, 16), checkpointing=True)
    frugal.load_state_dict(plain.state_dict())
    x = torch.randn(1, 5, 8, 16, 8)
    for model in (plain, frugal):
        sum(o.square().sum() for o in model.train()(x)).backward()
    for a, b in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.fixture
def compiling(monkeypatch) -> Device:
    """Treat the CPU as a GPU with torch's compiler, which stops before it writes programs."""
    monkeypatch.setattr(unet, "compiled", lambda _: torch.compiler.is_compiling())
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    monkeypatch.setattr(Device, "compiles", True)
    torch.compiler.reset()
    return Device("cpu", "test", 1.0, torch.bfloat16)


def programs() -> int:
    """How many the compiler has been asked for."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_what_is_compiled_for_a_gpu_learns_the_same(compiling: Device) -> None:
    torch.manual_seed(0)
    plain = UNet((4, 8, 16)).train()
    for p in plain.parameters():  # scale and shift of the norm are 1 and 0 before training
        p.data += 0.1 * torch.randn_like(p)
    short, long = copy.deepcopy(plain), copy.deepcopy(plain)
    compile_for_training(short, compiling, WORTH_COMPILING - 1)
    compile_for_training(long, compiling, WORTH_COMPILING)
    x, before = torch.randn(2, 5, 8, 16, 8), programs()
    outputs = [model(x) for model in (plain, short, long)]
    assert programs() == before + 1  # the long training's alone
    for loss in (sum(o.square().mean() for o in found) for found in outputs):
        loss.backward()
    for a, b in zip(outputs[0], outputs[2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    for a, b in zip(plain.parameters(), long.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3)


def test_a_compiled_copy_for_inference_rounds_once_and_serves_the_next_network(
    compiling: Device,
) -> None:
    torch.manual_seed(0)
    models, x = [UNet((4, 8, 16)), UNet((4, 8, 16))], torch.randn(1, 5, 16, 16, 16)
    assert for_inference(models[0], compiling, WORTH_COMPILING - 1) is models[0]
    before = programs()
    with torch.inference_mode(), compiling.autocast():
        for model in models:
            twin = for_inference(model, compiling, WORTH_COMPILING)
            exact = model.float()(x).float()
            assert (
                next(twin.parameters()).dtype == torch.bfloat16
                and next(model.parameters()).dtype == torch.float32
            )
            torch.testing.assert_close(torch.sigmoid(twin(x).float()), torch.sigmoid(exact),
                                       atol=0.03, rtol=0)
    assert programs() == before + 1


@pytest.mark.parametrize(
    "changes",
    [{"patch": 60}, {"patch": 8}, {"learning_rate": 0}, {"fold": 5}, {"ema": 1.0}, {"what": 1}],
)
def test_settings_that_cannot_work_are_refused_by_name(changes: dict) -> None:
    with pytest.raises(BratsError, match=next(iter(changes))):
        PRESETS["quick"].with_(**changes)


def test_config_survives_its_file(tmp_path) -> None:
    config = PRESETS["quick"].with_(seed=7, learning_rate=None)
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == config


def test_inference_frees_the_input_of_a_stage_after_its_first_convolution() -> None:
    model, inputs = UNet((4, 6, 8)).eval(), []
    first, second = (block[0] for block in model.decoder[-1])
    first.register_forward_pre_hook(lambda _, x: inputs.append(weakref.ref(x[0])))
    second.register_forward_pre_hook(lambda *_: inputs.append(inputs[0]() is None))
    with torch.inference_mode():
        model(torch.zeros(1, 5, 16, 16, 16))
    assert inputs[1]


def test_inference_without_gradients_joins_the_same_tensors() -> None:
    torch.manual_seed(0)
    model, x = UNet((4, 6, 8)).eval(), torch.randn(1, 5, 16, 16, 16)
    with torch.no_grad():
        found = model(x)
    assert torch.equal(found, model(x))
