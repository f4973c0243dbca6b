"""Archives: listed, refused, unpacked, resumed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import pack, small_volumes, write_case

from brats_helpers.__main__ import main
from brats_helpers.basics.errors import BratsError
from brats_helpers.basics.files import Packed
from brats_helpers.data.archive import (
    Limits,
    Member,
    extract,
    find_patients,
    list_archive,
    readable_in_place,
    summarize_archive,
)
from brats_helpers.data.cases import check_case, find_twins, on_disk, read_case
from brats_helpers.data.check import check_path
from brats_helpers.data.formats import exportable
from brats_helpers.data.pipeline import content_hash


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    for name in ("P1", "P2"):
        write_case(tmp_path / "cohort", name, *small_volumes())
    return tmp_path / "cohort"


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.zip"])
def test_list_and_extract_give_what_was_packed(cohort: Path, tmp_path: Path, name: str) -> None:
    archive = pack(cohort, tmp_path / name)
    rows = summarize_archive(list_archive(archive))
    assert [row["name"] for row in rows] == ["P1", "P2"] and len(rows[0]["files"]) == 5
    for path in extract(archive, tmp_path / "out"):
        assert path.read_bytes() == (cohort / path.relative_to(tmp_path / "out")).read_bytes()


def test_patients_in_a_tar_are_those_of_the_folder_without_a_file_written(cohort: Path,
                                                                          tmp_path: Path) -> None:
    archive = pack(cohort, tmp_path / "a.tar")
    before = sorted(tmp_path.rglob("*"))
    packed, unpacked = find_patients(archive).cases, find_patients(cohort).cases
    assert [case.name for case in packed] == [case.name for case in unpacked] == ["P1", "P2"]
    for a, b in zip(packed, unpacked):
        here, there = read_case(a), read_case(b)
        np.testing.assert_array_equal(here.images, there.images)
        np.testing.assert_array_equal(here.reference, there.reference)
        np.testing.assert_array_equal(here.affine, there.affine)
        assert content_hash(a, 2.0) == content_hash(b, 2.0)  # prepared once, used both ways
        assert exportable(b) and not exportable(a)
    twins = [find_twins(map(check_case, found)) for found in (packed, unpacked)]
    assert twins == [[["P1", "P2"]]] * 2
    assert sorted(tmp_path.rglob("*")) == before
    alone = on_disk(packed[0], tmp_path / "out")
    assert all(
        path.read_bytes() == (cohort / "P1" / path.name).read_bytes()
        for path in (*alone.images, alone.reference)
    )
    assert on_disk(alone, tmp_path / "elsewhere") == alone and readable_in_place(archive)
    assert not any(
        readable_in_place(pack(cohort, tmp_path / name)) for name in ("a.tar.gz", "a.zip")
    )


def test_a_plain_scan_named_gz_changes_its_hash_with_any_voxel(tmp_path: Path) -> None:
    write_case(tmp_path, "P", *small_volumes(), suffix=".nii")
    for path in tmp_path.rglob("*.nii"):
        path.rename(path.with_name(f"{path.name}.gz"))
    (case,) = find_patients(tmp_path).cases
    before, content = content_hash(case, 2.0), bytearray(case.images[0].read_bytes())
    content[-1000] ^= 1
    case.images[0].write_bytes(content)
    assert content_hash(case, 2.0) != before


def test_a_tar_that_was_cut_or_damaged_is_said_by_patient_and_file(cohort: Path,
                                                                   tmp_path: Path) -> None:
    archive = pack(cohort, tmp_path / "a.tar")
    cases = find_patients(archive).cases
    content = bytearray(archive.read_bytes())
    image = cases[1].images[2]
    content[image.offset : image.offset + 40] = bytes(40)
    archive.write_bytes(content)
    with pytest.raises(BratsError,
                       match=r"patient P2, .*a.tar/P2/P2_t1ce.nii.gz: cannot be opened"):
        read_case(cases[1])
    archive.write_bytes(content[: image.offset + 100])
    with pytest.raises(
        BratsError,
        match="patient P2, .*P2_t1ce.nii.gz: cannot be opened as NIfTI .the archive ends",
    ):
        read_case(cases[1])
    with pytest.raises(BratsError, match="is damaged or incomplete|is cut short"):
        find_patients(archive)
    assert len(Packed(archive, "x", 0, 30).read_bytes(last=8)) == 8


def test_bombs_are_refused_before_anything_is_written(tmp_path: Path, faults) -> None:
    with zipfile.ZipFile(tmp_path / "big.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(5):
            archive.writestr(f"P/P_{n}_flair.nii", b"\0" * 50_000_000)
    with tarfile.open(tmp_path / "big.tar.gz", "w:gz") as archive:
        for n in range(5):
            info = tarfile.TarInfo(f"P/P_{n}_flair.nii")
            info.size = 50_000_000
            archive.addfile(info, io.BytesIO(b"\0" * info.size))
    for name in ("big.zip", "big.tar.gz"):
        with pytest.raises(BratsError,
                           match=f"{name}: refused, because of the member 'P/P_4_flair.nii'"):
            extract(tmp_path / name, tmp_path / "out")
    write_case(tmp_path / "cohort", "P", *small_volumes())
    for limits, message in ((Limits(files=3), "4 files"),
                            (Limits(gigabytes=1e-6), "1 files of 0.0 GB.*members.Limits")):
        with pytest.raises(BratsError, match=message):
            extract(pack(tmp_path / "cohort", tmp_path / "many.tar"), tmp_path / "out", limits)
    faults("hostile archives", 4)
    assert not (tmp_path / "out").exists()


def test_the_decathlons_patients_are_counted() -> None:
    rows = summarize_archive(
        [
            Member(f"Task01/{folder}/BRATS_{n:03d}.nii.gz", 10**6)
            for n in range(3)
            for folder in ("imagesTr", "labelsTr")
        ]
    )
    assert [row["name"] for row in rows] == ["BRATS_000", "BRATS_001", "BRATS_002"] and rows[0][
        "mb"
    ] == 2.0


def test_a_second_call_writes_only_what_is_missing(cohort: Path, tmp_path: Path) -> None:
    archive = pack(cohort, tmp_path / "a.tar")
    paths = extract(archive, tmp_path / "out")
    paths[0].unlink()
    paths[1].write_bytes(b"half")
    before = {path: os.stat(path).st_mtime_ns for path in paths[2:]}
    extract(archive, tmp_path / "out")
    assert paths[1].stat().st_size > 4 and paths[0].is_file()
    assert before == {path: os.stat(path).st_mtime_ns for path in paths[2:]}


def test_another_archive_leaves_nothing_of_the_first(cohort: Path, tmp_path: Path) -> None:
    extract(pack(cohort, tmp_path / "a.tar"), tmp_path / "out")
    write_case(tmp_path / "other", "P3", *small_volumes(3))
    extract(pack(tmp_path / "other", tmp_path / "b.tar"), tmp_path / "out")
    assert {p.parent.name for p in (tmp_path / "out").rglob("*.nii.gz")} == {"P3"}
    mine = tmp_path / "mine"
    write_case(mine, "P9", *small_volumes(9))
    extract(tmp_path / "b.tar", mine)  # a folder that we did not make is added to, never emptied
    assert {p.parent.name for p in mine.rglob("*.nii.gz")} == {"P3", "P9"}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_a_short_archive_is_refused(cohort: Path, tmp_path: Path, name: str) -> None:
    archive = pack(cohort, tmp_path / name)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 2 // 3])
    with pytest.raises(BratsError, match="cut short|damaged"):
        list_archive(archive)
    with pytest.raises(BratsError):
        extract(archive, tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [("../x_t1.nii.gz", tarfile.REGTYPE, "out of the folder"),
     ("/etc/x_t1.nii.gz", tarfile.REGTYPE, "out of the folder"),
     ("x_t1.nii.gz", tarfile.SYMTYPE, "link"), ("x_t1.nii.gz", tarfile.LNKTYPE, "link"),
     ("x_t1.nii.gz", tarfile.CHRTYPE, "device"), ("x_t1.nii.gz", tarfile.FIFOTYPE, "device"),
     ("good/X_t2.nii.gz", tarfile.REGTYPE, "twice"),
     ("good", tarfile.REGTYPE, "folder has the same name"),
     ("n" * 300, tarfile.REGTYPE, "no disk can take"),
     ("C:x_t1.nii.gz", tarfile.REGTYPE, "out of the folder"),
     ("a\\..\\..\\x_t1.nii.gz", tarfile.REGTYPE, "out of the folder")],
)
def test_unsafe_members_are_refused_before_anything_is_written(
    tmp_path: Path, name: str, kind: bytes, message: str, faults
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("good/x_t2.nii.gz"), io.BytesIO())
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(BratsError, match=message):
        extract(tmp_path / "a.tar", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))
    faults("hostile archives")


def test_names_with_the_slash_of_windows_are_paths(cohort: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("data\\P1\\", b"")  # a folder
        for path in sorted(cohort.rglob("*.nii.gz")):
            archive.writestr(f"data\\{path.parent.name}\\{path.name}", path.read_bytes())
    members = list_archive(tmp_path / "w.zip")
    assert len(members) == 10 and members[0].name == "data/P1/P1_flair.nii.gz"
    assert [row["name"] for row in check_path(tmp_path / "w.zip", 1).rows] == ["P1", "P2"]


@pytest.mark.parametrize("names", [("a.tar", "b.tar", "c.tar"), ("a.tar.gz", "b.zip", "c.zip")])
def test_a_broken_archive_among_others_is_named_and_the_others_are_checked(
        tmp_path: Path, names: tuple[str, ...], capsys) -> None:
    for number, name in enumerate(names):
        raw = write_case(tmp_path / f"P{number}", f"P{number}", *small_volumes(number)).parent
        (tmp_path / "in").mkdir(exist_ok=True)
        pack(raw, tmp_path / "in" / name)
    content = bytearray((tmp_path / "in" / names[2]).read_bytes())
    content[2000:2100] = bytes(100)  # a zip's list is at its end and still whole
    (tmp_path / "in" / names[2]).write_bytes(content[:5000] if ".tar" in names[2] else content)
    assert main(["check", str(tmp_path / "in"), "--jobs", "1"]) == 1
    said = capsys.readouterr().out
    assert f"2 patient(s) in {tmp_path / 'in'}, " in said and "brats-check" not in said
    assert f"{tmp_path / 'in' / names[2]}: not checked: " in said
    assert "P0 " in said and "P1 " in said and "get it again" in said


def test_an_archive_of_archives_is_named(cohort: Path, tmp_path: Path) -> None:
    inner = pack(cohort, tmp_path / "inner.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:
        outer.write(inner, "Deep/inner.zip")
    with pytest.raises(BratsError, match="outer.zip holds archives .*'Deep/inner.zip': unpack it"):
        check_path(tmp_path / "outer.zip")


def test_an_encrypted_zip_is_not_called_damaged(cohort: Path, tmp_path: Path) -> None:
    content = bytearray(pack(cohort, tmp_path / "x.zip").read_bytes())
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # local and central headers
        at = content.find(start)
        content[at + flags] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(BratsError, match="is encrypted: unpack it with its password"):
        list_archive(tmp_path / "x.zip")


@pytest.mark.parametrize(("ending", "packer"), [("xz", lzma), ("bz2", bz2), ("gz", gzip)])
def test_a_packed_scan_is_not_an_archive(tmp_path: Path, ending: str, packer: ModuleType) -> None:
    write_case(tmp_path, "P1", *small_volumes(), suffix=".nii")
    for name in (f"P1_t1.nii.{ending}", f"P1.tar.{ending}"):
        path = tmp_path / name
        path.write_bytes(packer.compress((tmp_path / "P1/P1_t1.nii").read_bytes()))
        with pytest.raises(BratsError, match="scan.*give the folder of the patient"):
            list_archive(path)
