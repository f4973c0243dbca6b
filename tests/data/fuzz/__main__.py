"""Fuzz a target from its corpus, guided by coverage (atheris).

`python tests/data/fuzz TARGET [libFuzzer's options]`

A crash, a hang of 20 s or 2 GB of memory stops it and leaves the input in the current folder.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parent.parent.parent),
                str(Path(__file__).resolve().parent)]
with atheris.instrument_imports(include=["brats_helpers", "tarfile", "zipfile", "gzip", "nibabel"]):
    import targets


def main() -> None:
    """Set up libFuzzer; what it finds new goes to a folder of its own, not to the repository."""
    logging.disable(logging.CRITICAL)  # nibabel tells of each odd header
    name, *options = sys.argv[1:]
    limits = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=20000"]
    found = tempfile.mkdtemp(prefix=f"fuzz-{name}-")
    atheris.Setup([sys.argv[0], *limits, *options, found, str(targets.CORPUS / name)],
                  targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
