"""A prepared patient as one compressed file, and patches read from it."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path

import blosc2
import numpy as np
import torch

from ..basics.constants import MODALITIES
from ..basics.errors import BratsError
from ..basics.files import atomic_path, isal_zlib
from .preprocessing import Meta, Prepared

FORMAT = 5                                            # of a prepared file
AGAIN = "run notebook 03 again, which makes it anew"
# A seventh more bytes than zstd, and a patch in two thirds of the time (benchmarks/README.md).
COMPRESSION = {"codec": blosc2.Codec.LZ4HC, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
ROWS = 8                                              # of a channel, in all slices: a block, decompressed as a whole


# ---------------------------------------------------------------- files

def save(prepared: Prepared, path: Path) -> None:
    """Write a prepared patient as one Blosc2 array: LZ4 over shuffled integers, its Meta among the metadata."""
    _, depth, height, width = prepared.volume.shape
    with atomic_path(path) as temporary:
        temporary.unlink()                            # Blosc2 makes the file itself
        array = blosc2.asarray(prepared.volume, urlpath=str(temporary), chunks=(1, depth, height, width),
                               blocks=(1, depth, min(ROWS, height), width), cparams=COMPRESSION)
        # As JSON: Blosc2's own encoding of nested lists fails on empty ones before some 4.x.
        array.schunk.vlmeta["meta"] = json.dumps({"format": FORMAT, "checksum": checksum(prepared), **prepared.meta.to_json()})


def checksum(prepared: Prepared) -> int:
    """CRC-32 of the voxels and of what is known of them: a disk's silent error must not become a network's."""
    return isal_zlib.crc32(np.ascontiguousarray(prepared.volume), zlib.crc32(json.dumps(prepared.meta.to_json()).encode()))


def open_volume(path: Path) -> tuple[blosc2.NDArray, Meta]:
    """A prepared file, opened: an array (5, D, H, W) that decompresses what is asked of it, and its Meta.

    Patches are read unchecked, for speed; `prepared_files` and `load` compare the checksum.
    """
    array = _open(path)
    return array, Meta.from_json(_stored(array, path))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a damaged file raises becomes a BratsError; a SyntaxError is NumPy's, from what should name a type."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, SyntaxError) as error:
        raise BratsError(f"{path} is damaged ({error}): {AGAIN}.") from error


def _open(path: Path) -> blosc2.NDArray:
    if not Path(path).is_file():
        raise BratsError(f"{path} is missing: run notebook 03 first, which prepares the patients.")
    with _reading(path):                              # mapped: read where it is looked at, and the file does not stay open
        mapped = torch.from_file(str(path), size=Path(path).stat().st_size, dtype=torch.uint8).numpy()
    return open_mapped(mapped, path)


def open_mapped(mapped: np.ndarray, path: Path) -> blosc2.NDArray:
    """The array in a prepared file's bytes, (N,) uint8, which are not copied: what `open_volume` keeps as its `mapped`."""
    with _reading(path):
        array = blosc2.ndarray_from_cframe(mapped)    # what `blosc2.open` does too, after much else
        array.mapped = mapped                         # kept as long as the array, by old versions as well
        if array.chunks != (1, *array.shape[1:]) or array.schunk.nchunks != len(array):
            raise ValueError(f"a shape of {array.shape}")
    return array


def _stored(array: blosc2.NDArray, path: Path) -> dict:
    with _reading(path):
        text = array.schunk.vlmeta["meta"]
        stored = json.loads(text) if isinstance(text, str) else {}
        if stored.pop("format", None) != FORMAT:
            raise BratsError(f"{path} was written by another version: {AGAIN}.")
    return stored


def read_patch(array: blosc2.NDArray, meta: Meta, corner: Sequence[int], into: np.ndarray) -> None:
    """Fill (5, d, h, w) with the voxels from `corner` on, (3,) in d h w; with 0, the background, outside of the volume.

    Slicing the array gives the same, later: here each block is still in the processor's cache when what is wanted of it
    is copied to its place, and what has no tumor in the reference is not read.
    """
    _, depth, height, width = array.shape
    rows, schunk = array.blocks[2], array.schunk
    first, last = np.maximum(corner, 0).tolist(), np.minimum(np.add(corner, into.shape[1:]), array.shape[1:]).tolist()
    d, h, w = (slice(a - c, b - c) for a, b, c in zip(first, last, corner, strict=True))
    block = np.empty((depth, rows, width), array.dtype)
    wanted = block[first[0]:last[0], :, first[2]:last[2]]
    narrow = wanted.shape[::2] != into.shape[1::2]
    tumor = range(meta.tumor_rows[0] // rows, ceil(meta.tumor_rows[1] / rows))
    pieces = []                                       # a block's number, what is wanted of its rows, and where that goes
    for number in range(first[1] // rows, ceil(last[1] / rows)):
        low, high = max(number * rows, first[1]), min((number + 1) * rows, last[1])
        pieces.append((number, slice(low - number * rows, high - number * rows), slice(low - corner[1], high - corner[1])))
    into[:, :, :h.start] = into[:, :, h.stop:] = 0
    for channel, place in enumerate(into):
        for number, some, there in pieces:
            if channel == len(MODALITIES) and number not in tumor:
                place[:, there] = 0
                continue
            begin = (channel * ceil(height / rows) + number) * block.size
            schunk.get_slice(begin, begin + block.size, block)
            if narrow:                                # while it is in the cache, too
                place[:, there] = 0
            place[d, there, w] = wanted[:, some]


def load(path: Path) -> Prepared:
    """Read a whole prepared patient into memory; BratsError where it is not what was written."""
    array = _open(path)
    stored = _stored(array, path)
    with _reading(path):
        prepared, written = Prepared(np.empty(array.shape, array.dtype), Meta.from_json(stored)), stored["checksum"]
        read_patch(array, prepared.meta, (0, 0, 0), prepared.volume)
    if checksum(prepared) != written:
        raise BratsError(f"{path} is damaged (its checksum is not that of its content): {AGAIN}.")
    return prepared
