"""Targets of the fuzzer: any bytes are read, or refused with one of our messages."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from brats_helpers.basics.errors import BratsError
from brats_helpers.data.archive import Limits, extract, summarize_archive
from brats_helpers.data.cases import Case, check_case

CORPUS = Path(__file__).parent / "corpus"
LIMITS = Limits(files=200,
                gigabytes=0.02)  # an accepted archive is small, so that the fuzzer is quick
ENDINGS = (".tar", ".tar.gz", ".zip")


def archive(data: bytes) -> None:
    """List and unpack a file; its first byte chooses the ending. Nothing leaves the folder."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name)
        path = folder / f"a{ENDINGS[data[0] % 3] if data else '.tar'}"
        path.write_bytes(data[1:])
        try:
            written = extract(path, folder / "in" / "out", LIMITS)
            summarize_archive([])
        except BratsError as error:
            assert path.name in str(error) or "could not be written" in str(error)
            written = []
        assert {p.name for p in folder.iterdir()} <= {path.name, "in"} and not list(
            folder.rglob(".part*")
        )
        assert {p.name for p in (folder / "in").glob("*")} <= {"out"}
        assert all(
            p.resolve().is_relative_to(folder.resolve() / "in" / "out") and p.is_file()
            for p in written
        )


def nifti(data: bytes) -> None:
    """Read a file as scan and as reference; its first byte chooses the ending."""
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as folder:
        path = Path(folder) / ("x.nii.gz" if data[:1] < b"\x80" else "x.nii")
        path.write_bytes(data[1:])
        for reference in (None, path):
            row = check_case(Case("x", (path,) * 4, reference))
            assert all(
                "patient x" in problem and path.name in problem for problem in row["problems"]
            )


TARGETS: dict[str, Callable[[bytes], None]] = {"archive": archive, "nifti": nifti}
