"""What autograd keeps is counted in bytes, and recomputing keeps less."""

from __future__ import annotations

import contextlib

import pytest
from torch import nn

from brats_helpers.lessons import memory
from brats_helpers.network.unet import UNet


def test_a_linear_layer_keeps_its_input_alone() -> None:
    def layers() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))

    assert memory.kept_mib(layers, (16, 4), False) * 2**20 == 16 * (4 + 8) * 4


@pytest.mark.parametrize(("count", "mixed"), [(1, False), (2, False), (2, True)])
def test_fake_tensors_are_counted_as_real_ones_are(monkeypatch, count: int, mixed: bool) -> None:
    counts = []
    for _ in range(2):
        counts.append([memory.kept_mib(lambda: UNet((4, 8, 8), checkpointing=on),  # noqa: B023
                                       (count, 5, 16, 16, 16), mixed) for on in (False, True)])
        monkeypatch.setattr(memory, "FakeTensorMode", contextlib.nullcontext)  # the second time
    assert counts[0] == pytest.approx(counts[1], rel=1e-3)
    assert mixed or counts[0][1] < counts[0][0] / 2


def test_a_network_that_fits_no_laptop_is_counted() -> None:
    assert memory.kept_mib(lambda: UNet((64, 96, 128)), (8, 5, 256, 256, 256), False) > 2**17
