"""Temporary files of a running process stay; those of a killed one go."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from brats_helpers.basics.errors import BratsError
from brats_helpers.basics.files import atomic_path, output_file, remove_leftovers, write_file
from brats_helpers.basics.lock import HOST


def test_only_files_of_ended_processes_are_leftovers(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {f".part-{HOST}-{ended.pid}-a.json": 0, f".part-{HOST}-1-b.json": -(10**9),
             ".part-old": 0, ".part-01234567-1-c.json": -4000, ".part-01234567-1-d.json": 0}
    for name, age in names.items():
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() + age,) * 2)
    with atomic_path(tmp_path / "deep" / "x.nii.gz") as temporary:
        remove_leftovers(tmp_path)
        assert temporary.is_file()
        assert [path.name for path in tmp_path.glob(".part*")] == [".part-01234567-1-d.json"]


def test_only_a_regular_file_is_replaced_and_a_link_stays(tmp_path: Path) -> None:
    """As root, a rename would replace /dev/null itself."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to device").symlink_to("/dev/null")
    for name, said in (("pipe", "is a device, a pipe"), ("to device", "is a device"),
                       ("folder", "is a folder.*move it away")):
        before = (tmp_path / name).lstat()
        with pytest.raises(BratsError, match=f"{name} {said}"):
            write_file(tmp_path / name, "x")
        assert (tmp_path / name).lstat() == before
    with open(tmp_path / "printed", "w") as file:
        number = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            with pytest.raises(BratsError, match="printed output"):
                output_file(Path("/dev/stdout"))
        finally:
            os.dup2(number, 1)
            os.close(number)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_file(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "x"
