"""Instance norm (Ulyanov et al. 2016, arXiv:1607.08022) that keeps the layout of its input.

Torch's own norm returns channels first. Convolutions on a CPU want channels last, so every
activation would be copied twice. Over a single patch, instance norm equals batch norm, which keeps
the layout. A compiler for GPUs gets the formula, which it fuses with the operations around it.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COLUMNS = 64  # width of the rows that `Folded` makes
NARROW = 16  # channels; with fewer, torch's batch norm loses precision in long sums


def compiled(x: Tensor) -> bool:
    """Tell whether this runs in a network compiled for x's GPU (`build.compile_for_training`)."""
    return x.device.type == "cuda" and torch.compiler.is_compiling()


class InstanceNorm3d(nn.InstanceNorm3d):
    """An `nn.InstanceNorm3d(channels, affine=True)` whose output keeps its input's layout."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each channel of each patch of (B, C, D, H, W), then scale and shift it."""
        if compiled(x):
            variance, mean = torch.var_mean(x.float(), (2, 3, 4), correction=0, keepdim=True)
            scale, shift = (p.view(-1, 1, 1, 1) for p in (self.weight, self.bias))
            return ((x - mean) * (variance + self.eps).rsqrt() * scale + shift).to(x.dtype)
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # as in an ONNX export
            return super().forward(x)
        done = [self._one(patch) for patch in x.split(1)]
        return torch.cat(done) if len(done) > 1 else done[0]

    def _one(self, x: Tensor) -> Tensor:
        k = 1
        if self.num_features < NARROW:
            k = gcd(COLUMNS // self.num_features, x[0, 0].numel())
        if k == 1:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, eps=self.eps)
        return Folded.apply(x, self.weight, self.bias, k, self.eps)


class Folded(torch.autograd.Function):
    """The norm of one patch (1, C, D, H, W) with few channels, on rows that are k times as wide.

    The voxels, (N, C), are reshaped to (N / k, k C): column j C + c holds every k-th voxel of
    channel c. Mean and mean square of a channel are the averages of those of its k columns. Torch's
    batch norm with these statistics, repeated k times, then normalizes column by column. Shorter
    sums make it more accurate in float32 than batch norm on (N, C).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, k: int, eps: float) -> Tensor:
        """Compute (x - mean) / sqrt(variance + eps) * weight + bias."""
        rows, channels = _rows(x, k), len(weight)
        one = weight.new_ones(rows.shape[1])
        _, mean, rstd = torch.native_batch_norm(rows, one, 0 * one, None, None, True, 0.0, eps)
        square = (rstd**-2 - eps + mean**2).view(k, channels).mean(0)
        mean = mean.view(k, channels).mean(0)
        variance = square - mean**2
        out = torch.empty_like(x, memory_format=torch.channels_last_3d)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.k, ctx.eps = k, eps
        repeated = (v.repeat(k) for v in (weight, bias, mean, variance))
        torch.native_batch_norm(rows, *repeated, False, 0.0, eps,
                                out=(_rows(out, k), one[:0], one[:0].clone()))  # two unused
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiate the formula with mean and variance fixed, then through these two."""
        (x, weight, mean, variance), k = ctx.saved_tensors, ctx.k
        rows, repeated = _rows(x, k), [v.repeat(k) for v in (weight, mean, variance)]
        grad_fixed, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            _rows(gradient, k), rows, *repeated, None, None, False, ctx.eps, [True] * 3)
        grad_weight, grad_bias = (v.view(k, -1).sum(0) for v in (grad_weight, grad_bias))
        rstd = (variance + ctx.eps).rsqrt()
        scale = weight * rstd / (rows.numel() // len(weight))
        slope = -scale * rstd * grad_weight
        shift = -scale * grad_bias - slope * mean
        slope, shift = (v.repeat(k).to(x.dtype) for v in (slope, shift))
        grad_rows = torch.addcmul(grad_fixed.add_(shift), rows, slope)
        grad_x = grad_rows.view(1, *x.shape[2:], x.shape[1]).permute(0, 4, 1, 2, 3)
        return grad_x, grad_weight, grad_bias, None, None


def _rows(x: Tensor, k: int) -> Tensor:
    return x.permute(0, 2, 3, 4, 1).reshape(-1, k * x.shape[1])  # a view if channels are last
