"""From prepared patients on disk to batches of patches.

A patch is a pure function of the seed and of its number, so that training resumes at any step with
the patches that it would have seen, whatever the number of worker processes. Patches travel as the
integers of the scan; the device that trains turns them into z-scores (`augment.normalize_batch`).
"""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path

import blosc2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..basics.constants import MODALITIES
from ..basics.errors import BratsError
from .preprocessing import Meta
from .storage import map_file, open_mapped, read_meta, read_patch

SHARED = Path("/dev/shm")                             # Linux's shared memory, through which processes hand tensors over


class PatchDataset(Dataset):
    """Patches of an endless, seeded stream that shows every patient as often as `paths` names him.

    `stream[numbers]` are the patches of these numbers, a batch: {"volume": (B, 5, P, P, P), four modalities and the reference
    as stored; "mean", "std": (B, 4) float32; "name", "number": lists}. With probability `oversample_foreground` a patch is centered on a
    tumor voxel, the label chosen first, so that a small compartment is met as often as a large one (Isensee et al. 2021);
    otherwise it lies anywhere in the brain's box.
    """

    def __init__(self, paths: Sequence[Path], patch: int, oversample_foreground: float, seed: int) -> None:
        self.paths, self.patch, self.seed = list(paths), patch, seed
        self.oversample_foreground = oversample_foreground
        self.known: dict[Path, tuple[np.ndarray, Meta]] = {}          # of the patients met before: the file, mapped

    def __getitem__(self, numbers: Sequence[int]) -> dict:
        paths = [self.paths[patient_of(number, len(self.paths), self.seed)] for number in numbers]
        arrays, metas = zip(*map(self._open, paths), strict=True)
        # Integers, or floating point where one of the patients needs it.
        volume = np.empty((len(numbers), arrays[0].shape[0], *[self.patch] * 3), np.result_type(*arrays))
        for number, array, meta, patch in zip(numbers, arrays, metas, volume, strict=True):
            rng = np.random.default_rng([self.seed, 1, number])
            read_patch(array, meta, choose_corner(meta, array.shape[1:], self.patch, self.oversample_foreground, rng), patch)
        mean, std = (torch.tensor([getattr(meta, key) for meta in metas]) for key in ("mean", "std"))
        return {"volume": torch.from_numpy(volume), "mean": mean, "std": std,
                "name": [meta.name for meta in metas], "number": list(numbers)}

    def _open(self, path: Path) -> tuple[blosc2.NDArray, Meta]:
        if path not in self.known:  # mapping a file anew takes a twelfth of a patch's time
            mapped = map_file(path)
            self.known[path] = mapped, read_meta(open_mapped(mapped, path), path)
        mapped, meta = self.known[path]
        return open_mapped(mapped, path), meta

    def __getstate__(self) -> dict:
        return vars(self) | {"known": {}}             # a worker process maps the files itself


def patient_of(index: int, patients: int, seed: int) -> int:
    """Which patient patch `index` is from: each round of `patients` patches is a permutation of its own."""
    order = np.random.default_rng([seed, 0, index // patients]).permutation(patients)
    return int(order[index % patients])


def choose_corner(meta: Meta, shape: Sequence[int], patch: int, oversample_foreground: float,
                  rng: np.random.Generator) -> np.ndarray:
    """The patch's first voxel, (3,) in d h w; negative or too far where the volume is smaller than the patch."""
    low, high = np.zeros(3, int), np.array(shape) - patch
    short = high < 0
    low[short] = high[short] = (high[short] / 2).round()                  # center what is too small
    voxels = [v for v in meta.tumor_voxels.values() if len(v)]
    if voxels and rng.random() < oversample_foreground:
        of_label = voxels[rng.integers(len(voxels))]
        voxel = np.unravel_index(of_label[rng.integers(len(of_label))], shape)
        return np.clip(np.array(voxel) - patch // 2, low, high)
    return rng.integers(low, high + 1)


def batches(dataset: PatchDataset, batch: int, first: int, last: int, workers: int = 0, rank: int = 0,
            processes: int = 1) -> Iterator[dict]:
    """Batches number `first` to `last` - 1 of the stream; volume (B, 5, P, P, P), mean and std (B, 4), names, numbers.

    Of several training processes each deals itself every so-manieth patch and reads no other; B is then its share.
    """
    mine = (range(number * batch + rank, (number + 1) * batch, processes) for number in range(first, last))
    workers = affordable(workers, ceil(batch / processes) * dataset.patch**3, processes)
    for served in DataLoader(_Served(dataset), None, sampler=mine, num_workers=workers, worker_init_fn=_ignore_stop,
                             pin_memory=torch.cuda.is_available()):
        if isinstance(served, BratsError):
            raise served
        yield served


class _Served(Dataset):
    """Batches as a loader's process hands them over: our errors too, which torch would raise with the process's traceback."""

    def __init__(self, dataset: PatchDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, numbers: Sequence[int]) -> dict | BratsError:
        try:
            return self.dataset[numbers]
        except BratsError as error:
            return error


def _ignore_stop(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)      # Ctrl-C reaches every process; training ends its loader's itself


def affordable(workers: int, voxels: int, processes: int = 1) -> int:
    """As many loader processes as there is shared memory for, at most `workers`; says so where they are fewer.

    A container often has 64 MB of it, and a process that gets none hands nothing over and says nothing. Of each, two batches
    of `voxels` are under way, and two more in use; voxels may be float32.
    """
    if not workers or not SHARED.is_dir():
        return workers
    free, size = shutil.disk_usage(SHARED).free, 2 * 4 * (len(MODALITIES) + 1) * voxels * processes
    enough = max(0, min(workers, free // size - 1))
    if enough < workers:
        print(f"{workers} processes that read patches need {(workers + 1) * size / 1e6:.0f} MB of {SHARED}, where "
              f"{free / 1e6:.0f} are free: {enough} will read, and a GPU may wait. "
              "A container gets more with docker run --shm-size=2g.")
    return enough


@contextlib.contextmanager
def explain_killed_worker() -> Iterator[None]:
    """A loader process that somebody has ended becomes a BratsError; torch interrupts whatever is under way."""
    try:
        yield
    except RuntimeError as error:
        first: BaseException | None = error
        while first and "DataLoader worker" not in str(first):
            first = first.__context__                 # a saving that is interrupted raises an error of its own
        if not first:
            raise
        raise BratsError(f"a process that reads patches was ended from outside ({first}), most often because memory ran out. "
                         "What was saved is kept: close other programs, and run it again to go on.") from error
