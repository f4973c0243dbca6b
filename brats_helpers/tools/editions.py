"""Write a student's and a teacher's edition of the notebooks.

In a cell with the tag "exercise", lines that end in `# solution` are the answer. The student's
edition has a blank instead, and the solution folded away below. The teacher's edition has
solutions, outputs and the notes "For teachers".
"""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from ..basics.files import write_file
from .series import FOLDER, NAMES, check_repository

MARK = re.compile(r"\s*# solution$")
NOTES = re.compile(r"<details><summary>For teachers</summary>.*?</details>", re.DOTALL)
ANSWER = re.compile(r"^(\w+) = ")  # at the left margin; inside a function the body is blank


def blank(source: str) -> str:
    """Replace an exercise's solution by `name = ...`, or by `...` inside a function."""
    lines: list[str] = []
    inside = False
    for line in source.splitlines():
        if not MARK.search(line):
            lines.append(line)
        elif found := ANSWER.match(line):
            lines.append(f"{found[1]} = ...  # your turn")
        elif not inside:
            lines.append(line[:len(line) - len(line.lstrip())] + "...  # your turn")
        inside = bool(MARK.search(line))
    return "\n".join(lines)


def solved(source: str) -> str:
    """Remove the marks from an exercise and keep its solution."""
    return "\n".join(MARK.sub("", line) for line in source.splitlines())


def student(notebook: NotebookNode) -> NotebookNode:
    """Blank the exercises, fold away the solutions, and remove outputs and notes for teachers."""
    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.source = NOTES.sub("", cell.source).strip()
        if not cell.source:
            continue
        cells.append(cell)
        if "exercise" in tags:
            code = f"```python\n{solved(cell.source)}\n```"
            cells.append(new_markdown_cell(
                f"<details><summary>Solution</summary>\n\n{code}\n</details>"))
            cell.source = blank(cell.source)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.cells = cells
    return numbered(notebook)


def teacher(notebook: NotebookNode) -> NotebookNode:
    """Keep everything, but remove the marks from the solutions."""
    for cell in notebook.cells:
        if "exercise" in cell.metadata.get("tags", []):
            cell.source = solved(cell.source)
    return numbered(notebook)


def numbered(notebook: NotebookNode) -> NotebookNode:
    """Give the cells numbers as ids, so that two runs write the same file."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"
    return notebook


def write_editions(folder: Path) -> list[Path]:
    """Write both editions into `folder`/student and `folder`/teacher; returns the paths."""
    check_repository()
    written = []
    for name in NAMES:
        for edition in (student, teacher):
            path = Path(folder) / edition.__name__ / f"{name}.ipynb"
            notebook = edition(nbformat.read(FOLDER / f"{name}.ipynb", 4))
            write_file(path, jupytext.writes(notebook, "ipynb"))
            written.append(path)
    return written
