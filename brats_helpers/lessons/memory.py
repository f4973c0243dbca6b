"""Measure what autograd keeps in memory between the forward and the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def kept_mib(model: nn.Module, x: Tensor, mixed: bool) -> float:
    """Return the MiB that autograd keeps for the backward pass of model(x), parameters left out.

    Each tensor counts once, however many layers keep it. mixed: with bf16 activations. Uses
    torch.autograd.graph.saved_tensors_hooks.
    """
    kept: dict[int, int] = {}
    own = {p.data_ptr() for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
          torch.autocast("cpu", torch.bfloat16, enabled=mixed)):
        model(x)
    return sum(kept.values()) / 2**20
