"""Temporary files of a running process stay; those of a killed one go."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from brats_helpers.basics.files import atomic_path, remove_leftovers
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
