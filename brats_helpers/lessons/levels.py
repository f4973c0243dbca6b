"""Describe the levels of a U-Net: what each adds, and how far it sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..basics.constants import CHANNELS, REGIONS
from ..network.unet import UNet, count_parameters


def level_table(filters: Sequence[int], patch: int,
                in_channels: int = len(CHANNELS)) -> list[dict]:
    """List the levels: name, channels, edge, parameters and receptive field, lengths in voxels.

    Counts the parameters of a network built on the meta device (shapes without memory).
    """
    with torch.device("meta"):
        model = UNet(filters, in_channels)
    rows, field, step = [], 1, 1
    for i, stage in enumerate(model.encoder):
        for conv in (block[0] for block in stage):
            field += (conv.kernel_size[0] - 1) * step
            step *= conv.stride[0]
        rows.append({"level": f"encoder {i}", "channels": filters[i], "edge": patch // 2**i,
                     "parameters": count_parameters(stage), "receptive_field": field})
    for j, stages in enumerate(zip(model.upsample, model.decoder, strict=True)):
        i = len(filters) - 2 - j
        rows.append({"level": f"decoder {i}", "channels": filters[i], "edge": patch // 2**i,
                     "parameters": sum(map(count_parameters, stages)), "receptive_field": None})
    rows.append({"level": "heads", "channels": len(REGIONS), "edge": patch,
                 "parameters": count_parameters(model.heads), "receptive_field": None})
    return rows
