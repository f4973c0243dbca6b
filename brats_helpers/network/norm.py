"""Instance norm (Ulyanov et al. 2016, arXiv:1607.08022) that keeps the layout of its input.

Torch's own norm puts the channels first and costs two copies of every activation; convolutions on a
CPU want them last. Over one patch instance norm is batch norm, which keeps the layout. A compiler
for GPUs receives the formula, which it fuses with the operations around it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compiled(x: Tensor) -> bool:
    """Return whether a network compiled for the GPU of x runs (`build.compile_for_training`)."""
    return x.device.type == "cuda" and torch.compiler.is_compiling()


class InstanceNorm3d(nn.InstanceNorm3d):
    """`nn.InstanceNorm3d(channels, affine=True)`, the same numbers in the layout of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each channel of each patch of (B, C, D, H, W), then scale and shift it."""
        if compiled(x):
            variance, mean = torch.var_mean(x.float(), (2, 3, 4), correction=0, keepdim=True)
            scale, shift = (p.view(-1, 1, 1, 1) for p in (self.weight, self.bias))
            return ((x - mean) * (variance + self.eps).rsqrt() * scale + shift).to(x.dtype)
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # an export knows torch's norm
            return super().forward(x)
        done = [F.batch_norm(patch, None, None, self.weight, self.bias, True, eps=self.eps)
                for patch in x.split(1)]
        return torch.cat(done) if len(done) > 1 else done[0]
