"""One training in several processes, each with a GPU or with a part of the CPU.

torchrun starts the processes, tells each its rank by environment variables, and restarts all if one
dies (https://docs.pytorch.org/docs/stable/elastic/run.html). DistributedDataParallel averages their
gradients (Li et al. 2020, arXiv:2006.15704). In a single process the functions here return what
they receive.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel

from ..basics.errors import BratsError, Stopped

MISSING = object()
STARTED = "BRATS_STARTED"  # names the file that exists while the processes are together


def world_size() -> int:
    """Count the processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number; rank 0 writes the files."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def group() -> Iterator[None]:
    """Connect the processes that torchrun started, each on its own GPU if there are any.

    Only rank 0 prints to stdout. BratsError if there are fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    started = Path(os.environ.get(STARTED, os.devnull))
    if started.is_file() and os.environ["RANK"] == "0":
        started.unlink()  # this is a restart
    gpus = torch.cuda.device_count()
    local = int(os.environ["LOCAL_RANK"])
    if gpus and local >= gpus:
        raise BratsError(f"each training process needs its own GPU, and this machine has {gpus}: "
                         f"start it with --nproc-per-node {gpus}.")
    if gpus:
        torch.cuda.set_device(local)
    store, own_rank, size = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # The store keeps addresses of processes that died: use new keys after a restart.
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size)
    _meet(["cpu", "cuda"] if gpus else ["cpu"])
    if started != Path(os.devnull):
        started.touch()
    with (open(os.devnull, "w", encoding="utf-8") as nowhere,
          redirect_stdout(nowhere if rank() else sys.stdout)):
        yield
    dist.destroy_process_group()  # not after an error: it would wait for processes that died


def _meet(kinds: Sequence[str]) -> None:
    """Exchange a number on each kind of device; RuntimeError if the sum is wrong."""
    for kind in kinds:
        total = all_reduce_sum(torch.ones(1, device=kind)).item()
        if total != world_size():
            raise RuntimeError(f"{world_size()} processes add up to {total:g} on {kind}")


def parallel(model: nn.Module) -> nn.Module:
    """Wrap the network so that its gradients become the mean over all processes."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


class _AllReduceSum(torch.autograd.Function):
    """The sum over all processes. Their losses depend on every part, so gradients add up too.

    `torch.distributed.nn.functional.all_reduce` does the same, but is deprecated.
    """

    @staticmethod
    def forward(_: Any, part: Tensor) -> Tensor:
        whole = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _AllReduceSum.apply(gradient)


def all_reduce_sum(part: Tensor) -> Tensor:
    """Sum a tensor over all processes; gradients flow through."""
    return _AllReduceSum.apply(part) if world_size() > 1 else part


def all_reduce_mean(value: Tensor) -> Tensor:
    """Average a tensor over all processes, to the same bits on each; no gradients."""
    return all_reduce_sum(value.detach()) / world_size()


def any_rank(*flags: bool) -> list[bool]:
    """Return each flag as True if it is True on any rank; all must call it, or they deadlock."""
    if world_size() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes]


def gather(mine: Sequence) -> list:
    """Join the shares of all processes (`items[rank()::world_size()]`) in their original order."""
    shares: list = [list(mine)] * world_size()
    if world_size() > 1:
        dist.all_gather_object(shares, list(mine))
    items = chain(*zip_longest(*shares, fillvalue=MISSING))
    return [item for item in items if item is not MISSING]


def broadcast_from_rank_zero(make: Callable[[], Any]) -> Any:
    """Call a function on rank 0 and return its result on all ranks."""
    result = [make() if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(result)
    return result[0]


def barrier() -> None:
    """Wait for all processes."""
    any_rank(True)


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run a block on rank 0, and then on the other ranks."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()
    barrier()


def as_worker(work: Callable[[], int]) -> int:
    """Do the work, and report an error to torchrun if it started this process.

    Torchrun does not restart after a BratsError, because that would not help.
    """
    if not dist.is_torchelastic_launched():
        return work()
    torchrun = os.getppid()
    try:
        return record(work)()
    except BratsError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        if torchrun != 1 and os.getppid() == torchrun:  # else another rank has ended it already
            os.kill(torchrun, signal.SIGTERM)
        return 130 if isinstance(error, Stopped) else 1
