"""NVIDIA's Optimized U-Net for BraTS21 (Futrega et al. 2021, arXiv:2110.03352, figure 4).

An encoder that halves the volume and widens it, a decoder that does the reverse and looks at the
encoder's activations on the way, and a head that scores three overlapping regions in each voxel.
Same topology, and the same parameter count, as MONAI's `DynUNet` with these settings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..basics.constants import CHANNELS, REGIONS
from .norm import InstanceNorm3d, compiled

SLOPE = 0.01                                          # of LeakyReLU below zero


def channels_last_where_faster(x: Tensor) -> Tensor:
    """The same (B, C, D, H, W), channels last in memory where a convolution is quicker so: on a CPU, and compiled."""
    return x.contiguous(memory_format=torch.channels_last_3d) if x.device.type == "cpu" or compiled(x) else x


class Conv3d(nn.Conv3d):
    """A convolution whose input is laid out by `channels_last_where_faster`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, ...), as `nn.Conv3d`."""
        return super().forward(channels_last_where_faster(x))


class ConvNormAct(nn.Sequential):
    """A 3x3x3 convolution, instance norm (affine) and LeakyReLU; stride 2 halves the volume."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            Conv3d(inputs, outputs, 3, stride, padding=1, bias=False),      # the norm's shift stands in for a bias
            InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
        )


class Stage(nn.Sequential):
    """Two convolutions: all that happens at one level of the network, on one side of it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(ConvNormAct(inputs, outputs, stride), ConvNormAct(outputs, outputs))


class UNet(nn.Module):
    """A U-Net of `len(filters)` levels with deep supervision.

    Input (B, in_channels, D, H, W), each edge a multiple of 2 ** (levels - 1). In training mode the
    output is a list of logits at full, 1/2 and 1/4 resolution, each (B, out_channels, ...); in
    evaluation mode the full-resolution logits alone. The auxiliary heads are always built, so that a
    state dict always loads. `checkpointing` recomputes each stage in the backward pass
    (Chen et al. 2016, arXiv:1604.06174).
    """

    def __init__(self, filters: Sequence[int], in_channels: int = len(CHANNELS), out_channels: int = len(REGIONS),
                 checkpointing: bool = False) -> None:
        super().__init__()
        down = list(zip([in_channels, *filters[:-1]], filters, strict=True))
        up = list(zip(filters[:0:-1], filters[-2::-1], strict=True))
        self.encoder = nn.ModuleList(Stage(a, b, stride=1 if i == 0 else 2) for i, (a, b) in enumerate(down))
        self.upsample = nn.ModuleList(nn.ConvTranspose3d(a, b, 2, stride=2) for a, b in up)
        self.decoder = nn.ModuleList(Stage(2 * b, b) for _, b in up)
        self.heads = nn.ModuleList(Conv3d(b, out_channels, 1) for _, b in up[-3:])   # 1/4, 1/2, full resolution
        self.checkpointing = checkpointing
        self.apply(_initialize)

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        """Logits, finest first in training mode; see the class."""
        skips, decoded = [], []
        for stage in self.encoder:
            x = self._run(stage, x)
            skips.append(x)                           # (B, filters[i], D / 2**i, H / 2**i, W / 2**i)
        x = skips.pop()                               # the bottleneck is its own input, not a skip
        for upsample, stage in zip(self.upsample, self.decoder, strict=True):
            x = self._run(stage, torch.cat((upsample(x), skips.pop()), dim=1))
            decoded.append(x)
        if not self.training:
            return self.heads[-1](x)                  # (B, 3, D, H, W)
        logits = [head(x) for head, x in zip(self.heads, decoded[-len(self.heads):], strict=True)]
        return logits[::-1]

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            return channels_last_where_faster(checkpoint(stage, x, use_reentrant=False))
        return channels_last_where_faster(stage(x))                          # once, for all that read it: the next level, the skip and the head


def _initialize(module: nn.Module) -> None:
    """He's initialization for LeakyReLU (He et al. 2015, arXiv:1502.01852)."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def layers_in_use(model: nn.Module, x: Tensor) -> list[nn.Module]:
    """The layers that have weights, in the order in which a forward pass meets them: how two networks are matched."""
    met: list[nn.Module] = []
    own = [module for module in model.modules() if list(module.parameters(recurse=False))]
    hooks = [module.register_forward_hook(lambda module, *_: met.append(module)) for module in own]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return met


def level_table(filters: Sequence[int], patch: int, in_channels: int = len(CHANNELS)) -> list[dict]:
    """A row a level: name, channels, edge in voxels, parameters and receptive field in voxels.

    The sums are taken from a network that is really built (on the meta device: shapes without memory).
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
    for j, (up, stage) in enumerate(zip(model.upsample, model.decoder, strict=True)):
        i = len(filters) - 2 - j
        rows.append({"level": f"decoder {i}", "channels": filters[i], "edge": patch // 2**i,
                     "parameters": count_parameters(up) + count_parameters(stage), "receptive_field": None})
    rows.append({"level": "heads", "channels": len(REGIONS), "edge": patch,
                 "parameters": count_parameters(model.heads), "receptive_field": None})
    return rows
