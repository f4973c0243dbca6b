"""From prepared patients on disk to batches of patches.

A patch is a pure function of the seed and of its number, so that training resumes at any step with
the patches that it would have seen, whatever the number of worker processes. Patches travel as the
integers of the scan; the device that trains turns them into z-scores (`augment.normalise_batch`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .preprocessing import Meta, open_volume


class PatchDataset(Dataset):
    """Patch number i of an endless, seeded stream that shows every patient as often as `paths` names him.

    An item is {"volume": (5, P, P, P), four modalities and the reference as stored; "mean", "std":
    (4,) float32; "name": str; "number": i}. With probability `foreground` the patch is centred on a tumor voxel,
    the label chosen first, so that a small compartment is met as often as a large one (Isensee et
    al. 2021); otherwise it lies anywhere in the brain's box.
    """

    def __init__(self, paths: Sequence[Path], patch: int, foreground: float, seed: int) -> None:
        self.paths, self.patch, self.foreground, self.seed = list(paths), patch, foreground, seed

    def __getitem__(self, index: int) -> dict:
        path = self.paths[patient_of(index, len(self.paths), self.seed)]
        volume, meta = open_volume(path)
        rng = np.random.default_rng([self.seed, 1, index])
        corner = choose_corner(meta, volume.shape[1:], self.patch, self.foreground, rng)
        return {"volume": read_patch(volume, corner, self.patch), "name": meta.name, "number": index,
                "mean": np.asarray(meta.mean, np.float32), "std": np.asarray(meta.std, np.float32)}

    def __len__(self) -> int:
        return np.iinfo(np.int64).max                 # the stream has no end; the sampler says which numbers are wanted


def patient_of(index: int, patients: int, seed: int) -> int:
    """Which patient patch `index` is from: each round of `patients` patches is a permutation of its own."""
    order = np.random.default_rng([seed, 0, index // patients]).permutation(patients)
    return int(order[index % patients])


def choose_corner(meta: Meta, shape: Sequence[int], patch: int, foreground: float,
                  rng: np.random.Generator) -> np.ndarray:
    """The patch's first voxel, (3,) in d h w; negative or too far where the volume is smaller than the patch."""
    low, high = np.zeros(3, int), np.array(shape) - patch
    short = high < 0
    low[short] = high[short] = (high[short] / 2).round()                  # centre what is too small
    voxels = [v for v in meta.tumor_voxels.values() if len(v)]
    if voxels and rng.random() < foreground:
        of_label = voxels[rng.integers(len(voxels))]
        return np.clip(np.asarray(of_label[rng.integers(len(of_label))]) - patch // 2, low, high)
    return rng.integers(low, high + 1)


def read_patch(volume: np.ndarray, corner: Sequence[int], patch: int) -> np.ndarray:
    """(C, P, P, P) from `corner` on; zeros, which are background, where the volume ends."""
    first = np.maximum(corner, 0)
    last = np.minimum(np.add(corner, patch), volume.shape[1:])
    inside = volume[:, first[0]:last[0], first[1]:last[1], first[2]:last[2]]
    if inside.shape[1:] == (patch,) * 3:
        return inside
    before = first - corner
    around = [(0, 0), *zip(before, patch - before - inside.shape[1:], strict=True)]
    return np.pad(inside, around)


def batches(dataset: PatchDataset, batch: int, first: int, last: int, workers: int = 0, rank: int = 0,
            processes: int = 1) -> Iterator[dict]:
    """Batches number `first` to `last` - 1 of the stream; volume (B, 5, P, P, P), mean and std (B, 4), names, numbers.

    Of several training processes each deals itself every so-manieth patch and reads no other; B is then its share.
    """
    mine = range(first * batch + rank, last * batch, processes)
    return iter(DataLoader(dataset, batch // processes, sampler=mine, num_workers=workers, collate_fn=collate,
                           pin_memory=torch.cuda.is_available()))


def collate(items: Sequence[dict]) -> dict:
    """A batch of `PatchDataset` items; integers, or floating point where one of the patients needs it."""
    arrays = {key: torch.from_numpy(np.stack([item[key] for item in items])) for key in ("volume", "mean", "std")}
    return {**arrays, **{key: [item[key] for item in items] for key in ("name", "number")}}
