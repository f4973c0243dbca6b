"""Archives of patients: listed and checked before anything is written, then unpacked file by file.

A tar is a chain of headers and contents, so its list is read by hopping over the contents; nothing
is unpacked beside the archive. Every file appears whole or not at all, and a second call goes on
where the first was stopped.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from ..basics.constants import ARCHIVE_ENDINGS as ENDINGS
from ..basics.errors import BratsError
from ..basics.files import Packed, atomic_path, read_json, remove_leftovers, write_json
from .finding import NOTE, besides, find, find_packed
from .layouts import NIFTI, group
from .records import Case, Found
from .unused import READABLE, SPLIT, UNREAD_ARCHIVES

MSD_FOLDERS = {
    "imagesTr": "four modalities",
    "imagesTs": "four modalities",
    "labelsTr": "seg",
}  # of the Decathlon
# What the standard library raises for archives that are damaged, encrypted or of unknown kind.
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    EOFError,
    OSError,
    zlib.error,
    struct.error,
    ValueError,
    IndexError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    AttributeError,
)
LONGEST_NAME = 200  # bytes of a part of a path; most disks take 255


@dataclass(frozen=True)
class Limits:
    """How much may come out of an archive: more is taken for a decompression bomb, and refused.
    BraTS 2021 is 1.0 times
    its archive's size, 6,255 files and 13 GB."""

    ratio: float = 200  # of what comes out to the archive's own size, at least 1 MB
    files: int = 200_000
    gigabytes: float = 500


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    size: int  # bytes, unpacked
    plain: bool = True  # a file, not a link or a device
    info: tarfile.TarInfo | zipfile.ZipInfo | None = None


def is_archive(path: Path) -> bool:
    """Return whether a path is an archive, or a folder of archives and no other scans."""
    path = Path(path)
    if path.is_dir():
        return bool(archives_of(path))
    return path.name.lower().endswith(ENDINGS) or _kind(path) in ("tar", "zip")


def archives_of(path: Path) -> list[Path]:
    """Return the archive itself, or those of a folder that holds no scans of its own; else nothing.
    """
    if not path.is_dir():
        return [path]
    files = [
        p
        for p in sorted(path.rglob("*"))
        if not any(part.startswith((".", "__MACOSX")) for part in p.relative_to(path).parts)
    ]
    if any(NIFTI.search(p.name) or p.name == "dataset.json" for p in files if p.is_file()):
        return []
    return [p for p in files if p.name.lower().endswith(ENDINGS) and p.is_file()]


def resolve_source(path: Path) -> Path:
    """Return where to read patients from: an archive, a folder of patients, or a folder of
    archives.

    Of a folder with one archive, as on Kaggle, the archive. BratsError if nothing can be read there.
    """
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        archives = archives_of(path)
        return archives[0] if len(archives) == 1 else path
    _refuse_unread(path)
    return path


def _refuse_unread(path: Path) -> None:
    """Refuse a path that is not there, or a file that is no archive, by what it is."""
    if not path.is_file():
        broken = (
            f"is a link to {path.readlink()}, which is not there"
            if path.is_symlink()
            else "is not there"
        )
        raise BratsError(
            f"{path} {broken}: give the path of a {', '.join(ENDINGS)} file or of a folder."
        )
    kind = _kind(path)
    if SPLIT.search(path.name):
        raise BratsError(f"{path} is one part of a split archive: join the parts and unpack them.")
    if not path.stat().st_size:
        raise BratsError(f"{path} is empty (0 bytes), damaged or incomplete: get it again.")
    if kind == "gzip" and (_inner(path)[:4] in NIFTI_START) and not NIFTI.search(path.name):
        raise BratsError(
            f"{path} holds a NIfTI scan, not an archive: give the folder of the patient."
        )
    if kind in ("tar", "zip", "gzip", "xz", "bzip2") and not NIFTI.search(path.name):
        return
    title = next(
        (
            title
            for ending, title in UNREAD_ARCHIVES.items()
            if path.name.lower().endswith(ending) and not path.name.lower().endswith(ENDINGS)
        ),
        "",
    )
    if title or kind in MAGIC.values() and kind not in ("gzip", "tar", "zip"):
        raise BratsError(
            f"{path} is {title or f'a {kind} archive'}, which is not read here: {READABLE}."
        )
    if NIFTI.search(path.name):
        raise BratsError(f"{path} is one scan: give the folder of the patient or of all patients.")
    if not path.name.lower().endswith(ENDINGS):
        raise BratsError(f"{path} is no archive that can be read here; {', '.join(ENDINGS)} can.")
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        raise BratsError(
            f"{path} is a Git LFS pointer, not the archive: run `git lfs pull` where it came from."
        )
    if start.startswith(b"<"):
        raise BratsError(
            f"{path} is a web page, not an archive: sign in where it came from and download it "
            "again."
        )


NIFTI_START = (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # 348 or 540
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}


def _kind(path: Path) -> str:
    """What a file is by its content: tar, zip, gzip, ...; empty if unknown or not there."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        start = file.read(512)
    if start[257:262] == b"ustar":
        return "tar"
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), "")


@contextmanager
def _open(path: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    path = Path(path)
    _refuse_unread(path)
    try:
        with contextlib.ExitStack() as stack:
            if _kind(path) == "zip":
                yield stack.enter_context(zipfile.ZipFile(path))
                return
            if _kind(path) == "gzip" and _inner(path).startswith(b"\x1f\x8b"):  # compressed twice
                inner = stack.enter_context(gzip.open(path))
                yield stack.enter_context(tarfile.open(fileobj=inner))
            else:
                yield stack.enter_context(tarfile.open(path))
    except DAMAGE as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BratsError(
            f"{path} is damaged or incomplete ({said}): get it again, and compare its size "
            "with the "
            "source's."
        ) from error


def _inner(path: Path) -> bytes:
    """The first bytes of what a gzip file holds; empty if it cannot be decompressed."""
    try:
        with gzip.open(path) as inner:
            return inner.read(4)
    except (OSError, EOFError, zlib.error):
        return b""


def list_archive(path: Path, limits: Limits = Limits()) -> list[Member]:
    """The files in an archive, in its order, checked: BratsError where it is cut short or a name is
    unsafe.

    Of a folder of archives, the files of all.

    Reads headers only (a compressed tar has to be decompressed for that, in memory).
    """
    members = []
    for one in archives_of(Path(path)):
        with _open(one) as archive:
            members += _members(one, archive, limits)
    if not members:
        raise BratsError(f"{path} holds no file: get it again.")
    return members


def _members(
    path: Path, archive: tarfile.TarFile | zipfile.ZipFile, limits: Limits
) -> list[Member]:
    """All files in the archive, every one of them safe to unpack."""
    members, total, most = (
        [],
        0,
        min(limits.ratio * max(path.stat().st_size, 1_000_000), limits.gigabytes * 1e9),
    )
    for member in _walk(archive):
        total += member.size
        if total > most or len(members) >= limits.files:
            raise BratsError(
                f"{path}: refused, because of the member {member.name!r}: with it, "
                f"{len(members) + 1:,} files "
                f"of {total / 1e9:,.1f} GB come out of {path.stat().st_size / 1e9:,.3f} GB, "
                "which is no cohort "
                "of scans. Nothing was written. (What is allowed stands in archive.Limits.)"
            )
        members.append(member)
    if isinstance(archive, tarfile.TarFile):
        _refuse_short(path, members)
    members = [member for member in members if not _litter(member.name)]
    _refuse_unsafe(path, members)
    return members


def _walk(archive: tarfile.TarFile | zipfile.ZipFile) -> Iterator[Member]:
    """The archive's files one after the other, as they are met."""
    if isinstance(
        archive, zipfile.ZipFile
    ):  # the high bits hold the Unix file type: 0 unknown, 8 a file
        yield from (
            Member(i.filename, i.file_size, i.external_attr >> 28 in (0, 8), i)
            for i in archive.infolist()
            if not i.filename.endswith("/")
        )
    else:
        yield from (Member(i.name, i.size, i.isfile(), i) for i in archive if not i.isdir())


def _refuse_short(path: Path, members: Sequence[Member]) -> None:
    """Whether the last file's content ends before the archive does; only a plain tar shows it
    without reading on.
    """
    if _kind(path) in ("tar", "") and members:
        end, size = members[-1].info.offset_data + members[-1].size, path.stat().st_size
        if end > size:
            raise BratsError(
                f"{path} is cut short: {members[-1].name} ends at byte {end:,}, the archive at "
                f"{size:,}. "
                "Get it again."
            )


def _litter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return (
        "__MACOSX" in parts
        or parts[-1:] == (".DS_Store",)
        or any(part.startswith("._") for part in parts)
    )


def _refuse_unsafe(path: Path, members: Sequence[Member]) -> None:
    """Nothing outside the folder, no links, no devices, no name that two files claim or that no
    disk can take.
    """
    seen: set[str] = set()
    folders = {str(parent).casefold() for member in members for parent in _clean(member).parents}
    for member in members:
        name, key = _clean(member), str(_clean(member)).casefold()
        problem = (
            "its name leads out of the folder"
            if name.is_absolute() or ".." in name.parts or ":" in member.name
            else "it is a link or a device, not a file"
            if not member.plain
            else "the name stands there twice"
            if key in seen
            else "a folder has the same name"
            if key in folders
            else "no disk can take its name"
            if "\0" in member.name or _longest(name) > LONGEST_NAME
            else ""
        )
        if problem:
            raise BratsError(
                f"{path}: refused, because of the member {member.name!r}: {problem}. Nothing "
                "was written."
            )
        seen.add(key)


def _clean(member: Member) -> PurePosixPath:
    return PurePosixPath(member.name.replace("\\", "/"))


def _longest(name: PurePosixPath) -> int:
    return max(len(part.encode("utf-8", "surrogateescape")) for part in name.parts)


def readable_in_place(path: Path) -> bool:
    """Whether the patients of an archive can be read where they lie: a plain tar of one file a
    modality.
    """
    archives = archives_of(Path(path))
    if not archives or not all(_kind(one) == "tar" for one in archives):
        return False
    return not any(
        m.info.issparse() or PurePosixPath(m.name).name == "dataset.json"
        for one in archives
        for m in list_archive(one)
    )


def patients_in(place: Path) -> list[Case]:
    """The patients of a folder, or of a plain tar, which is not unpacked; BratsError where there is
    none.
    """
    return find_patients(place).cases


def find_patients(place: Path) -> Found:
    """Return the patients of a folder, or of plain tars, which are not unpacked, and what is not
    used.
    """
    place = Path(place)
    if not is_archive(place):
        return find(place)
    archives = archives_of(place)
    files = [
        Packed(one, m.name, m.info.offset_data, m.size)
        for one in archives
        for m in list_archive(one)
    ]
    found = find_packed(files, place)
    return Found(found.cases, found.unused + besides(place, archives)) if place.is_dir() else found


def summarize(members: Sequence[Member]) -> list[dict]:
    """A row for each patient in an archive's list: name, files (which kinds), megabytes."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    files = {Packed(Path(), m.name, 0, m.size): m.size for m in members}
    for one in group(files)[0]:
        for kind, paths in one.files.items():
            found[one.name][kind] = files[paths[0]]
    for path, size in files.items():
        if path.parent.name in MSD_FOLDERS and NIFTI.search(path.name):
            found[path.name.split(".nii")[0]][MSD_FOLDERS[path.parent.name]] = size
    return [
        {"name": name, "files": sorted(sizes), "mb": sum(sizes.values()) / 1e6}
        for name, sizes in sorted(found.items())
    ]


def extract(path: Path, folder: Path, limits: Limits = Limits()) -> list[Path]:
    """Unpack an archive's files into `folder`, with progress; returns their paths.

    Of a folder of archives each goes into a folder of its own. A file that is there with the right size is kept,
    unless the folder was unpacked from another archive: then it is emptied first. Refuses the whole archive before
    writing if any member is unsafe, or if the disk has too little room.
    """
    archives = archives_of(Path(path))
    if archives != [Path(path)]:
        _empty_if_other(Path(path), Path(folder))
        write_json(Path(folder) / NOTE, _identity(Path(path)))
        return [
            target
            for one in archives
            for target in extract(one, Path(folder) / _stem(one, Path(path)), limits)
        ]
    folder = Path(folder)
    _empty_if_other(Path(path), folder)
    with _open(path) as archive:
        members = _members(Path(path), archive, limits)
        targets = [folder / PurePosixPath(member.name) for member in members]
        wanted = [
            (m, t)
            for m, t in zip(members, targets, strict=True)
            if not (t.is_file() and t.stat().st_size == m.size)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        _check_room(path, folder, sum(member.size for member, _ in wanted))
        write_json(folder / NOTE, _identity(Path(path)))
        for member, target in tqdm(wanted, desc=f"extract {Path(path).name}", unit="file"):
            _write_member(path, archive, member, target)
    return targets


def _write_member(
    path: Path, archive: tarfile.TarFile | zipfile.ZipFile, member: Member, target: Path
) -> None:
    with _content(archive, member) as source, atomic_path(target) as temporary:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        if temporary.stat().st_size != member.size:
            raise BratsError(f"{path}: {member.name} is cut short; get the archive again.")


def _stem(archive: Path, folder: Path) -> str:
    """The folder that one of several archives is unpacked into: its own path without the ending."""
    name = "_".join(archive.relative_to(folder).parts)
    return next(
        name[: -len(ending)]
        for ending in sorted(ENDINGS, key=len, reverse=True)
        if name.lower().endswith(ending)
    )


def _identity(path: Path) -> dict:
    if path.is_dir():
        return {"archives": [_identity(one) for one in archives_of(path)]}
    state = path.stat()
    return {"archive": path.name, "size": state.st_size, "modified_ns": state.st_mtime_ns}


def _empty_if_other(path: Path, folder: Path) -> None:
    """Remove what an earlier call unpacked from another archive; a folder without our note is
    nobody's to empty.
    """
    note = folder / NOTE
    if note.is_file() and path.exists() and read_json(note, "the extraction") != _identity(path):
        tqdm.write(f"{folder} was unpacked from another archive: emptied.")
        for child in folder.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            elif child != note:
                child.unlink()
        note.unlink()  # last: as long as it is there, the folder is known to be ours


def _content(archive: tarfile.TarFile | zipfile.ZipFile, member: Member) -> IO[bytes]:
    return (
        archive.open(member.info)
        if isinstance(archive, zipfile.ZipFile)
        else archive.extractfile(member.info)
    )


def _check_room(path: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BratsError(
            f"{path} needs {needed / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are "
            "free: make room, "
            "or choose another work folder."
        )
