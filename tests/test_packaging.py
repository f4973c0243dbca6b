"""The module as a package: it leaves torch alone, runs from elsewhere, declares its imports."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import pytest
import yaml

from brats_helpers.tools.series import FOLDER, NAMES, ROOT

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-index", "--no-build-isolation"]  # all that it needs is here already


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy to build from: building leaves files beside the source."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "brats_helpers", folder / "brats_helpers",
                    ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_installing_brings_the_module_and_does_not_touch_torch(source: Path) -> None:
    command = [*PIP, "install", *OFFLINE, "--dry-run", "--report", "-", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [entry["metadata"]["name"]
            for entry in json.loads(done.stdout)["install"]] == ["brats-helpers"]


def test_installed_it_runs_anywhere_and_says_when_it_needs_the_repository(
        source: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    subprocess.run([*PIP, "install", *OFFLINE, "--no-deps", "--target", str(target), str(source)],
                   check=True)
    assert (target / "brats_helpers" / "lessons" / "viewer.js").is_file()
    assert (target / "brats_helpers" / "tools" / "page.html.j2").is_file()

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True,
                              text=True, env={**os.environ, "PYTHONPATH": str(target)})

    assert "predict" in run("-m", "brats_helpers", "--help").stdout
    code = ("import brats_helpers.lessons.viewers as v, brats_helpers.basics.device as d, sys\n"
            "assert v.__file__.startswith(sys.argv[1]) and d.work_folder() == d.Path.cwd() / "
            "'runs' / 'quick'")
    assert run("-c", code, str(target)).returncode == 0
    for command in (["run"], ["editions"], ["kaggle", "build"]):
        done = run("-m", "brats_helpers", *command)
        assert done.returncode == 1
        assert "needs the repository" in done.stderr
        assert "Traceback" not in done.stderr


def imported(folder: Path) -> set[str]:
    """Return the names of the third-party packages that the Python files of a folder import."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
    return {name.split(".")[0] for name in found} - sys.stdlib_module_names - {"brats_helpers"}


def test_every_import_is_declared_and_every_requirement_is_used() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    declared = {re.split(r"[<>=]", line)[0].lower() for line in lines if line[:1] != "#"}
    names = {"IPython": "ipython", "PIL": "pillow", "skimage": "scikit-image", "yaml": "pyyaml"}
    used = {names.get(name, name) for name in imported(ROOT / "brats_helpers")}
    assert used - declared == {"kaggle", "distributed"}  # optional: a message asks for them
    assert declared - used - imported(FOLDER) == {"ipykernel", "jupyterlab"}  # to open notebooks


def test_the_repositorys_address_is_the_same_wherever_it_stands() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Repository"].removeprefix("https://github.com/")
    links = [("README.md", (ROOT / "README.md").read_text(), "01_setup")]
    links += [(name, (FOLDER / f"{name}.py").read_text(), name) for name in NAMES]
    for where, text, name in links:
        notebook = f"notebooks/{name}.ipynb"
        assert f"colab.research.google.com/github/{repository}/blob/main/{notebook}" in text, where
        assert f"mybinder.org/v2/gh/{repository}/main?labpath={notebook}" in text, where
        assert where == "README.md" or f'address = "https://github.com/{repository}"' in text, where


def stub(folder: Path, name: str) -> None:
    """A command that only says what it was called with."""
    (folder / name).write_text(f"#!/bin/sh\necho {name} $*\n")
    (folder / name).chmod(0o755)


def test_on_colab_alone_the_repository_is_fetched_and_what_it_requires(tmp_path: Path) -> None:
    cells = {next(c.source for c in jupytext.read(FOLDER / f"{name}.py").cells
                  if "COLAB_RELEASE_TAG" in c.source) for name in NAMES}
    assert len(cells) == 1
    for name in ("git", "pip"):
        stub(tmp_path, name)
    for colab, wanted in (({"COLAB_RELEASE_TAG": "1"}, ["git clone", "pip install"]), ({}, [])):
        said = subprocess.run([sys.executable, "-c", next(iter(cells))], capture_output=True,
                              text=True, check=True,
                              env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **colab}).stdout
        assert [" ".join(line.split()[:2]) for line in said.splitlines()] == wanted


def test_binder_installs_what_is_required_and_leaves_its_torch_alone(tmp_path: Path) -> None:
    made = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text())["dependencies"]
    assert "pytorch-cpu>=2.4" in made and "python=3.11" in made
    script = ROOT / "binder" / "postBuild"
    assert os.access(script, os.X_OK)
    stub(tmp_path, "python")
    said = subprocess.run(["bash", str(script)], cwd=ROOT, capture_output=True, text=True,
                          check=True, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}).stdout
    assert "-r requirements.txt" in said
    kept = Path("/tmp/constraints.txt").read_text()
    assert not re.search(r"^torch", kept, re.MULTILINE) and "monai==" in kept
