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
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jupytext
import pytest
import yaml

from brats_helpers.__main__ import main
from brats_helpers.basics.errors import BratsError
from brats_helpers.lessons import session
from brats_helpers.tools.address import GITHUB, from_remote, set_address, with_address
from brats_helpers.tools.series import FOLDER, NAMES, ROOT

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-index", "--no-build-isolation"]  # all that it needs is here already


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy to build from: building leaves files beside the source."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "requirements.txt", "requirements-terminal.txt", "README.md",
                 "LICENSE"):
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
    for name in ("varied", "refiner-1", "refiner-2"):
        assert (target / "brats_helpers" / "weights" / f"{name}.safetensors").is_file()

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


def imported(paths: Iterable[Path]) -> set[str]:
    """Return the third-party packages that Python files import, as requirements name them."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
    names = {"IPython": "ipython", "PIL": "pillow", "yaml": "pyyaml"}
    tops = {name.split(".")[0] for name in found} - sys.stdlib_module_names - {"brats_helpers"}
    return {names.get(name, name) for name in tops}


def declared(name: str) -> set[str]:
    """Return the packages that a requirements file lists."""
    lines = (ROOT / name).read_text().splitlines()
    return {re.split(r"[<>=]", line)[0] for line in lines if line[:1] != "#"}


def test_every_import_is_declared_and_every_requirement_is_used() -> None:
    files = set((ROOT / "brats_helpers").rglob("*.py"))
    tools = {path for path in files if path.parent.name == "tools"}
    notebooks = imported([*(files - tools), *FOLDER.glob("*.py")])
    listed, terminal = declared("requirements.txt"), declared("requirements-terminal.txt")
    assert notebooks == listed
    # optional: a message asks for them
    assert imported(tools) - listed - terminal == {"kaggle", "distributed"}
    assert terminal - imported(tools) == {"ipykernel", "jupyterlab"}  # to open notebooks


PLACES = ["README.md", "pyproject.toml", *(f"notebooks/{name}.py" for name in NAMES)]


def test_the_repositorys_address_is_the_same_wherever_it_stands() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project.get("urls", {}).get("Repository", "").removeprefix(GITHUB)
    for place in PLACES:
        text = (ROOT / place).read_text()
        assert with_address(text, Path(place).stem, repository) == text, place


def test_one_command_sets_the_address_everywhere_and_takes_it_out_again(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    before = {place: with_address((ROOT / place).read_text(), Path(place).stem, "")
              for place in PLACES}
    for place, text in before.items():
        (tmp_path / place).write_text(text)
    for address in ("somebody/else", "you/name"):
        assert len(set_address(address, tmp_path)) == len(PLACES)
    for place in PLACES:
        text, name = (tmp_path / place).read_text(), Path(place).stem
        assert "somebody/" not in text
        if place == "pyproject.toml":
            assert tomllib.loads(text)["project"]["urls"]["Repository"] == f"{GITHUB}you/name"
            continue
        book = "01_setup" if name == "README" else name
        assert f"colab.research.google.com/github/you/name/blob/main/notebooks/{book}.ipynb" in text
        assert f"mybinder.org/v2/gh/you/name/main?labpath=notebooks/{book}.ipynb" in text
        assert name == "README" or f'address = "{GITHUB}you/name"' in text
    set_address("", tmp_path)
    assert {place: (tmp_path / place).read_text() for place in PLACES} == before
    with pytest.raises(BratsError, match="OWNER/NAME"):
        set_address("https://elsewhere", tmp_path)


@pytest.mark.parametrize("remote", ["https://github.com/you/name.git", "git@github.com:you/name",
                                    "", "/tmp/here"])
def test_the_address_is_that_of_the_git_remote(tmp_path: Path, remote: str) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    if remote:
        subprocess.run(["git", "remote", "add", "origin", remote], cwd=tmp_path, check=True)
    if "github" in remote:
        assert from_remote(tmp_path) == "you/name"
    else:
        with pytest.raises(BratsError, match="not on GitHub"):
            from_remote(tmp_path)


def stub(folder: Path, name: str) -> None:
    """A command that only says what it was called with."""
    (folder / name).write_text(f"#!/bin/sh\necho {name} $*\n")
    (folder / name).chmod(0o755)


def test_on_colab_alone_the_repository_is_fetched(tmp_path: Path) -> None:
    cells = {next(c.source for c in jupytext.read(FOLDER / f"{name}.py").cells
                  if "COLAB_RELEASE_TAG" in c.source) for name in NAMES}
    assert len(cells) == 1
    for name in ("git", "pip"):
        stub(tmp_path, name)
    colab, kaggle = {"COLAB_RELEASE_TAG": "1"}, {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}
    for place, wanted in ((colab, ["git clone"]), ({}, []), (colab | kaggle, [])):
        said = subprocess.run([sys.executable, "-c", next(iter(cells))], capture_output=True,
                              text=True, check=True,
                              env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **place}).stdout
        assert [" ".join(line.split()[:2]) for line in said.splitlines()] == wanted


class Installed(NamedTuple):
    """A package as importlib.metadata shows it."""

    name: str | None
    version: str | None


def test_only_what_is_missing_is_installed_and_the_rest_keeps_its_version(
        tmp_path: Path, monkeypatch) -> None:
    there = [Installed("torch", "2.11.0+cu128"), Installed("ipykernel", "6.17.1"),
             Installed("Lazy_Loader", "0.4"), Installed("distro-info", "1.1build1"),
             Installed(None, None), Installed("numpy", "2.1.3"), Installed("numpy", "1.21.5")]
    monkeypatch.setattr(session.importlib.metadata, "distributions", lambda: there)
    calls: list[list[str]] = []
    kept: list[str] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess:
        calls.append(command)
        kept.extend(Path(command[command.index("-c") + 1]).read_text().splitlines())
        return subprocess.CompletedProcess(command, len(calls) - 1, "", "no matching version")

    monkeypatch.setattr(session.subprocess, "run", pip)
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("# all\ntorch>=2.4\nnumpy>=9\nmonai>=1.4\nisal>=1.6\nlazy-loader\n")
    assert session.install_missing(wanted) == ["monai>=1.4", "isal>=1.6"]
    assert calls[0][1:4] == ["-m", "pip", "install"]
    assert calls[0][-2:] == ["monai>=1.4", "isal>=1.6"]
    assert kept == ["torch==2.11.0+cu128", "ipykernel==6.17.1", "lazy-loader==0.4", "numpy==2.1.3"]
    with pytest.raises(BratsError, match="monai>=1.4, isal>=1.6 could not be installed:\nno match"):
        session.install_missing(wanted)
    wanted.write_text("torch>=2.4\n")
    assert session.install_missing(wanted) == [] and len(calls) == 2


def test_a_command_says_what_it_lacks(monkeypatch, capsys) -> None:
    monkeypatch.delitem(sys.modules, "brats_helpers.tools.series")
    monkeypatch.setitem(sys.modules, "papermill", None)
    assert main(["run"]) == 1
    assert "papermill is missing: pip install -r requirements-terminal" in capsys.readouterr().err


def test_binder_installs_what_is_required_and_leaves_its_torch_alone(tmp_path: Path) -> None:
    made = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text())["dependencies"]
    assert "pytorch-cpu>=2.4" in made and "python=3.11" in made
    script = ROOT / "binder" / "postBuild"
    assert os.access(script, os.X_OK)
    stub(tmp_path, "python")
    said = subprocess.run(["bash", str(script)], cwd=ROOT, capture_output=True, text=True,
                          check=True, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}).stdout
    assert "-r requirements.txt -r requirements-terminal.txt" in said
    kept = Path("/tmp/constraints.txt").read_text()
    assert not re.search(r"^torch", kept, re.MULTILINE) and "monai==" in kept
