"""Find the patients in a folder or the list of an archive, and everything that is not used."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..basics.constants import ARCHIVE_ENDINGS
from ..basics.errors import BratsError
from ..basics.files import Packed
from .datalists import Listed, read_lists, with_bids_table
from .layouts import BIDS, FILE_NAME, NIFTI, case_of, group
from .records import CONTROL, Case, Found, Unused, shown
from .unused import explain, hint, list_unused, shorten

WANTED = ("four files per patient, named like X_flair.nii.gz, X_t1.nii.gz, X_t1ce.nii.gz, "
          "X_t2.nii.gz (or X-t2f, X-t1n, X-t1c, X-t2w), BIDS, or a dataset.json of the Decathlon, "
          "nnU-Net or MONAI")
WORK = ("cohort.json", "config.json")  # the files that make a folder a work folder
# The folders that we write there:
OURS = ("preprocessed", "predictions", "notebooks", "checkpoints", "everyone", "nnunet",
        "pretraining")
COPIES = {"training", "test", "first"}  # in its folder `cases`
PHANTOMS = {"BraTS2021_Training_Data.tar", "BraTS2021_Training_Data.json"}  # in its folder `data`
# Files that `predict` and `evaluate` write beside masks, and how they begin:
MASKS = {"predictions.csv": rb"(\xef\xbb\xbf)?case\b", "scores.json": rb'\{\s*"tag"'}
EXPORT = ".sources.json"  # in the export for nnU-Net: what each label was made from
HIDDEN = ("a hidden file, perhaps left by a copy that was stopped",
          "copy it again, or rename it if it is whole")
UNFINISHED = re.compile(r"\.[^._].*\.nii\b(?!.*\.icloud$)", re.IGNORECASE)
UNPRINTABLE = ("has a name with a line break or another control character", "rename it")
NOT_TEXT = ("has a name that is not in UTF-8", "rename it")
BINS = ("#recycle", "@eaDir", "$RECYCLE.BIN", "lost+found")  # what was deleted, and previews
NOTE = ".unpacked-from.json"  # in a folder: the archive that its files are from


def find(folder: Path) -> Found:
    """Find the patients below a folder, at any depth, and what is not used; links are followed.

    A patient who lacks a modality, or has one twice, is found, too, with a `problem`. Folders that
    this project has written are passed over. BratsError if there is no patient.
    """
    folder = Path(folder)
    if not folder.is_dir():
        if folder.is_file() and folder.name.lower().endswith(ARCHIVE_ENDINGS):
            raise BratsError(f"{folder} is not a folder but an archive: unpack it, and give the "
                             "folder.")
        there = "" if folder.exists() else "is not there, and "
        raise BratsError(f"{folder} {there}is not a folder: give one that holds {WANTED}.")
    files, left, closed = _walk(folder)
    # Without a row of their own, these patients would be skipped silently.
    barred = [Case(shown(os.path.relpath(path, folder)), (path,), None, problem=shown(
        f"patient {os.path.relpath(path, folder)}: {path} {': '.join(said)}."))
        for path, said in closed.items()]
    found = _found(files, read_lists(files), left, barred)
    found.unused.extend(one for one in _empty_patients(found.cases, files, folder)
                        if one.path not in closed)
    if not found.cases:
        found.unused.extend(_pictures(files))
        packed = [p for p in files if p.name.lower().endswith(ARCHIVE_ENDINGS)]
        also = (f" There is an archive in it, {packed[0].name}: give that as the source of "
                "`check` or `run`; for `predict`, unpack it, and give the folder."
                if packed else "")
        raise _nobody(folder, also, found)
    return found


def _pictures(files: Sequence[Path]) -> list[Unused]:
    """Name pictures, for a folder that holds no scan."""
    return shorten(Unused(p, f"in the format {p.suffix[1:].upper()}, but NIfTI is needed",
                          "use the scan that it was made from")
                   for p in files if p.suffix.lower() in (".png", ".jpg", ".jpeg"))


def find_packed(files: Sequence[Packed], archive: Path) -> Found:
    """Find the patients among the files of plain tars; BratsError if there is none."""
    odd = [Unused(file, *UNPRINTABLE) for file in files if CONTROL.search(file.member)]
    found = _found([f for f in files if not CONTROL.search(f.member)], Listed(), odd)
    if not found.cases:
        raise _nobody(archive, "", found)
    return found


def _nobody(place: Path, also: str, found: Found) -> BratsError:
    said = f"\n{list_unused(found.unused, 5)}" if found.unused else ""
    return BratsError(f"no patient in {place}: looked for {WANTED}.{also}{said}")


def besides(folder: Path, archives: Sequence[Path]) -> list[Unused]:
    """Return the unused files of a folder of archives, apart from the archives."""
    files, left, closed = _walk(folder)
    left += [Unused(path, *said) for path, said in closed.items()]
    return shorten([*left, *filter(None, (explain(p, []) for p in files if p not in archives))])


def _found(files: Sequence[Path | Packed], listed: Listed, left: Sequence[Unused],
           barred: Sequence[Case] = ()) -> Found:
    rest = [p for p in files if p not in listed.files]
    groups, used = group(rest)
    described = [with_bids_table(case_of(one)) for one in groups]
    cases = [*listed.cases, *(case for case, _ in described)]
    unused = [*left, *listed.unused, *(one for _, one in described if one),
              *filter(None, (explain(p, cases) for p in rest if p not in used))]
    told = [hint(case, unused) for case in cases]
    said = {one for _, ones in told for one in ones}
    cases, repeated = _without_copies(sorted((case for case, _ in told), key=lambda c: c.name))
    cases = sorted(_namesakes([*cases, *barred]), key=lambda c: c.name)
    return Found(cases, shorten([*(one for one in unused if one not in said), *repeated]))


def _namesakes(cases: Sequence[Case]) -> Iterator[Case]:
    """Give patients of one name a problem, and new names from the folders that differ."""
    names = Counter(case.name for case in cases)
    for case in cases:
        if names[case.name] == 1:
            yield case
            continue
        others = [c.images[0] for c in cases if c.name == case.name and c is not case]
        parts = [set(path.parent.parts) for path in others]
        own = [p for p in case.images[0].parent.parts if not any(p in part for part in parts)]
        number = 1 + [c for c in cases if c.name == case.name].index(case)
        name = f"{own[0] if own else number}_{case.name}"
        problem = (f"patient {name}: two patients are called {case.name}: {case.images[0]} and "
                   f"{others[0]}; rename or remove one.")
        yield replace(case, name=name, problem=problem)


def _without_copies(cases: list[Case]) -> tuple[list[Case], list[Unused]]:
    """Keep one copy of each patient whose files several archives hold."""
    kept: list[Case] = []
    repeated: list[Unused] = []
    for case in cases:
        first = next((other for other in kept if _same_files(case, other)), None)
        if first is None:
            kept.append(case)
        else:
            repeated.append(Unused(
                case.images[0].archive, f"patient {case.name} once more, with the same files as in "
                f"{first.images[0].archive}"))
    return kept, repeated


def _same_files(a: Case, b: Case) -> bool:
    """Tell whether two archives hold the same files: names, sizes and gzip's checksums agree."""
    if a.name != b.name or not all(isinstance(p, Packed) for p in (*a.images, *b.images)):
        return False
    ours, theirs = ([p and (p.size, p.read_bytes(last=8)) for p in (*case.images, case.reference)]
                    for case in (a, b))
    return a.images[0].archive != b.images[0].archive and ours == theirs


def _walk(root: Path) -> tuple[list[Path], list[Unused], dict[Path, tuple[str, str]]]:
    """Return all files below a folder, sorted, and the links and folders that cannot be used.

    Folders that may not be read, or whose names cannot be printed, are returned separately,
    with the reason and the remedy.
    """
    files, left, seen, waiting, closed, odd = [], [], set(), [root], [], {}
    while waiting:
        start, *waiting = waiting
        if start.resolve() in seen:
            left.append(Unused(start, f"a link to {start.resolve()}, which is read already"))
            continue
        for place, folders, names in os.walk(start, onerror=closed.append):
            here = Path(place)
            if here.resolve() in seen or not _may_enter(place, closed):
                folders.clear()
                continue
            seen.add(here.resolve())
            files += _usable(here, names, left)
            odd |= {here / name: _unprintable(name) for name in folders if CONTROL.search(name)}
            folders[:] = sorted(f for f in folders if not _hidden(f) and not CONTROL.search(f))
            links = [f for f in folders if (here / f).is_symlink()]
            waiting += [here / f for f in links]
            folders[:] = [f for f in folders if f not in links and not _ours(here / f, root)]
    files = sorted(path for path in files if not CONTROL.search(path.name))
    full = {path.resolve().parent for path in files if NIFTI.search(path.name)}
    left += [Unused(folder, "a folder with the name of a file, and no scan in it",
                    "put the file in its place")
             for folder in sorted(seen - full) if NIFTI.search(folder.name)]
    return files, left, odd | _explained(root, closed)


def _usable(here: Path, names: Sequence[str], left: list[Unused]) -> Iterator[Path]:
    """Yield a folder's files that may be read; scans that may not are added to `left`."""
    left += [Unused(here / name, *_unprintable(name)) for name in names
             if CONTROL.search(name) and ".nii" in name.lower()]
    left += [Unused(here / name, *HIDDEN) for name in names if UNFINISHED.match(name)]
    for name in _without_masks(here, names):
        if name.endswith(".icloud") or not _hidden(name):
            if (here / name).is_file():
                yield here / name
            else:
                left.append(_broken(here / name))


def _unprintable(name: str) -> tuple[str, str]:
    return NOT_TEXT if re.search("[\ud800-\udfff]", name) else UNPRINTABLE


def _may_enter(place: str, closed: list[OSError]) -> bool:
    """Tell whether the files in a folder may be opened, not only listed; else note the error."""
    try:
        os.stat(os.path.join(place, "."))
    except OSError as error:
        error.filename = place
        closed.append(error)
        return False
    return True


def _explained(root: Path, closed: Sequence[OSError]) -> dict[Path, tuple[str, str]]:
    """Say why a folder may not be read, and what to do; BratsError if it is the root."""
    said = {Path(error.filename): (f"cannot be read ({error.strerror})",
                                   "allow it (chmod), or move it away") for error in closed}
    if root in said:
        raise BratsError(f"{root} {': '.join(said[root])}.")
    return said


def _broken(path: Path) -> Unused:
    if path.exists() or not path.is_symlink():
        return Unused(path, "neither a file nor a folder")
    target = os.readlink(path)
    return Unused(path, f"a link to {target}, which is not there",
                  "run `git annex get` there" if "annex/objects" in target
                  else "restore the target, or remove the link")


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX", *BINS))


def _ours(folder: Path, root: Path) -> bool:
    """Tell whether this project wrote a folder: a part of a work folder, or an export."""
    try:
        if (folder / EXPORT).is_file():
            return True
    except PermissionError:
        return False  # os.walk reports it
    if not all((folder.parent / name).is_file() for name in WORK):
        return False
    inside = {sub.name for sub in folder.iterdir()}
    return (folder.name in OURS
            or (folder.name == "cases" and (folder.parent != root or inside <= COPIES))
            or (folder.name == "data" and inside >= PHANTOMS))


def _without_masks(folder: Path, names: Sequence[str]) -> Iterable[str]:
    """Leave out, among a folder's files, the masks that this project wrote."""
    if not any(name in names and _begins(folder / name, start) for name, start in MASKS.items()):
        return names
    return (n for n in names if not NIFTI.search(n) or FILE_NAME.match(n) or BIDS.match(n))


def _begins(path: Path, pattern: bytes) -> bool:
    with contextlib.suppress(OSError):
        return path.is_file() and bool(re.match(pattern, path.read_bytes()))
    return False


def _empty_patients(cases: Sequence[Case], files: Sequence[Path], root: Path) -> Iterator[Unused]:
    """Yield folders without a scan that are named like patients' folders and lie next to them."""
    homes = {case.images[0].parent for case in cases if case.images}
    forms = {(home.parent, _form(home.name)) for home in homes if root in home.parents}
    full = {parent for path in files if NIFTI.search(path.name) or explain(path, cases)
            for parent in path.parents}
    for parent in sorted({parent for parent, _ in forms}):
        for sub in sorted(parent.iterdir()):
            if (sub.is_dir() and not sub.is_symlink() and sub not in full
                    and (parent, _form(sub.name)) in forms):
                yield Unused(sub, "a folder named like a patient's, and no scan in it",
                             "add the scans, or remove it")


def _form(name: str) -> str:
    return re.sub(r"\d+", "0", name)
