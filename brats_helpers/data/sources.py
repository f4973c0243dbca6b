"""Recognize a source by its content: an archive, or a folder of patients or archives."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from pathlib import Path

from ..basics.constants import ARCHIVE_ENDINGS
from ..basics.errors import BratsError
from ..basics.files import GZIP
from .layouts import NIFTI
from .unused import READABLE, SPLIT, UNREAD_ARCHIVES

NIFTI_START = (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # 348 or 540
MAGIC = {GZIP: "gzip", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\xfd7zXZ": "xz",
         b"BZh": "bzip2", b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR", b"\x28\xb5\x2f\xfd": "Zstandard"}
READ = {"tar": None, "zip": None, "gzip": gzip, "xz": lzma, "bzip2": bz2}


def is_archive(path: Path) -> bool:
    """Tell whether a path is an archive, or a folder of archives and no other scans."""
    path = Path(path)
    if path.is_dir():
        return bool(archives_of(path))
    return path.name.lower().endswith(ARCHIVE_ENDINGS) or kind_of(path) in READ


def archives_of(path: Path) -> list[Path]:
    """Return the archive itself, or those of a folder without scans of its own; else []."""
    if not path.is_dir():
        return [path]
    # os.path.isfile skips what is in an unreadable folder without an error; `find` names it.
    files = [p for p in sorted(path.rglob("*")) if os.path.isfile(p) and not any(
        part.startswith((".", "__MACOSX")) for part in p.relative_to(path).parts)]
    if any(NIFTI.search(p.name) or p.name == "dataset.json" for p in files):
        return []
    return [p for p in files if p.name.lower().endswith(ARCHIVE_ENDINGS)]


def resolve_source(path: Path) -> Path:
    """Return the place to read from: an archive, a folder of patients, or a folder of archives.

    A folder with one archive, as on Kaggle, means that archive. BratsError for an unreadable file.
    """
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        archives = archives_of(path)
        return archives[0] if len(archives) == 1 else path
    refuse_unread(path)
    return path


def refuse_unread(path: Path) -> None:
    """Raise BratsError if a path is missing or no archive; the message names the file's type."""
    if not path.is_file():
        link = f"a link to {path.readlink()}, which is " if path.is_symlink() else ""
        raise BratsError(f"{path} is {link}not there: give the path of a "
                         f"{', '.join(ARCHIVE_ENDINGS)} file or of a folder.")
    if why := _why_unread(path):
        raise BratsError(f"{path} {why}")


def _why_unread(path: Path) -> str:
    """Explain why a file is not a readable archive; empty if it is one."""
    kind, name = kind_of(path), path.name.lower()
    named = name.endswith(ARCHIVE_ENDINGS)
    if SPLIT.search(name):
        return "is one part of a split archive: join the parts and unpack them."
    if NIFTI.search(name):
        return "is one scan: give the folder of the patient or of all patients."
    if not path.stat().st_size:
        return "is empty (0 bytes), damaged or incomplete: get it again."
    if inner_start(path) in NIFTI_START:
        return "holds a NIfTI scan, not an archive: give the folder of the patient."
    if kind in READ:
        return ""
    title = next((t for end, t in UNREAD_ARCHIVES.items() if name.endswith(end) and not named), "")
    if title or kind:
        return f"is {title or f'a {kind} archive'}, which is not read here: {READABLE}."
    if not named:
        return f"is no archive that can be read here; {', '.join(ARCHIVE_ENDINGS)} can."
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the archive: run `git lfs pull` where it came from."
    if start.startswith(b"<"):
        return "is a web page, not an archive: sign in where it came from and download it again."
    return ""


def kind_of(path: Path) -> str:
    """Name a file's type, such as "tar" or "gzip", by its content; empty if unknown or missing."""
    if not path.is_file():
        return ""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise BratsError(f"{path} cannot be read ({error.strerror}): allow it (chmod), or copy it "
                         "again.") from error
    if start[257:262] == b"ustar":
        return "tar"
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), "")


def inner_start(path: Path) -> bytes:
    """Read the first bytes inside a gzip, xz or bzip2 file; empty if there are none."""
    try:
        with (READ.get(kind_of(path)) or gzip).open(path) as inner:
            return inner.read(4)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return b""
