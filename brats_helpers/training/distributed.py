"""One training on several processes, each with a GPU or with a part of the CPU, that add up what they find.

torchrun starts the processes, says by environment variables which is which, and replaces those that die
(https://docs.pytorch.org/docs/stable/elastic/run.html). Gradients are averaged by DistributedDataParallel (Li et al.
2020, arXiv:2006.15704). In a single process the functions here give back what they get.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel

from ..basics.errors import BratsError, Stopped

NOBODY = object()


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; 0 writes the files."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def group() -> Iterator[None]:
    """Within it the processes that torchrun started work together, each on its own GPU where there are any.

    Only the first one's stdout is seen. BratsError where there are fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    gpus, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if gpus and local >= gpus:
        raise BratsError(f"a GPU serves one training process, and this machine has {gpus}: --nproc-per-node {gpus}.")
    if gpus:
        torch.cuda.set_device(local)
    store, me, everyone = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:   # torchrun keeps the addresses of those that died
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=me, world_size=everyone)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
        yield
    dist.destroy_process_group()                      # not after an error: it would wait for those that have died


def parallel(model: nn.Module) -> nn.Module:
    """The network, whose gradients become the mean over all processes as they are computed."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True) if world_size() > 1 else model


class _Sum(torch.autograd.Function):
    """The sum over processes. Each process's loss depends on each one's part: so gradients are summed as well."""

    @staticmethod
    def forward(_: Any, part: Tensor) -> Tensor:
        whole = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def all_reduce_sum(part: Tensor) -> Tensor:
    """The sum of a tensor over all processes, through which gradients flow."""
    return _Sum.apply(part) if world_size() > 1 else part


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, the same to the bit on each; no gradients."""
    return all_reduce_sum(value.detach()) / world_size()


def any_rank(*flags: bool) -> list[bool]:
    """Each flag as True where it is True in any process: what none may decide for itself, or the others would wait."""
    if world_size() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes]


def gather(mine: Sequence) -> list:
    """What was dealt out to the processes one at a time (`items[rank()::world_size()]`), together and in its order again."""
    hands: list = [list(mine)] * world_size()
    if world_size() > 1:
        dist.all_gather_object(hands, list(mine))
    return [item for item in chain(*zip_longest(*hands, fillvalue=NOBODY)) if item is not NOBODY]


def broadcast_from_rank_zero(make: Callable[[], Any]) -> Any:
    """The result of a function that the first process calls for all of them."""
    result = [make() if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(result)
    return result[0]


def barrier() -> None:
    """Until all processes are here."""
    any_rank(True)


def as_worker(work: Callable[[], int]) -> int:
    """Do the work; where torchrun has started this process, tell it of an error, and not to restart after a BratsError."""
    if not dist.is_torchelastic_launched():
        return work()
    agent = os.getppid()
    try:
        return record(work)()
    except BratsError as error:                       # a restart does not mend what a person has to
        print(f"\n{error}", file=sys.stderr, flush=True)
        if os.getppid() == agent != 1:                # it may have ended since, told by another process
            os.kill(agent, signal.SIGTERM)
        return 130 if isinstance(error, Stopped) else 1
