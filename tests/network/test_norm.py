"""Instance norm beside torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from brats_helpers.network.norm import InstanceNorm3d


def both(shape: tuple[int, ...], last: bool,
         dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    """Apply torch's norm and ours to the same input; returns outputs and gradients of each."""
    generator = torch.Generator().manual_seed(0)
    theirs = nn.InstanceNorm3d(shape[1], affine=True)
    for p in theirs.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    x, gradient = (
        5 * torch.randn(shape, generator=generator, dtype=torch.float64) + 3 for _ in range(2)
    )
    results = []
    for kind in (nn.InstanceNorm3d, InstanceNorm3d):
        norm = kind(shape[1], affine=True)
        norm.load_state_dict(theirs.state_dict())
        norm = norm.double() if dtype == torch.float64 else norm
        leaf = x.to(
            dtype, memory_format=torch.channels_last_3d if last else torch.contiguous_format
        ).requires_grad_()
        found = nn.functional.leaky_relu_(norm(leaf), 0.01)  # in place, as the network has it
        found.backward(gradient.to(dtype))  # whose channels come first
        results.append([found.detach(), leaf.grad, norm.weight.grad, norm.bias.grad])
    return results


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.sampled_from([1, 2, 3, 5, 8, 12, 16, 24]),
       st.tuples(*[st.integers(1, 6)] * 3), st.booleans())
def test_equals_torchs_forward_and_backward(batch: int, channels: int, edges: tuple,
                                            last: bool) -> None:
    if edges == (1, 1, 1):
        edges = (2, 1, 1)  # of a single voxel there is no variance
    for theirs, ours in zip(*both((batch, channels, *edges), last), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("channels", [8, 16])
def test_in_bf16_it_is_as_close_to_the_truth_as_torchs_and_leaves_the_channels_last(
    channels: int,
) -> None:
    shape = (2, channels, 16, 24, 16)
    exact = both(shape, True)[0]
    theirs, ours = both(shape, True, torch.bfloat16)
    assert ours[0].is_contiguous(memory_format=torch.channels_last_3d)
    for true, a, b in zip(exact, theirs, ours, strict=True):
        error = [(found.double() - true).norm() / true.norm() for found in (a, b)]
        assert error[1] < 1.5 * error[0] + 1e-4
