"""The student's edition: blanks that run, and solutions that fit into them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from conftest import SMOKE, namespaces_allowed

from brats_helpers.lessons.checks import Verdict
from brats_helpers.tools import editions, series

NAMES = series.NAMES
EXERCISES = dict.fromkeys(NAMES, 4) | {"05_training_evaluation": 5}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("editions")
    editions.write_editions(folder)
    return folder


def exercises(path: Path) -> list[str]:
    """The sources of a notebook's exercises."""
    return [c.source for c in nbformat.read(path, 4).cells
            if "exercise" in c.metadata.get("tags", [])]


def test_blanks() -> None:
    source = ("a = 1\nanswer = a + 1  # solution\n\ndef f(x):\n    y = x  # solution\n"
              "    return y  # solution\n\ncheck(f)")
    blank = "a = 1\nanswer = ...  # your turn\n\ndef f(x):\n    ...  # your turn\n\ncheck(f)"
    assert editions.blank(source) == blank
    assert editions.solved(source) == source.replace("  # solution", "")


@pytest.mark.parametrize("name", NAMES)
def test_every_exercise_is_blank_with_its_solution_folded_away(written: Path, name: str) -> None:
    student, teacher = (nbformat.read(written / kind / f"{name}.ipynb", 4)
                        for kind in ("student", "teacher"))
    given, solved = (exercises(written / kind / f"{name}.ipynb") for kind in ("student", "teacher"))
    assert len(given) == len(solved) == EXERCISES[name]
    folded = [c.source for c in student.cells if c.source.startswith("<details><summary>Solution")]
    for blank, solution, text in zip(given, solved, folded, strict=True):
        assert "...  # your turn" in blank
        assert "# solution" not in blank + solution
        assert solution in text
        assert re.search(r"(checks|investigations)\.check_\w+\(", blank)
    assert not any(c.get("outputs") for c in student.cells)
    assert any(c.get("outputs") for c in teacher.cells)
    everything = "\n".join(c.source for c in student.cells)
    assert "For teachers" not in everything
    assert "For teachers" in "\n".join(c.source for c in teacher.cells)


@pytest.mark.skipif(namespaces_allowed(), reason="test_kaggle has a student do this on Kaggle")
def test_a_student_who_leaves_every_blank_comes_to_the_end(written: Path, tmp_path: Path,
                                                           monkeypatch) -> None:
    monkeypatch.setattr(series, "FOLDER", written / "student")
    work = series.run_series(work=tmp_path / "work", parameters=SMOKE)
    for name in NAMES:
        assert_all_open(work / "notebooks" / f"{name}.ipynb", name)


def assert_all_open(executed: Path, name: str) -> None:
    """Every exercise of a notebook was run, and its check says that it is open."""
    said = [out.data["text/plain"] for c in nbformat.read(executed, 4).cells
            if "exercise" in c.metadata.get("tags", []) for out in c.outputs]
    assert len(said) == EXERCISES[name]
    assert all(text == repr(Verdict("open", text.removeprefix("Not tried yet. "))) for text in said)
