"""The files in an archive, listed and checked before anything is written.

A tar is a chain of headers and contents, so its list is read by hopping over the contents.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..basics.constants import ARCHIVE_ENDINGS as ENDINGS
from ..basics.errors import BratsError
from .layouts import NIFTI
from .sources import archives_of, inner_start, kind_of, refuse_unread

# What the standard library raises for archives that are damaged, encrypted or of unknown kind.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, EOFError, OSError, zlib.error,
          struct.error, ValueError, IndexError, OverflowError, NotImplementedError, RuntimeError,
          AttributeError)
ENCRYPTED = 0x1  # in the flags of a zip member
LONGEST_NAME = 200  # bytes of a part of a path; most disks take 255


@dataclass(frozen=True)
class Limits:
    """How much may come out of an archive; more is refused as a decompression bomb.

    BraTS 2021 has 6,255 files and 13 GB, about the size of its archive.
    """

    ratio: float = 200  # of what comes out to the archive's own size, at least 1 MB
    files: int = 200_000
    gigabytes: float = 500


LIMITS = Limits()


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    size: int  # bytes, unpacked
    plain: bool = True  # a file, not a link or a device
    info: tarfile.TarInfo | zipfile.ZipInfo | None = None


@contextmanager
def open_archive(path: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    """Open an archive by its content, whatever its ending; BratsError if it cannot be read."""
    path = Path(path)
    refuse_unread(path)
    try:
        with contextlib.ExitStack() as stack:
            if kind_of(path) == "zip":
                archive = stack.enter_context(zipfile.ZipFile(path))
                if any(member.flag_bits & ENCRYPTED for member in archive.infolist()):
                    raise BratsError(f"{path} is encrypted: unpack it with its password and give "
                                     "the folder.")
                yield archive
                return
            if kind_of(path) == "gzip" and inner_start(path).startswith(
                b"\x1f\x8b"
            ):  # compressed twice
                inner = stack.enter_context(gzip.open(path))
                yield stack.enter_context(tarfile.open(fileobj=inner))
            else:
                yield stack.enter_context(tarfile.open(path))
    except DAMAGE as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BratsError(f"{path} is damaged or incomplete ({said}): get it again, and compare its "
                         "size with the source's.") from error


def list_archive(path: Path, limits: Limits = LIMITS) -> list[Member]:
    """Return the checked files of an archive; BratsError if it is cut short or a name is unsafe.

    Of a folder of archives, the files of all.

    Reads headers only (a compressed tar has to be decompressed for that, in memory).
    """
    members = []
    for one in archives_of(Path(path)):
        with open_archive(one) as archive:
            members += checked_members(one, archive, limits)
    if not members:
        raise BratsError(f"{path} holds no file: get it again.")
    return members


def checked_members(path: Path, archive: tarfile.TarFile | zipfile.ZipFile,
                    limits: Limits) -> list[Member]:
    """All files in the archive, every one of them safe to unpack."""
    members, total, most = (
        [], 0, min(limits.ratio * max(path.stat().st_size, 1_000_000), limits.gigabytes * 1e9))
    for member in _walk(archive):
        total += member.size
        if total > most or len(members) >= limits.files:
            raise BratsError(f"{path}: refused, because of the member {member.name!r}: with it, "
                             f"{len(members) + 1:,} files of {total / 1e9:,.1f} GB come out of "
                             f"{path.stat().st_size / 1e9:,.3f} GB, which is no cohort of scans. "
                             "Nothing was written. (What is allowed stands in archive.Limits.)")
        members.append(member)
    if isinstance(archive, tarfile.TarFile):
        _refuse_short(path, members)
    members = [member for member in members if not _litter(member.name)]
    _refuse_unsafe(path, members)
    _refuse_nested(path, members)
    return members


def _walk(archive: tarfile.TarFile | zipfile.ZipFile) -> Iterator[Member]:
    """The archive's files one after the other, as they are met."""
    if isinstance(
        archive, zipfile.ZipFile
    ):  # the high bits hold the Unix file type: 0 unknown, 8 a file
        yield from (Member(i.filename, i.file_size, i.external_attr >> 28 in (0, 8), i)
                    for i in archive.infolist() if not i.filename.endswith("/"))
    else:
        yield from (Member(i.name, i.size, i.isfile(), i) for i in archive if not i.isdir())


def _refuse_short(path: Path, members: Sequence[Member]) -> None:
    """Whether the last file's content ends before the archive does; only a plain tar shows it
    without reading on.
    """
    if kind_of(path) in ("tar", "") and members:
        end, size = members[-1].info.offset_data + members[-1].size, path.stat().st_size
        if end > size:
            raise BratsError(f"{path} is cut short: {members[-1].name} ends at byte {end:,}, the "
                             f"archive at {size:,}. Get it again.")


def _refuse_nested(path: Path, members: Sequence[Member]) -> None:
    """Refuse an archive that holds archives and no scan; they would not be unpacked."""
    names = [member.name for member in members]
    inner = [name for name in names if name.lower().endswith(ENDINGS)]
    if inner and not any(NIFTI.search(name) for name in names):
        raise BratsError(f"{path} holds archives instead of scans, such as {inner[0]!r}: unpack "
                         "it, and give the folder.")


def _litter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return ("__MACOSX" in parts or parts[-1:] == (".DS_Store",)
            or any(part.startswith("._") for part in parts))


def _refuse_unsafe(path: Path, members: Sequence[Member]) -> None:
    """Nothing outside the folder, no links, no devices, no name that two files claim or that no
    disk can take.
    """
    seen: set[str] = set()
    folders = {str(parent).casefold() for member in members for parent in _clean(member).parents}
    for member in members:
        name, key = _clean(member), str(_clean(member)).casefold()
        problem = ("its name leads out of the folder" if name.is_absolute() or ".." in name.parts
                   or ":" in member.name else "it is a link or a device, not a file"
                   if not member.plain else "the name stands there twice" if key in seen else "a "
                   "folder has the same name" if key in folders else "no disk can take its name"
                   if "\0" in member.name or _longest(name) > LONGEST_NAME else "")
        if problem:
            raise BratsError(f"{path}: refused, because of the member {member.name!r}: {problem}. "
                             "Nothing was written.")
        seen.add(key)


def _clean(member: Member) -> PurePosixPath:
    return PurePosixPath(member.name.replace("\\", "/"))


def _longest(name: PurePosixPath) -> int:
    return max(len(part.encode("utf-8", "surrogateescape")) for part in name.parts)
