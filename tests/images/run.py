"""Run the five notebooks in a replica of Kaggle's or Colab's image, with their smallest sizes.

`make test-images` calls it with the replica's Python. What the image has must keep its version, and
`pip check` must say at the end what it said at the beginning.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from brats_helpers.lessons.session import install_wheels, installed_versions  # noqa: E402

# What tells a notebook where it is; Kaggle's image is built on Colab's.
SIGNS = {"colab": {"COLAB_RELEASE_TAG": "replica"},
         "kaggle": {"COLAB_RELEASE_TAG": "replica", "KAGGLE_KERNEL_RUN_TYPE": "Batch"}}
SIZES = {"patients": 6, "test_patients": 2, "spacing_mm": 4.0, "epochs": 1, "steps": 3, "patch": 32,
         "overfit_steps": 40, "full_size": False}


def pip(*arguments: str) -> str:
    """Run pip and return what it prints."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout


def remove_additions() -> None:
    """Remove what an earlier run has added to the image, which the file `ready` lists."""
    image = {line.split("==")[0] for line in (Path(sys.prefix) / "ready").read_text().split()}
    now = {line.split("==")[0] for line in pip("freeze").split()}
    if added := sorted(now - image):
        pip("uninstall", "--yes", *added)


def prepare(place: str, folder: Path) -> None:
    """Do what happens before the first cell: Kaggle has the helper dataset, Colab the repository.

    The first cell would clone the repository on Colab: a git that does nothing comes first in PATH.
    """
    os.environ.update(SIGNS[place], PYTHONPATH=str(ROOT), BRATS_HEADLESS="1")
    if place == "kaggle":
        from brats_helpers.tools.kaggle import WHEELS
        wheels = folder / "helpers" / "wheels"
        pip("download", "--no-deps", "-c", str(ROOT / "constraints.txt"), "-d", str(wheels),
            *WHEELS)
        print("installed from the helper dataset:", *install_wheels(folder))
    else:
        (folder / "git").write_text("#!/bin/sh\n")
        (folder / "git").chmod(0o755)
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def run_all(work: Path) -> None:
    """Execute the notebooks with papermill, and render them, or with nbclient alone."""
    if importlib.util.find_spec("papermill"):
        from brats_helpers.tools.series import run_series
        run_series(work=work, parameters=SIZES)
        return
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        execute(path, work)


def execute(path: Path, work: Path) -> None:
    """Execute one notebook with nbclient; it stays in the work folder."""
    start, book = time.monotonic(), nbformat.read(path, 4)
    position, cell = next((n, cell) for n, cell in enumerate(book.cells)
                          if "parameters" in cell.metadata.get("tags", []))
    given = {"work": str(work), **SIZES}
    lines = [f"{k} = {v!r}" for k, v in given.items() if f"\n{k}:" in f"\n{cell.source}"]
    book.cells.insert(position + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    try:
        NotebookClient(book, kernel_name="python3", timeout=None,
                       resources={"metadata": {"path": str(path.parent)}}).execute()
    finally:
        nbformat.write(book, work / path.name)
    print(f"{path.stem}: {time.monotonic() - start:.0f} s", flush=True)


def main(place: str, work: Path) -> int:
    """Run the series in a place's replica; 1 if its packages are not what they were."""
    work.mkdir(parents=True)
    remove_additions()
    check, before = pip("check"), installed_versions()
    with tempfile.TemporaryDirectory() as folder:
        prepare(place, Path(folder))
        run_all(work)
    check_after, after = pip("check"), installed_versions()
    changed = {name for name, version in before.items() if after.get(name) != version}
    print(f"pip check before: {check.strip()}\npip check after: {check_after.strip()}\n"
          f"added: {' '.join(f'{name} {after[name]}' for name in sorted(set(after) - set(before)))}"
          f"\nchanged: {' '.join(sorted(changed)) or 'nothing'}")
    return int(check != check_after or bool(changed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]).absolute()))
