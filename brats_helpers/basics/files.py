"""Write files atomically, and read files inside a plain tar without unpacking it."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import BratsError
from .lock import is_leftover, temporary_prefix

try:
    from isal import igzip, isal_zlib  # gzip by Intel's library, with the same results
except ModuleNotFoundError:
    igzip, isal_zlib = gzip, zlib


UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
NEARLY_FULL = 1_000_000  # bytes
GZIP = b"\x1f\x8b"  # the first bytes of a .gz file
GZIP_HEADER = 31  # zlib's `wbits` for a stream with gzip's header and checksum
LARGEST_GUESS = 2**28  # bytes to allocate at most for the size that a .gz file claims


def safe_cell(text: object) -> object:
    """Quote a text that a spreadsheet would run as a formula."""
    return f"'{text}" if isinstance(text, str) and text[:1] in tuple("=+-@\t") else text


def output_file(path: Path) -> Path:
    """Return the path to write to, with links resolved; BratsError if a file cannot go there."""
    path = Path(path)
    if path.is_dir():
        raise BratsError(f"{path} is a folder, and a file is written there: move it away, or name "
                         "another place.")
    if path.exists() and (not path.is_file() or _is_printed_to(path)):
        raise BratsError(f"{path} is a device, a pipe or the file that receives the printed "
                         "output: name another file.")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _is_printed_to(path: Path) -> bool:
    """Tell whether the standard output or error goes to this file, as with /dev/stdout > file."""
    with suppress(OSError):  # a process may have closed them
        return any(os.path.samestat(path.stat(), os.fstat(number)) for number in (1, 2))
    return False


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` when the block succeeds.

    It keeps the suffixes, by which nibabel chooses the format, and is removed on failure.
    BratsError if the disk is full, the folder is not writable, or `path` is no regular file.
    """
    path, temporary = Path(path), None
    try:
        path = output_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=temporary_prefix(),
                                        suffix="".join(path.suffixes[-2:]),
                                        dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch and Blosc2 raise RuntimeError on a full disk
        _explain(path, error)
        raise
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def _explain(path: Path, error: OSError | RuntimeError) -> None:
    """Raise BratsError if writing `path` failed because of the disk."""
    parent = next(p for p in path.parents if p.is_dir())
    free = shutil.disk_usage(parent).free
    full = isinstance(error, RuntimeError) and free < NEARLY_FULL
    if full or getattr(error, "errno", None) in UNWRITABLE:
        raise BratsError(
            f"{path} could not be written ({error}); {free / 1e6:,.1f} MB are free there. What was "
            "there before is untouched: make room, or choose a work folder that may be written, "
            "and run again.") from error


def remove_leftovers(folder: Path) -> None:
    """Remove killed processes' temporary files in a folder and below it."""
    for leftover in filter(is_leftover, Path(folder).rglob(".part-*")):
        leftover.unlink(missing_ok=True)


@dataclass(frozen=True)
class Packed:
    """A file inside a plain (uncompressed) tar, which can be read like a `Path`."""

    archive: Path
    member: str  # its name in the archive
    offset: int  # bytes from the beginning of the archive
    size: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"

    @property
    def name(self) -> str:
        """Return the last part of the name."""
        return PurePosixPath(self.member).name

    @property
    def parent(self) -> Path:
        """Return the folder, as if the archive were one."""
        return self.archive / PurePosixPath(self.member).parent

    def starts_with(self, magic: bytes) -> bool:
        """Tell whether the file begins with these bytes."""
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return file.read(min(len(magic), self.size)) == magic

    def read_bytes(self, last: int = 0) -> bytes:
        """Read the `last` bytes, or all for 0; OSError if the archive is cut short."""
        count = min(last, self.size) or self.size
        with open(self.archive, "rb") as file:
            file.seek(self.offset + self.size - count)
            content = file.read(count)
        if len(content) < count:
            raise OSError(f"the archive ends {count - len(content):,} bytes too early")
        return content


def gunzip(content: bytes, most: int = 0) -> bytes:
    """Decompress the content of a .gz file; OSError if it is damaged or cut short.

    `most` limits the bytes that come out (0: no limit); OSError beyond it.
    """
    expected = min(int.from_bytes(content[-4:], "little"), most or LARGEST_GUESS, LARGEST_GUESS)
    try:
        stream = isal_zlib.decompressobj(GZIP_HEADER)
        whole = stream.decompress(content, expected + 1)  # into one buffer of the size it claims
        if not stream.eof or stream.unused_data:  # several members, damaged, or more than claimed
            if not most:
                return igzip.decompress(content)
            with igzip.open(io.BytesIO(content)) as file:
                whole = file.read(most + 1)
    except (EOFError, zlib.error, isal_zlib.error) as error:
        raise OSError(str(error)) from error
    if most and len(whole) > most:
        raise OSError(f"it unpacks to more than {most:,} bytes, too many for its header")
    return whole


def write_file(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_file(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file that `made_by` ("notebook 02") wrote; BratsError if missing or invalid."""
    path = Path(path)
    if not path.is_file():
        raise BratsError(f"{path} is missing: run {made_by} first, which writes it.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BratsError(f"{path} is not valid JSON ({error}): move it away and run "
                         f"{made_by} again.") from error
