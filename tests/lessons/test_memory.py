"""What autograd keeps is counted in bytes, and recomputing it keeps less."""

from __future__ import annotations

import torch
from torch import nn

from brats_helpers.lessons.memory import kept_mib
from brats_helpers.network.unet import UNet


def test_a_linear_layer_keeps_its_input_alone() -> None:
    layers = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    assert kept_mib(layers, torch.ones(16, 4), False) * 2**20 == 16 * (4 + 8) * 4


def test_checkpointing_keeps_less() -> None:
    x = torch.randn(1, 5, 16, 16, 16)
    plain, again = (kept_mib(UNet((4, 8, 8), checkpointing=on).train(), x, False)
                    for on in (False, True))
    assert again < plain / 2
