"""Files that are either whole or not there: written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import BratsError

try:
    from isal import igzip, isal_zlib  # gzip by Intel's library, with the same results
except ModuleNotFoundError:
    igzip, isal_zlib = gzip, zlib


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block ends well.

    The temporary name keeps the suffixes (nibabel chooses its format by them) and is removed on failure.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", suffix="".join(path.suffixes[-2:]), dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)                        # mkstemp's files are for their owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed process has left in a folder and below it."""
    for leftover in Path(folder).rglob(".part-*"):
        leftover.unlink(missing_ok=True)


def read_gzip(path: Path) -> bytes:
    """The content of a .gz file, decompressed; OSError where it is damaged or cut short."""
    try:
        return igzip.decompress(Path(path).read_bytes())
    except (EOFError, zlib.error, isal_zlib.error) as error:
        raise OSError(str(error)) from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file; `made_by` completes the message where it is missing, as in "notebook 02"."""
    path = Path(path)
    if not path.is_file():
        raise BratsError(f"{path} is missing: run {made_by} first, which writes it.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BratsError(f"{path} is not valid JSON ({error}): delete it and run {made_by} again.") from error
