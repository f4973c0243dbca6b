"""Keep processes in one folder apart: a lock for a run, and names for temporary files."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from .errors import BratsError

HELD = "BRATS_HELPERS_HOLD"  # environment variable: the folders that this run holds
HOST = f"{zlib.crc32(platform.node().encode()):08x}"
TEMPORARY = re.compile(r"\.part-([0-9a-f]{8})-(\d+)-")
ABANDONED = 3600  # seconds since another machine last wrote to a file


def temporary_prefix() -> str:
    """Return the prefix of this process's temporary files."""
    return f".part-{HOST}-{os.getpid()}-"


def is_leftover(path: Path) -> bool:
    """Tell whether the process that was writing a temporary file has ended."""
    match = TEMPORARY.match(path.name)
    if not match:  # written by an earlier version
        return True
    try:
        modified = path.stat().st_mtime
        if match[1] != HOST:
            return time.time() - modified > ABANDONED
        process = psutil.Process(int(match[2]))
        # A process that began after the file was written only reuses its number.
        return process.status() == psutil.STATUS_ZOMBIE or process.create_time() > modified + 1
    except psutil.NoSuchProcess:
        return True
    except (OSError, psutil.Error):  # just removed, or another user's
        return False


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for this process and its children; BratsError if it is in use or read-only."""
    folder, before = Path(folder).absolute(), os.environ.get(HELD, "")
    key = os.path.realpath(folder)
    if key in before.split(os.pathsep):
        yield
        return
    lock, note = FileLock(folder / ".lock"), folder / ".lock-holder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        note.write_text(
            f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M')}: "
            f"{' '.join(sys.argv[1:])[:200]}\n", encoding="utf-8", errors="replace")
    except Timeout as error:
        raise BratsError(f"{folder} is in use by another run{_holder(note)}. Wait until it ends, "
                         "or name another folder.") from error
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        lock.release()
        reason = "it is a file" if folder.is_file() else error.strerror
        raise BratsError(f"{folder} cannot be written to ({reason}): name another folder."
                         ) from error
    os.environ[HELD] = os.pathsep.join(filter(None, (before, key)))
    try:
        yield
    finally:
        os.environ[HELD] = before
        note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    try:
        return f" ({note.read_text(encoding='utf-8').strip()})"
    except (OSError, UnicodeDecodeError):
        return ""
