"""From prepared patients on disk to batches of patches.

A patch is a pure function of the seed and its number, so training can resume at any step with the
same patches, whatever the number of worker processes. Patches travel as the scan's integers; the
training device z-scores them (`preprocessing.normalize_batch`).
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from math import ceil
from multiprocessing import current_process
from pathlib import Path

import blosc2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..basics.constants import MODALITIES
from ..basics.errors import BratsError
from .storage import Meta, map_file, open_mapped, read_meta, read_patch

ORDER, CORNERS, AUGMENTATION = 0, 1, 2  # streams of random numbers of one seed
SHARED = Path("/dev/shm")  # Linux's shared memory, through which processes hand over tensors


class PatchDataset(Dataset):
    """An endless, seeded stream of patches; a patient comes as often as `paths` lists them.

    `dataset[numbers]` is a batch: {"volume": (B, 5, P, P, P), four modalities and the reference as
    stored; "mean", "std": (B, 4) float32; "name" (the file's), "number": lists}. With probability
    `oversample_foreground` a patch is centered on a tumor voxel of a label that is drawn first, so
    small labels are met as often as large ones (Isensee et al. 2021,
    doi:10.1038/s41592-020-01008-z). Otherwise it lies anywhere in the brain's box.
    """

    def __init__(self, paths: Sequence[Path], patch: int, oversample_foreground: float,
                 seed: int) -> None:
        self.paths, self.patch, self.seed = list(paths), patch, seed
        self.oversample_foreground = oversample_foreground
        self.known: dict[Path, tuple[np.ndarray, Meta]] = {}  # mapped bytes of files opened before

    def __getitem__(self, numbers: Sequence[int]) -> dict:
        paths = [self.paths[patient_of(n, len(self.paths), self.seed)] for n in numbers]
        arrays, metas = zip(*map(self._open, paths), strict=True)
        # Integers, or floating point if one of the patients needs it.
        dtype = np.result_type(*arrays)
        volume = np.empty((len(numbers), arrays[0].shape[0], *[self.patch] * 3), dtype)
        for number, array, meta, patch in zip(numbers, arrays, metas, volume, strict=True):
            rng = np.random.default_rng([self.seed, CORNERS, number])
            corner = choose_corner(meta, array.shape[1:], self.patch, self.oversample_foreground,
                                   rng)
            read_patch(array, meta, corner, patch)
        return {"volume": torch.from_numpy(volume), "mean": torch.tensor(
            [meta.mean for meta in metas]), "std": torch.tensor([meta.std for meta in metas]),
                "name": [path.stem for path in paths], "number": list(numbers)}

    def _open(self, path: Path) -> tuple[blosc2.NDArray, Meta]:
        if path not in self.known:  # mapping a file again takes a twelfth of a patch's time
            mapped = map_file(path)
            self.known[path] = mapped, read_meta(open_mapped(mapped, path), path)
        mapped, meta = self.known[path]
        return open_mapped(mapped, path), meta

    def __getstate__(self) -> dict:
        return vars(self) | {"known": {}}  # a worker process maps the files itself


def patient_of(index: int, patients: int, seed: int) -> int:
    """Choose the patient of patch `index`: every `patients` patches form a new permutation."""
    order = np.random.default_rng([seed, ORDER, index // patients]).permutation(patients)
    return int(order[index % patients])


def choose_corner(meta: Meta, shape: Sequence[int], patch: int, oversample_foreground: float,
                  rng: np.random.Generator) -> np.ndarray:
    """Draw a patch's first voxel, (3,) in d h w; below 0 where a smaller volume is centered."""
    low, high = np.zeros(3, int), np.array(shape) - patch
    short = high < 0
    low[short] = high[short] = (high[short] / 2).round()
    labels = [voxels for voxels in meta.tumor_voxels.values() if voxels]
    if labels and rng.random() < oversample_foreground:
        voxels = labels[rng.integers(len(labels))]
        voxel = np.unravel_index(voxels[rng.integers(len(voxels))], shape)
        return np.clip(np.array(voxel) - patch // 2, low, high)
    return rng.integers(low, high + 1)


def batches(dataset: PatchDataset, batch: int, first: int, last: int, workers: int = 0,
            rank: int = 0, processes: int = 1) -> Iterator[dict]:
    """Yield batches number `first` to `last` - 1 of the stream, as `PatchDataset` describes them.

    Of several training processes, each reads every `processes`-th patch from its `rank` on.
    """
    mine = (range(number * batch + rank, (number + 1) * batch, processes)
            for number in range(first, last))
    workers = affordable(workers, ceil(batch / processes) * dataset.patch**3, processes)
    for served in DataLoader(_Served(dataset), None, sampler=mine, num_workers=workers,
                             worker_init_fn=_ignore_stop, pin_memory=torch.cuda.is_available()):
        if isinstance(served, BratsError):
            raise served
        yield served


class _Served(Dataset):
    """A dataset that returns a BratsError; torch would raise it with the worker's traceback."""

    def __init__(self, dataset: PatchDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, numbers: Sequence[int]) -> dict | BratsError:
        try:
            return self.dataset[numbers]
        except BratsError as error:
            return error


def _ignore_stop(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # training ends its workers itself after Ctrl-C


def affordable(workers: int, voxels: int, processes: int = 1) -> int:
    """Limit the loader's workers to what shared memory holds; prints a line if they are fewer.

    A container often has only 64 MB, and a worker without any hangs silently. Each worker prepares
    two batches of `voxels`, up to float32, and two more are in use. Without shared memory on Linux,
    or in a daemonic process, there are no workers.
    """
    if current_process().daemon or (sys.platform == "linux" and not SHARED.is_dir()):
        return 0
    if not workers or not SHARED.is_dir():
        return workers
    free = shutil.disk_usage(SHARED).free
    size = 2 * 4 * (len(MODALITIES) + 1) * voxels * processes
    enough = max(0, min(workers, free // size - 1))
    if enough < workers:
        print(f"{workers} processes that read patches need {(workers + 1) * size / 1e6:.0f} MB of "
              f"{SHARED}, where {free / 1e6:.0f} are free. So {enough or 'none'} of them will "
              "run, and a GPU may wait. "
              "A container gets more with docker run --shm-size=2g.")
    return enough


@contextlib.contextmanager
def explain_killed_worker() -> Iterator[None]:
    """Turn torch's error for a killed loader process into a BratsError."""
    try:
        yield
    except RuntimeError as error:
        # If the error interrupted a save, that raised its own, with torch's as context.
        first: BaseException | None = error
        while first and "DataLoader worker" not in str(first):
            first = first.__context__
        if not first:
            raise
        raise BratsError(f"a process that reads patches was killed ({first}), "
                         "most often because memory ran out. What was saved is kept: close other "
                         "programs, and run it again to go on.") from error
