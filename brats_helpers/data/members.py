"""List and check the files in an archive before anything is written.

A tar is a chain of headers and contents, so its list is read by hopping over the contents.
"""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ..basics.constants import ARCHIVE_ENDINGS
from ..basics.errors import BratsError
from ..basics.files import GZIP
from .layouts import NIFTI
from .sources import archives_of, inner_start, kind_of, refuse_unread

Archive = tarfile.TarFile | zipfile.ZipFile
# Errors of the standard library for archives that are damaged, encrypted or of unknown kind.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, EOFError, OSError, zlib.error,
          struct.error, ValueError, IndexError, OverflowError, RuntimeError, AttributeError)
ENCRYPTED = 0x1  # in the flags of a zip member
LONGEST_NAME = 200  # bytes of a part of a path; most disks take 255


@dataclass(frozen=True)
class Limits:
    """The limits on what comes out of an archive; more is refused as a decompression bomb.

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

    @property
    def path(self) -> PurePosixPath:
        """Return the name as a path."""
        return PurePosixPath(self.name)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive by its content, whatever its ending; BratsError if it cannot be read."""
    refuse_unread(path)
    kind = kind_of(path)
    try:
        with ExitStack() as stack:
            if kind == "zip":
                archive = stack.enter_context(zipfile.ZipFile(path))
                if any(member.flag_bits & ENCRYPTED for member in archive.infolist()):
                    raise BratsError(f"{path} is encrypted: unpack it with its password and give "
                                     "the folder.")
                yield archive
            elif kind == "gzip" and inner_start(path).startswith(GZIP):  # compressed twice
                inner = stack.enter_context(gzip.open(path))
                yield stack.enter_context(tarfile.open(fileobj=inner))
            else:
                yield stack.enter_context(tarfile.open(path))
    except NotImplementedError as error:
        raise BratsError(f"{path} is compressed in a way that is not read here ({error}): unpack "
                         "it, and give the folder.") from error
    except DAMAGE as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BratsError(f"{path} is damaged or incomplete ({said}): get it again, and compare its "
                         "size with the source's.") from error


def list_archive(path: Path) -> list[Member]:
    """List the files of an archive, or of a folder of archives; BratsError as in `checked_members`.

    Reads headers only, for which a compressed tar must be decompressed in memory.
    """
    members = []
    for one in archives_of(Path(path)):
        with open_archive(one) as archive:
            members += checked_members(one, archive, LIMITS)
    if not members:
        raise BratsError(f"{path} holds no file: get it again.")
    return members


def why_broken(path: Path) -> str:
    """Say why an archive's list, or a zip's content, cannot be read or is refused; "" if sound."""
    try:
        with open_archive(path) as archive:
            checked_members(path, archive, LIMITS)
            if isinstance(archive, zipfile.ZipFile) and (damaged := archive.testzip()):
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
    except BratsError as error:
        return str(error)
    return ""


def checked_members(path: Path, archive: Archive, limits: Limits) -> list[Member]:
    """List an archive's files; BratsError if it is cut short, too large, nested or unsafe."""
    members, total, size = [], 0, path.stat().st_size
    most = min(limits.ratio * max(size, 1_000_000), limits.gigabytes * 1e9)
    for member in _walk(archive):
        total += member.size
        if total > most or len(members) >= limits.files:
            raise BratsError(f"{path}: refused, because of the member {member.name!r}: with it, "
                             f"the archive of {size / 1e9:,.3f} GB unpacks to {len(members) + 1:,} "
                             f"files of {total / 1e9:,.1f} GB, which is not a cohort of scans. "
                             "Nothing was written. (members.Limits lists what is allowed.)")
        members.append(member)
    if members and kind_of(path) in ("tar", ""):  # only a plain tar shows it without reading on
        end = members[-1].info.offset_data + members[-1].size
        if end > size:
            raise BratsError(f"{path} is cut short: {members[-1].name} ends at byte {end:,}, the "
                             f"archive at {size:,}. Get it again.")
    members = [member for member in members if not _litter(member)]
    _refuse_unsafe(path, members)
    nested = [member.name for member in members if member.name.lower().endswith(ARCHIVE_ENDINGS)]
    if nested and not any(NIFTI.search(member.name) for member in members):
        raise BratsError(f"{path} holds archives instead of scans, such as {nested[0]!r}: unpack "
                         "it, and give the folder.")
    return members


def _walk(archive: Archive) -> Iterator[Member]:
    """Yield all members but folders, with slashes in their names: Windows may write backslashes."""
    if isinstance(archive, zipfile.ZipFile):
        # The high bits hold the Unix file type: 0 unknown, 8 a file.
        found = (Member(i.filename, i.file_size, i.external_attr >> 28 in (0, 8), i)
                 for i in archive.infolist() if not i.filename.endswith(("/", "\\")))
    else:
        found = (Member(i.name, i.size, i.isfile(), i) for i in archive if not i.isdir())
    yield from (replace(member, name=member.name.replace("\\", "/")) for member in found)


def _litter(member: Member) -> bool:
    parts = member.path.parts
    return ("__MACOSX" in parts or parts[-1:] == (".DS_Store",)
            or any(part.startswith("._") for part in parts))


def _refuse_unsafe(path: Path, members: Sequence[Member]) -> None:
    seen: set[str] = set()
    folders = {str(parent).casefold() for member in members for parent in member.path.parents}
    for member in members:
        name, key = member.path, str(member.path).casefold()
        longest = max((len(os.fsencode(part)) for part in name.parts), default=0)
        problems = {
            "its name leads out of the folder, or has a colon like a Windows drive":
                name.is_absolute() or ".." in name.parts or ":" in member.name,
            "it is a link or a device, not a file": not member.plain,
            "the archive has that name twice": key in seen,
            "a folder has the same name": key in folders,
            "no disk can take its name": "\0" in member.name or longest > LONGEST_NAME}
        if problem := next((text for text, found in problems.items() if found), ""):
            raise BratsError(f"{path}: refused, because of the member {member.name!r}: {problem}. "
                             "Nothing was written.")
        seen.add(key)
