"""NVIDIA's Optimized U-Net for BraTS21 (Futrega et al. 2021, arXiv:2110.03352, figure 4).

An encoder halves each edge and adds channels. A decoder does the reverse and receives the encoder's
activations through skip connections. A head scores three overlapping regions in each voxel.
Topology and number of parameters are those of MONAI's `DynUNet`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..basics.constants import CHANNELS, REGIONS
from .norm import InstanceNorm3d, compiled

SLOPE = 0.01  # of LeakyReLU below zero


def channels_last_where_faster(x: Tensor) -> Tensor:
    """Convert (B, C, D, H, W) to channels last where convolutions run faster: CPU or compiled."""
    if x.device.type == "cpu" or compiled(x):
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x


class Conv3d(nn.Conv3d):
    """A convolution whose input is laid out by `channels_last_where_faster`."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, inputs, D, H, W) to (B, outputs, ...), as `nn.Conv3d` does."""
        return super().forward(channels_last_where_faster(x))


class ConvNormAct(nn.Sequential):
    """A 3x3x3 convolution, instance norm (affine) and LeakyReLU; stride 2 halves each edge."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            Conv3d(inputs, outputs, 3, stride, padding=1, bias=False),  # the norm has the bias
            InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
        )


class Stage(nn.Sequential):
    """Two convolutions: one level of the encoder or of the decoder."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(ConvNormAct(inputs, outputs, stride), ConvNormAct(outputs, outputs))


class UNet(nn.Module):
    """A U-Net of `len(filters)` levels with deep supervision.

    Input (B, in_channels, D, H, W), each edge a multiple of 2 ** (levels - 1). In training mode the
    output is a list of at most three logits, each (B, out_channels, ...), at full, 1/2 and 1/4
    resolution. In evaluation mode it is the full-resolution logits. `checkpointing` recomputes each
    stage in the backward pass (Chen et al. 2016, arXiv:1604.06174).
    """

    def __init__(self, filters: Sequence[int], in_channels: int = len(CHANNELS),
                 out_channels: int = len(REGIONS), checkpointing: bool = False) -> None:
        super().__init__()
        inputs = [in_channels, *filters[:-1]]
        strides = [1] + [2] * (len(filters) - 1)
        wide, narrow = filters[::-1][:-1], filters[::-1][1:]  # the way up, from the bottleneck
        self.encoder = nn.ModuleList(map(Stage, inputs, filters, strides))
        self.upsample = nn.ModuleList(nn.ConvTranspose3d(w, n, 2, stride=2)
                                      for w, n in zip(wide, narrow, strict=True))
        self.decoder = nn.ModuleList(Stage(2 * n, n) for n in narrow)
        self.heads = nn.ModuleList(Conv3d(n, out_channels, 1) for n in narrow[-3:])  # finest last
        self.checkpointing = checkpointing
        self.apply(_initialize)

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        """Compute the logits, finest first in training mode; see the class."""
        skips = []
        decoded = []
        for stage in self.encoder:
            x = self._run(stage, x)
            skips.append(x)  # (B, filters[i], D / 2**i, H / 2**i, W / 2**i)
        x = skips.pop()  # the bottleneck has no skip connection
        for upsample, stage in zip(self.upsample, self.decoder, strict=True):
            x = self._run(stage, joined(upsample, x, skips))
            decoded.append(x)
        if not self.training:
            return self.heads[-1](x)  # (B, 3, D, H, W)
        finest = decoded[-len(self.heads):]
        return [head(x) for head, x in zip(self.heads, finest, strict=True)][::-1]

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        """Run a stage, and lay its output out once for the next level, the skip and the head.

        Calling the whole stage would keep its input, the largest tensor of inference, to the end.
        """
        if self.checkpointing and self.training:
            return channels_last_where_faster(checkpoint(stage, x, use_reentrant=False))
        for layer in itertools.chain.from_iterable(stage):
            x = layer(x)
        return channels_last_where_faster(x)


def joined(upsample: nn.Module, x: Tensor, skips: list[Tensor]) -> Tensor:
    """Concatenate the upsampled x and the last of the skips, which is removed.

    At inference on a CPU the skip is freed before x is upsampled, which lowers the peak memory.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.cat((upsample(x), skips.pop()), dim=1)
    batch, n, *edges = skips[-1].shape
    both = torch.empty((batch, 2 * n, *edges), dtype=skips[-1].dtype,
                       memory_format=torch.channels_last_3d)
    both[:, n:] = skips.pop()
    both[:, :n] = upsample(x)
    return both


def _initialize(module: nn.Module) -> None:
    """Initialize a convolution for LeakyReLU (He et al. 2015, arXiv:1502.01852)."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def layers_in_use(model: nn.Module, x: Tensor) -> list[nn.Module]:
    """List the layers with weights in the order of a forward pass, to match two networks."""
    met: list[nn.Module] = []
    hooks = [module.register_forward_hook(lambda module, *_: met.append(module))
             for module in model.modules() if list(module.parameters(recurse=False))]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return met
