"""Count what autograd keeps in memory between the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensorMode


def kept_mib(build: Callable[[], nn.Module], shape: Sequence[int], mixed: bool) -> float:
    """Return the MiB that autograd keeps for the backward pass of a network, parameters left out.

    Fake tensors have shapes and no memory, so nothing is computed and any size fits. Memory that
    several layers share counts once. `build` makes the network, `shape` is that of its input, and
    `mixed` stands for bf16 activations. Uses torch.autograd.graph.saved_tensors_hooks.
    """
    kept: dict[int, UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with FakeTensorMode():
        model, x = build(), torch.empty(*shape)
        with (torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
              torch.autocast("cpu", torch.bfloat16, enabled=mixed)):
            model(x)
        for parameter in model.parameters():
            kept.pop(parameter.untyped_storage()._cdata, None)
        return sum(storage.nbytes() for storage in kept.values()) / 2**20
