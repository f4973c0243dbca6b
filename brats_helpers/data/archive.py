"""Archives of patients: listed, read where they lie, or unpacked file by file.

Nothing is unpacked beside the archive. Every file appears whole or not at all, and a second call
goes on where the first was stopped.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from ..basics.constants import ARCHIVE_ENDINGS as ENDINGS
from ..basics.errors import BratsError
from ..basics.files import Packed, atomic_path, read_json, remove_leftovers, write_json
from .finding import NOTE, besides, find, find_packed
from .layouts import NIFTI, group
from .members import LIMITS, Limits, Member, checked_members, list_archive, open_archive
from .records import Case, Found
from .sources import archives_of, is_archive, kind_of, resolve_source

__all__ = ["Limits", "Member", "extract", "find_patients", "is_archive", "list_archive",
           "patients_in", "readable_in_place", "resolve_source", "summarize"]

MSD_FOLDERS = {"imagesTr": "four modalities", "imagesTs": "four modalities", "labelsTr": "seg"}


def readable_in_place(path: Path) -> bool:
    """Whether the patients of an archive can be read where they lie: a plain tar of one file a
    modality.
    """
    archives = archives_of(Path(path))
    if not archives or not all(kind_of(one) == "tar" for one in archives):
        return False
    return not any(m.info.issparse() or PurePosixPath(m.name).name == "dataset.json"
                   for one in archives for m in list_archive(one))


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
    files = [Packed(one, m.name, m.info.offset_data, m.size) for one in archives
             for m in list_archive(one)]
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
    return [{"name": name, "files": sorted(sizes), "mb": sum(sizes.values()) / 1e6} for name,
            sizes in sorted(found.items())]


def extract(path: Path, folder: Path, limits: Limits = LIMITS) -> list[Path]:
    """Unpack an archive's files into `folder`, with progress; returns their paths.

    Of a folder of archives each goes into a folder of its own. A file that is there with the right
    size is kept, unless the folder was unpacked from another archive: then it is emptied first.
    Refuses the whole archive before writing if any member is unsafe, or if the disk is too full.
    """
    archives = archives_of(Path(path))
    if archives != [Path(path)]:
        _empty_if_other(Path(path), Path(folder))
        write_json(Path(folder) / NOTE, _identity(Path(path)))
        return [target for one in archives
                for target in extract(one, Path(folder) / _stem(one, Path(path)), limits)]
    folder = Path(folder)
    _empty_if_other(Path(path), folder)
    with open_archive(path) as archive:
        members = checked_members(Path(path), archive, limits)
        targets = [folder / PurePosixPath(member.name) for member in members]
        wanted = [(m, t) for m, t in zip(members, targets, strict=True)
                  if not (t.is_file() and t.stat().st_size == m.size)]
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        _check_room(path, folder, sum(member.size for member, _ in wanted))
        write_json(folder / NOTE, _identity(Path(path)))
        for member, target in tqdm(wanted, desc=f"extract {Path(path).name}", unit="file"):
            _write_member(path, archive, member, target)
    return targets


def _write_member(path: Path, archive: tarfile.TarFile | zipfile.ZipFile, member: Member,
                  target: Path) -> None:
    with _content(archive, member) as source, atomic_path(target) as temporary:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        if temporary.stat().st_size != member.size:
            raise BratsError(f"{path}: {member.name} is cut short; get the archive again.")


def _stem(archive: Path, folder: Path) -> str:
    """The folder that one of several archives is unpacked into: its own path without the ending."""
    name = "_".join(archive.relative_to(folder).parts)
    return next(name[: -len(ending)] for ending in sorted(ENDINGS, key=len, reverse=True)
                if name.lower().endswith(ending))


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
    return (archive.open(member.info) if isinstance(archive, zipfile.ZipFile)
            else archive.extractfile(member.info))


def _check_room(path: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BratsError(f"{path} needs {needed / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB "
                         "are free: make room, or choose another work folder.")
