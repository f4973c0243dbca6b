"""The five notebooks as one run: executed by papermill in order, rendered as HTML, summed up in a table."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jupytext
import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from ..basics.config import Config
from ..basics.config import preset as preset_of
from ..basics.constants import REGIONS
from ..basics.device import keep_memory
from ..basics.errors import BratsError
from ..basics.files import atomic_path, read_json, remove_leftovers
from ..evaluation.metrics import interval_text
from ..phantoms.kinds import LOOKS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NAMES = ("01_setup", "02_extraction", "03_preprocessing", "04_architecture", "05_training_evaluation")
# nbconvert's page without the scripts that it would fetch from elsewhere: it is the same in five years, and offline.
PAGE = "{% extends 'lab/index.html.j2' %}" + "".join(f"{{% block {name} %}}{{% endblock %}}" for name in (
    "html_head_js", "jupyter_widgets", "html_head_js_mathjax", "html_head_js_mermaidjs")) + (
    "{% block html_head_css %}{{ super() }}<style>.highlight pre { font-family: monospace } "
    ".jp-OutputArea-output { overflow-x: auto }</style>{% endblock %}"
    "{% block data_png scoped %}<div class='jp-RenderedImage jp-OutputArea-output'><img src='data:image/png;base64,"
    "{{ output.data['image/png'] }}' alt='{{ output | get_metadata('alt', 'image/png') | escape_html }}'></div>"
    "{% endblock %}")
WIDGET = "application/vnd.jupyter.widget-view+json"


def select(start: int = 1, only: int | None = None) -> list[int]:
    """The numbers of the notebooks to run; BratsError for one that is not 1 to 5."""
    for option, number in (("--from", start), ("--only", only)):
        if number is not None and number not in range(1, len(NAMES) + 1):
            listed = ", ".join(f"{i} ({name})" for i, name in enumerate(NAMES, 1))
            raise BratsError(f"{option} {number}: there is no such notebook; there are {listed}.")
    return [only] if only else list(range(start, len(NAMES) + 1))


def check_repository() -> None:
    """BratsError where the module was installed alone, without the notebooks that it runs."""
    if not (ROOT / "kaggle-metadata.json").is_file() or not FOLDER.is_dir():
        raise BratsError(f"this needs the repository with its notebooks, and {ROOT} holds the module alone: clone the "
                         "repository and run the command there.")


def declared(number: int) -> dict[str, str]:
    """The parameters of a notebook, name -> what its comment says of it."""
    check_repository()
    found = papermill.inspect_notebook(str(FOLDER / f"{NAMES[number - 1]}.ipynb"))
    return {name: entry["help"] for name, entry in found.items()}


def match_parameters(numbers: Sequence[int], wanted: Mapping[str, object]) -> dict[int, dict]:
    """Which of the wanted parameters each notebook is given; BratsError lists the valid ones if one is nobody's."""
    tables = {number: declared(number) for number in numbers}
    known = {name for table in tables.values() for name in table}
    if unknown := sorted(set(wanted) - known):
        listed = "\n".join(f"  {name:<18} {next(t[name] for t in tables.values() if name in t)} "
                           f"(notebook {', '.join(str(n) for n, t in tables.items() if name in t)})"
                           for name in sorted(known))
        raise BratsError(f"no notebook to be run has a parameter {', '.join(unknown)}; there are:\n{listed}")
    return {number: {k: v for k, v in wanted.items() if k in table} for number, table in tables.items()}


def run_series(preset: str | None = None, source: str | None = None, work: Path | None = None, start: int = 1,
               only: int | None = None, parameters: Mapping[str, object] | None = None, folder: Path = FOLDER) -> Path:
    """Execute the notebooks and render them into `work`/notebooks; returns the work folder.

    preset (quick) and source (phantom) are notebook 01's, which settles them for the others. What an earlier run has
    finished in the same folder is used again. BratsError names the notebook, the cell and the error where one fails.
    folder: where the notebooks are, another edition of them for example.
    """
    numbers = select(start, only)
    if preset:
        preset_of(preset)                             # a wrong name ends here, not in the first notebook
    if numbers[0] != 1 and source:
        raise BratsError("--source is settled by notebook 01: run from it, or leave the option out.")
    if clash := sorted({"work", "preset", "source"} & set(parameters or {})):
        raise BratsError(f"give {', '.join('--' + name for name in clash)} instead of -p {clash[0]}.")
    work = Path(work or Path("runs") / (preset or "quick")).absolute()
    _check_preset(work, preset, numbers)
    if source and source not in LOOKS:
        source = str(Path(source).expanduser().absolute())
    common = {"preset": preset or "quick", "source": source or "phantom", "work": str(work)}
    given = match_parameters(numbers, parameters or {})
    remove_leftovers(work / "notebooks")
    with tqdm(numbers, desc="series", unit="notebook") as bar:
        for number in bar:
            bar.set_postfix_str(NAMES[number - 1])
            basics = {k: v for k, v in common.items() if k in declared(number)}
            execute(number, work / "notebooks", {**basics, **given[number]}, folder)
    return work


def _check_preset(work: Path, preset: str | None, numbers: Sequence[int]) -> None:
    """Without notebook 01 the work folder's own preset counts; another one named beside it would be ignored."""
    if preset and numbers[0] != 1 and (work / "config.json").is_file():
        settled = Config.load(work / "config.json").preset
        if settled != preset:
            raise BratsError(f"{work} was set up with preset {settled}: run notebook 01 to change it to {preset}.")


def execute(number: int, folder: Path, parameters: Mapping[str, object], source: Path = FOLDER) -> Path:
    """Execute one notebook into `folder` and render it there as HTML; returns the executed notebook's path."""
    folder.mkdir(parents=True, exist_ok=True)
    name = NAMES[number - 1]
    target = folder / f"{name}.ipynb"
    keep_memory()
    os.environ["BRATS_HEADLESS"] = "1"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    try:
        papermill.execute_notebook(str(source / f"{name}.ipynb"), str(target), dict(parameters), kernel_name="python3",
                                   progress_bar={"desc": name, "leave": False}, cwd=str(FOLDER), coalesce_streams=True)
    except PapermillExecutionError as error:
        raise BratsError(f"notebook {name} stopped at cell {error.exec_count}: {error.ename}: {error.evalue}\n"
                         f"What it had done is in {target}; run the same command again to go on.") from error
    except DeadKernelError as error:
        raise BratsError(f"notebook {name} stopped because its process was killed, most often for want of memory: close "
                         "other programs, run fewer notebooks at once or lower patch and batch, and run the same command "
                         "again to go on.") from error
    render(target)
    return target


def render(notebook: Path) -> Path:
    """Write the HTML page of an executed notebook beside it; returns its path."""
    target, page = notebook.with_suffix(".html"), page_of(notebook)
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def page_of(notebook: Path) -> str:
    """An executed notebook as an HTML page; pictures are in the page, with descriptions, and it loads nothing else."""
    content, said = nbformat.read(notebook, 4), ""
    for cell in content.cells:                        # a widget is dead without its kernel: its picture stands beside it
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if WIDGET not in out.get("data", {})]
            for out in cell.outputs:                  # what a blind reader hears: the sentence before the picture
                if "image/png" in out.get("data", {}):
                    out.metadata["image/png"] = {**out.metadata.get("image/png", {}), "alt": said}
        else:
            said = plain(cell.source) or said
    # Without nbconvert's embed_images, which closes each <details> at once; our pictures are in the page anyway.
    return HTMLExporter(raw_template=PAGE).from_notebook_node(content, {"metadata": {"name": notebook.stem}})[0]


def plain(markdown: str) -> str:
    """The last heading and the last sentences of a text, without marks and what is folded away: a picture's description."""
    text = re.sub(r"<details>.*?</details>", "", markdown, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    text = re.sub(r"^[|#].*$|[*`_]|\[|\]\([^)]*\)", "", text, flags=re.MULTILINE)
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    return ". ".join(headings[-1:] + paragraphs[-1:])[:300]


def results_table(work: Path) -> str:
    """The table that a run ends with, from metrics.json."""
    metrics = read_json(Path(work) / "metrics.json", "notebook 05")
    who = {"test": "unseen test patients",
           "validation": "validation patients (the cohort has no test set); last checkpoint, not chosen on them"}
    lines = [f"{metrics['cases']} {who[metrics['set']]}", "region   Dice   95% interval    HD95 (mm)"]
    for name in REGIONS:
        lines.append(f"{name:<8} {metrics['dice'][name]:.3f}  {interval_text(metrics['dice_ci95'][name]):<16}"
                     f"{metrics['hd95_mm'][name]:>9.2f}")
    return "\n".join(lines)


# ---------------------------------------------------------------- the committed notebooks

def sync() -> None:
    """Make each .ipynb's inputs those of its .py, which is what is edited and reviewed."""
    check_repository()
    for name in NAMES:
        notebook = jupytext.read(FOLDER / f"{name}.py")
        path = FOLDER / f"{name}.ipynb"
        if path.is_file():
            notebook = jupytext.combine.combine_inputs_with_outputs(notebook, nbformat.read(path, 4))
        jupytext.write(clean(notebook), path)


def regenerate(work: Path) -> None:
    """Run the quick preset afresh in `work` and store its outputs in the committed notebooks."""
    sync()
    run_series("quick", work=work)
    for name in NAMES:
        notebook = jupytext.read(FOLDER / f"{name}.py")
        executed = nbformat.read(work / "notebooks" / f"{name}.ipynb", 4)
        executed.cells = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
        for cell, done in zip(notebook.cells, executed.cells, strict=True):
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = done.outputs, done.execution_count
        jupytext.write(clean(notebook, str(work)), FOLDER / f"{name}.ipynb")
        write_pictures(notebook, name)


def write_pictures(notebook: nbformat.NotebookNode, name: str) -> None:
    """Save the pictures of cells tagged "readme" in docs/, for the README to show."""
    for cell in notebook.cells:
        if "readme" in cell.metadata.get("tags", []):
            found = next(out.data["image/png"] for out in cell.outputs if "image/png" in out.get("data", {}))
            with atomic_path(ROOT / "docs" / f"{name}.png") as temporary:
                temporary.write_bytes(base64.b64decode(found))


def clean(notebook: nbformat.NotebookNode, private: str = "") -> nbformat.NotebookNode:
    """A notebook without what changes from run to run or from machine to machine: cell ids, paths, progress bars."""
    notebook.metadata = {"jupytext": {"formats": "ipynb,py:percent"}, "language_info": {"name": "python"},
                         "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for n, cell in enumerate(notebook.cells):
        cell.id = f"cell-{n:03d}"
        if cell.cell_type == "code":
            cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
            text = json.dumps([o for o in cell.get("outputs", []) if o.get("name") != "stderr" and WIDGET not in
                               o.get("data", {})])    # a widget without its kernel is an empty box
            for path in filter(None, (private, str(ROOT))):
                text = text.replace(path, "." if path == str(ROOT) else "runs/quick")
            cell.outputs = [nbformat.from_dict(o) for o in json.loads(text)]
    return notebook
