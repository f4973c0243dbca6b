"""Read the notebooks as text: questions have answers, sections are complete, pictures have alt."""

import ast
import json
import re
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("0*.py"))
SECTIONS = ("By the end you can", "Parameters", "Recap", "When it goes wrong",
            "What surprised us", "radiologist")
QUESTION, ANSWER = "**Question.**", "<details><summary>Answer"
TOKENS = re.compile(r"^## .*|<details>.*|\*\*Question\.\*\*.*", re.MULTILINE)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[str]:
    """Return the sources of all cells of one kind, in order."""
    return [cell.source for cell in jupytext.read(path).cells if cell.cell_type == kind]


def unanswered(text: str) -> list[str]:
    """List questions without a folded answer before the next question or heading of level 2."""
    tokens = TOKENS.findall(text)
    after = [*tokens[1:], "## the end"]
    return [token for token, follower in zip(tokens, after, strict=True)
            if token.startswith(QUESTION) and not follower.startswith(ANSWER)]


def shows_source(node: ast.AST) -> bool:
    """Say whether this is a call of show_source."""
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "show_source"


def minutes_agree(announced: int, seconds: float) -> bool:
    """Compare whole minutes with a measured time; a minute stands for anything shorter."""
    return announced == 1 and seconds <= 60 or 0.5 <= 60 * announced / seconds <= 2


def test_all_notebooks_are_found():
    assert len(NOTEBOOKS) == 5


@pytest.mark.parametrize("text", ["**Question.** Why?", f"**Question.** Why?\n## Next\n{ANSWER}",
                                  f"**Question.** Why?\n**Question.** How?\n{ANSWER}",
                                  "**Question.** Why?\n<details><summary>Hint</summary>"])
def test_a_missing_answer_is_noticed(text: str):
    assert len(unanswered(text)) == 1
    assert not unanswered(f"**Question.** Why?\n\n{ANSWER}\n\n**Question.** How?\n{ANSWER}")


@each_notebook
def test_every_question_has_a_folded_answer(path: Path):
    text = "\n\n".join(cells(path, "markdown"))
    assert QUESTION in text
    assert not unanswered(text)


def test_the_teaching_notes_list_every_exercise():
    noted = re.findall(r"^\| (\d\d\.\d) (.*?) \| \d+ \|",
                       (FOLDER.parent / "docs" / "teaching.md").read_text(encoding="utf-8"),
                       re.MULTILINE)
    there = [(f"{path.name[:2]}.{number}", title) for path in NOTEBOOKS for number, title in
             re.findall(r"^### Exercise (\d): (.*)$", "\n".join(cells(path, "markdown")),
                        re.MULTILINE)]
    assert noted == there


@each_notebook
def test_details_are_closed(path: Path):
    for source in cells(path, "markdown"):
        assert source.count("<details>") == source.count("</details>"), source


@each_notebook
def test_show_source_comes_last_in_its_cell(path: Path):
    for source in cells(path, "code"):
        tree = ast.parse(source)
        calls = [node for node in ast.walk(tree) if shows_source(node)]
        if calls:
            last = tree.body[-1]
            assert len(calls) == 1, source
            assert isinstance(last, ast.Expr) and last.value is calls[0], source


@each_notebook
def test_sections_are_complete(path: Path):
    text = "\n".join(cells(path, "markdown"))
    assert [section for section in SECTIONS if section not in text] == []


@each_notebook
def test_header_gives_times_as_numbers(path: Path):
    rows = re.findall(r"^\| takes \| (.*) \|$", "\n".join(cells(path, "markdown")), re.MULTILINE)
    assert len(rows) == 1
    run, work = rows[0].split(";")
    assert re.search(r"^\d+ minutes? on ", run)
    assert re.search(r"\d+ (minutes?|hours?) to read", work)


@pytest.mark.parametrize(("announced", "seconds", "agree"), [
    (1, 12, True), (1, 119, True), (1, 130, False), (6, 252, True), (6, 170, False),
    (6, 800, False), (2, 50, False)])
def test_minutes_agree_up_to_a_factor_of_two(announced: int, seconds: int, agree: bool):
    assert minutes_agree(announced, seconds) == agree


@each_notebook
def test_announced_minutes_are_those_of_the_stored_run(path: Path):
    """`make notebooks` stores what papermill measured; the header says it in whole minutes."""
    stored = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    announced = re.search(r"^\| takes \| (\d+) minutes? on ", "\n".join(cells(path, "markdown")),
                          re.MULTILINE)
    if "seconds" not in stored["metadata"]:
        pytest.skip("the stored run is older than its measured time: run `make notebooks`")
    seconds = stored["metadata"]["seconds"]
    assert minutes_agree(int(announced[1]), seconds), f"it took {seconds / 60:.1f} minutes"


@each_notebook
def test_stored_pictures_have_alt_text(path: Path):
    stored = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in stored["cells"] for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    described = [output["metadata"].get("image/png", {}).get("alt") for output in pictures]
    if not any(described):
        pytest.skip("the stored outputs are older than alt texts: run `make notebooks`")
    assert all(described), f"{described.count(None)} of {len(described)} pictures lack alt text"
