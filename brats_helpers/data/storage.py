"""Keep a prepared patient as one compressed file, and read patches from it."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import blosc2
import numpy as np
import torch

from ..basics.constants import MODALITIES
from ..basics.errors import BratsError
from ..basics.files import atomic_path, isal_zlib

FORMAT = 5  # of a prepared file
AGAIN = "run notebook 03 again, which replaces it"
# Compared with zstd, files are a seventh larger, and a patch takes two thirds of the time
# (benchmarks/README.md).
COMPRESSION = {"codec": blosc2.Codec.LZ4HC, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE],
               "nthreads": 1}
ROWS = 8  # a block holds this many rows of one channel in all slices, and decompresses as a whole
# Fields of Meta that prepared files store under an older name.
STORED_NAMES = {"bounding_box": "box", "downsampling": "factor", "content_hash": "source",
                "fingerprint": "figures"}


@dataclass(frozen=True)
class Meta:
    """The description of a prepared patient, from which the scan's grid can be restored."""

    name: str
    shape: tuple[int, int, int]  # of the scan, (X, Y, Z)
    affine: tuple[tuple[float, ...], ...]  # of the scan
    bounding_box: tuple[tuple[int, int], ...]  # of the brain: (first, past the last) in d, h, w
    downsampling: tuple[float, float, float]  # scan voxels per prepared voxel in d, h, w
    mean: tuple[float, ...]  # of each modality in the brain
    std: tuple[float, ...]
    has_reference: bool
    content_hash: str  # of the scan's files and the target grid (`pipeline.content_hash`)
    tumor_rows: tuple[int, int] = (0, 0)  # rows of h with a tumor: (first, past the last)
    # Label's short name -> sampled voxels, as indices of the flat (D, H, W).
    tumor_voxels: dict[str, list[int]] = field(default_factory=dict)
    fingerprint: dict[str, float] = field(default_factory=dict)  # of `scan_fingerprint`

    def to_json(self) -> dict:
        """Return the fields in order, under the names that prepared files use."""
        return {STORED_NAMES.get(name, name): value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, stored: dict) -> Meta:
        """Rebuild from `to_json`'s output, in which JSON has turned tuples into lists."""
        values = {name: stored[STORED_NAMES.get(name, name)] for name in cls.__dataclass_fields__}
        for name in ("shape", "downsampling", "mean", "std", "tumor_rows"):
            values[name] = tuple(values[name])
        for name in ("affine", "bounding_box"):
            values[name] = tuple(map(tuple, values[name]))
        return cls(**values)


@dataclass
class Prepared:
    """A prepared patient: the voxels and what is known of them."""

    volume: np.ndarray  # (5, D, H, W): four modalities, and labels 0 to 3 (0 without a reference)
    meta: Meta

    @property
    def images(self) -> np.ndarray:
        """Return the modalities as stored, (4, D, H, W)."""
        return self.volume[:-1]

    @property
    def reference(self) -> np.ndarray:
        """Return the reference's labels, (D, H, W)."""
        return self.volume[-1]


def save_prepared(prepared: Prepared, path: Path) -> None:
    """Write a prepared patient as one Blosc2 array: LZ4HC after a byte shuffle, and its Meta."""
    _, depth, height, width = prepared.volume.shape
    with atomic_path(path) as temporary:
        temporary.unlink()  # Blosc2 makes the file itself
        array = blosc2.asarray(
            prepared.volume, urlpath=str(temporary), chunks=(1, depth, height, width),
            blocks=(1, depth, min(ROWS, height), width), cparams=COMPRESSION)
        # As JSON: Blosc2's own encoding of nested lists fails on empty ones before some 4.x.
        array.schunk.vlmeta["meta"] = json.dumps(
            {"format": FORMAT, "checksum": checksum(prepared), **prepared.meta.to_json()})


def checksum(prepared: Prepared) -> int:
    """Compute the CRC-32 of voxels and Meta, which reveals a disk's silent errors."""
    meta = zlib.crc32(json.dumps(prepared.meta.to_json()).encode())
    return isal_zlib.crc32(np.ascontiguousarray(prepared.volume), meta)


def load_prepared(path: Path) -> Prepared:
    """Read a whole prepared patient into memory; BratsError if it is not what was written."""
    array = open_mapped(map_file(path), path)
    with _reading(path):
        stored = _read_stored(array, path)
        prepared = Prepared(np.empty(array.shape, array.dtype), Meta.from_json(stored))
        read_patch(array, prepared.meta, (0, 0, 0), prepared.volume)
        written = stored["checksum"]
    if checksum(prepared) != written:
        raise BratsError(f"{path} is damaged (its checksum is not that of its content): {AGAIN}.")
    return prepared


def open_volume(path: Path) -> tuple[blosc2.NDArray, Meta]:
    """Open a prepared file: an array (5, D, H, W) that decompresses on indexing, and its Meta.

    Only `load_prepared` compares the checksum.
    """
    array = open_mapped(map_file(path), path)
    return array, read_meta(array, path)


def map_file(path: Path) -> np.ndarray:
    """Map a file's bytes into memory, (N,) uint8, read on access; no file stays open."""
    path = Path(path)
    if not path.is_file():
        raise BratsError(f"{path} is missing: run notebook 03 first, which prepares the patients.")
    with _reading(path):
        return torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8).numpy()


def open_mapped(mapped: np.ndarray, path: Path) -> blosc2.NDArray:
    """Open the array in a prepared file's bytes, (N,) uint8, without copying them."""
    with _reading(path):
        array = blosc2.ndarray_from_cframe(mapped)  # the last step of `blosc2.open`
        array.mapped = mapped  # old versions of Blosc2 do not keep the bytes alive
        if array.chunks != (1, *array.shape[1:]) or array.schunk.nchunks != len(array):
            raise ValueError(f"a shape of {array.shape}")
    return array


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn any error that a damaged file causes into a BratsError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError,
            SyntaxError) as error:  # SyntaxError: NumPy's, from a damaged name of a type
        raise BratsError(f"{path} is damaged ({error}): {AGAIN}.") from error


def read_meta(array: blosc2.NDArray, path: Path) -> Meta:
    """Read an opened file's Meta; BratsError if it is damaged or from another version."""
    with _reading(path):
        return Meta.from_json(_read_stored(array, path))


def _read_stored(array: blosc2.NDArray, path: Path) -> dict:
    text = array.schunk.vlmeta["meta"]
    stored = json.loads(text) if isinstance(text, str) else {}
    if stored.get("format") != FORMAT:
        raise BratsError(f"{path} was written by another version: {AGAIN}.")
    return stored


def read_patch(array: blosc2.NDArray, meta: Meta, corner: Sequence[int], into: np.ndarray) -> None:
    """Fill `into`, (5, d, h, w), with the voxels from `corner` on, (3,) in d h w; 0 outside.

    Faster than slicing the array: each block is copied while it is in the processor's cache, and
    blocks of the reference without a tumor are not decompressed.
    """
    corner = [int(c) for c in corner]
    (d, from_d), (h, from_h), (w, from_w) = map(_overlap, corner, into.shape[1:], array.shape[1:])
    rows, schunk = array.blocks[2], array.schunk
    per_channel = ceil(array.shape[2] / rows)
    block = np.empty((array.shape[1], rows, array.shape[3]), array.dtype)
    wanted = block[from_d, :, from_w]
    padded = wanted.shape[::2] != into.shape[1::2]  # the patch reaches past the volume in d or w
    pieces = _blocks(from_h, corner[1], rows)
    tumor = range(meta.tumor_rows[0] // rows, ceil(meta.tumor_rows[1] / rows))
    into[:, :, :h.start] = into[:, :, h.stop:] = 0
    for channel, patch in enumerate(into):
        for number, in_block, in_patch in pieces:
            empty = channel == len(MODALITIES) and number not in tumor
            if empty or padded:
                patch[:, in_patch] = 0
            if not empty:
                start = (channel * per_channel + number) * block.size
                schunk.get_slice(start, start + block.size, block)
                patch[d, in_patch, w] = wanted[:, in_block]


def _overlap(corner: int, edge: int, size: int) -> tuple[slice, slice]:
    """Return the part of a patch's axis that lies in the volume: in the patch, in the volume."""
    first, last = max(corner, 0), min(corner + edge, size)
    return slice(first - corner, last - corner), slice(first, last)


def _blocks(wanted: slice, corner: int, rows: int) -> list[tuple[int, slice, slice]]:
    """List the blocks that hold the wanted rows: number, rows in the block, rows in the patch."""
    pieces = []
    for number in range(wanted.start // rows, ceil(wanted.stop / rows)):
        first, last = max(number * rows, wanted.start), min((number + 1) * rows, wanted.stop)
        pieces.append((number, slice(first - number * rows, last - number * rows),
                       slice(first - corner, last - corner)))
    return pieces
