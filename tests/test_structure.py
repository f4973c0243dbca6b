"""The module's map holds, and functions and lines are short enough to read in a notebook."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import brats_helpers
from brats_helpers.tools.series import FOLDER, ROOT

PACKAGE = ROOT / "brats_helpers"
FOLDERS = ("brats_helpers", "benchmarks", "docs", "tests")
ROOMS = dict(re.findall(r"^(\w+)/ +(.*)$", brats_helpers.__doc__, re.MULTILINE))
READING = re.findall(r"\b\w+/\w+\b", brats_helpers.__doc__.rpartition("reading")[2])


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the functions of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_function_is_longer_than_40_lines(folder: str) -> None:
    long = [f"{path}:{node.lineno} {node.name}" for path in (ROOT / folder).rglob("*.py")
            for node in functions(path) if node.end_lineno - node.lineno >= 40]
    assert not long


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_line_is_longer_than_100_columns(folder: str) -> None:
    long = [f"{path}:{number}" for path in (ROOT / folder).rglob("*.py") for number, line
            in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > 100]
    assert not long


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    """Catch what ruff's D401 lets pass."""
    other = re.compile(r"(What|Whether|How|The|An?|All|Each|In|On|For|If|One)\b|[^A-Z]")
    assert not [f"{path}:{node.lineno} {node.name}" for path in PACKAGE.rglob("*.py")
                for node in functions(path) if other.match(ast.get_docstring(node) or "Do")]


def test_the_map_names_every_room_in_the_rooms_own_words() -> None:
    assert set(ROOMS) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    for room, sentence in ROOMS.items():
        said = importlib.import_module(f"brats_helpers.{room}").__doc__.strip().rstrip(".")
        assert said[0].lower() + said[1:] == sentence


def test_two_pages_and_notebook_01_show_the_map() -> None:
    for page in ("CONTRIBUTING.md", "docs/design.md"):
        assert brats_helpers.__doc__.strip() in (ROOT / page).read_text(encoding="utf-8"), page
    assert "brats_helpers.__doc__" in (FOLDER / "01_setup.py").read_text(encoding="utf-8")


def test_the_reading_list_takes_an_afternoon() -> None:
    files = {PACKAGE / f"{name}.py" for name in READING} | set((PACKAGE / "network").glob("*.py"))
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in files]
    assert len(READING) >= 9 and sum(lines) <= 1600


def test_rooms_export_what_notebooks_import_and_no_more() -> None:
    """A name that is exported comes from the module that the room's list says."""
    line = re.compile(r"^from brats_helpers\.(\w+) import (?:\(([^)]*)\)|(.*))$", re.MULTILINE)
    text = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py"))
    assert not re.search(r"brats_helpers\.\w+\.\w+ import", text)
    for room in set(ROOMS) - {"tools"}:
        package = importlib.import_module(f"brats_helpers.{room}")
        used = {name.split()[0] for found, *names in line.findall(text) if found == room
                for name in "".join(names).split(",") if name.strip()}
        modules = {path.stem for path in (PACKAGE / room).glob("*.py")}
        assert used - modules == set(package.__all__)
        assert all(hasattr(package, name) for name in used - modules)


def test_no_six_lines_stand_twice() -> None:
    """Lines of code in a row, without blanks, comments and what only closes a bracket."""
    seen: dict[tuple[str, ...], str] = {}
    twice = []
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        lines = [(number, line.strip()) for number, line
                 in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
                 if re.search(r"\w", line) and not re.match(r"\s*(#|from |import )", line)]
        for start in range(len(lines) - 5):
            six = tuple(line for _, line in lines[start:start + 6])
            place = f"{path.relative_to(ROOT)}:{lines[start][0]}"
            if seen.setdefault(six, place) != place:
                twice.append(f"{place} = {seen[six]}")
    assert not twice


def test_the_lists_of_tests_name_tests_that_exist() -> None:
    faults = re.search(r"^FAULTS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert not [test for test in faults.split()
                if not list((ROOT / "tests").rglob(f"test_{test}.py"))]
    quick = (ROOT / "tests" / "quick.txt").read_text().splitlines()[2:]  # after -k and its value
    assert quick and not [path for path in quick if not (ROOT / path).is_file()]


def test_links_of_the_guides_lead_to_pages_of_the_site() -> None:
    """`make site` is strict, and it is not a part of this suite."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"),
             *ROOT.glob("benchmarks/**/*.md")]
    links = [(page, link.split("#")[0]) for page in pages
             for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
             if not link.startswith(("http", "#", "mailto"))]
    shown = (".md", ".ipynb", ".png", ".gif", ".svg", ".json", "LICENSE")
    assert len(links) > 50
    assert [(page.name, link) for page, link in links
            if not link.endswith(shown) or not (page.parent / link).is_file()] == []
