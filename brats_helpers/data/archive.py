"""List archives of patients, read them where they lie, or unpack them file by file.

Nothing is unpacked next to the archive. Every file appears whole or not at all, and a second call
continues where the first was stopped.
"""

from __future__ import annotations

import shutil
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..basics.constants import ARCHIVE_ENDINGS
from ..basics.errors import BratsError
from ..basics.files import Packed, atomic_path, read_json, remove_leftovers, write_json
from .datalists import is_list
from .finding import NOTE, besides, find, find_packed
from .layouts import NIFTI, group
from .members import LIMITS, Archive, Limits, Member, checked_members, list_archive, open_archive
from .records import Found
from .sources import archives_of, is_archive, kind_of

MSD_FOLDERS = {"imagesTr": "four modalities", "imagesTs": "four modalities", "labelsTr": "seg"}


def readable_in_place(path: Path) -> bool:
    """Tell whether an archive need not be unpacked: a plain tar with a file for each modality."""
    archives = archives_of(Path(path))
    if not archives or not all(kind_of(one) == "tar" for one in archives):
        return False
    return not any(m.info.issparse() or is_list(m.path.name) or m.path.name.endswith("dseg.tsv")
                   for m in list_archive(path))


def find_patients(place: Path) -> Found:
    """Find the patients and unused files of a folder, or of plain tars without unpacking them."""
    place = Path(place)
    if not is_archive(place):
        return find(place)
    archives = archives_of(place)
    found = find_packed([Packed(one, m.name, m.info.offset_data, m.size)
                         for one in archives for m in list_archive(one)], place)
    return Found(found.cases, found.unused + besides(place, archives)) if place.is_dir() else found


def summarize_archive(members: Sequence[Member]) -> list[dict]:
    """Return a row for each patient in an archive's list: {"name", "files" (their kinds), "mb"}."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    sizes = {Packed(Path(), m.name, 0, m.size): m.size for m in members}
    for one in group(sizes)[0]:
        found[one.name] |= {kind: sizes[paths[0]] for kind, paths in one.files.items()}
    for path, size in sizes.items():
        if path.parent.name in MSD_FOLDERS and NIFTI.search(path.name):
            found[path.name.split(".nii")[0]][MSD_FOLDERS[path.parent.name]] = size
    return [{"name": name, "files": sorted(kinds), "mb": sum(kinds.values()) / 1e6}
            for name, kinds in sorted(found.items())]


def extract(path: Path, folder: Path, limits: Limits = LIMITS) -> list[Path]:
    """Unpack an archive's files into `folder`, with progress; returns their paths.

    Each archive of a folder gets its own folder. A file that is there with the right size is kept.
    A folder that was unpacked from another archive is emptied first. BratsError before anything of
    an archive is written, if a member is unsafe or the disk is too full.
    """
    path, folder = Path(path), Path(folder)
    _empty_if_other(path, folder)
    archives = archives_of(path)
    if archives != [path]:
        write_json(folder / NOTE, _identity(path))
        return [target for one in archives
                for target in extract(one, folder / _stem(one, path), limits)]
    with open_archive(path) as archive:
        members = checked_members(path, archive, limits)
        targets = [folder / member.path for member in members]
        wanted = [(m, t) for m, t in zip(members, targets, strict=True)
                  if not (t.is_file() and t.stat().st_size == m.size)]
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        needed, free = sum(member.size for member, _ in wanted), shutil.disk_usage(folder).free
        if needed > free:
            raise BratsError(f"{path} needs {needed / 1e9:.1f} GB in {folder}, and "
                             f"{free / 1e9:.1f} GB are free: make room, or choose another work "
                             "folder.")
        write_json(folder / NOTE, _identity(path))
        for member, target in tqdm(wanted, desc=f"extract {path.name}", unit="file"):
            _write_member(path, archive, member, target)
    return targets


def _write_member(path: Path, archive: Archive, member: Member, target: Path) -> None:
    opener = archive.open if isinstance(archive, zipfile.ZipFile) else archive.extractfile
    with opener(member.info) as source, atomic_path(target) as temporary:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        if temporary.stat().st_size != member.size:
            raise BratsError(f"{path}: {member.name} is cut short; get the archive again.")


def _stem(archive: Path, folder: Path) -> str:
    """Name the folder for one of several archives: its path without the ending."""
    name = "_".join(archive.relative_to(folder).parts)
    return name[:-max(len(ending) for ending in ARCHIVE_ENDINGS if name.lower().endswith(ending))]


def _identity(path: Path) -> dict:
    if path.is_dir():
        return {"archives": [_identity(one) for one in archives_of(path)]}
    state = path.stat()
    return {"archive": path.name, "size": state.st_size, "modified_ns": state.st_mtime_ns}


def _empty_if_other(path: Path, folder: Path) -> None:
    """Remove the files of another archive; a folder without our note is left alone."""
    note = folder / NOTE
    if note.is_file() and path.exists() and read_json(note, "the extraction") != _identity(path):
        tqdm.write(f"{folder} was unpacked from another archive: emptied.")
        for child in folder.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            elif child != note:
                child.unlink()
        note.unlink()  # last: as long as it is there, the folder is known to be ours
