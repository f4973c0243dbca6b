"""Run the five notebooks in order, render them as HTML, and update the committed copies."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from PIL import Image, ImageColor
from tqdm import tqdm

from ..basics.config import Config
from ..basics.config import preset as preset_of
from ..basics.constants import ERROR_COLORS, LABEL_COLORS, REGION_COLORS, REGIONS
from ..basics.device import keep_memory
from ..basics.errors import BratsError
from ..basics.files import remove_leftovers, write_file
from ..basics.shapes import NUMBER, read_json_as
from ..evaluation.metrics import interval_text
from ..phantoms.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NAMES = ("01_setup", "02_extraction", "03_preprocessing", "04_architecture",
         "05_training_evaluation")
SHARES = (14, 4, 6, 11, 65)  # percent of the time of the quick preset, on an AMD EPYC
PAGE = Path(__file__).with_name("page.html.j2")
# The shape of metrics.json, as far as the table needs it.
METRICS = {"cases": int, "set": str, "dice": dict.fromkeys(REGIONS, NUMBER),
           "dice_ci95": dict.fromkeys(REGIONS, (type(None), [NUMBER])),
           "hd95_mm": dict.fromkeys(REGIONS, NUMBER)}
SECONDS = "seconds"  # in a committed notebook's metadata: what the stored run took
KEPT = sorted({*LABEL_COLORS.values(), *REGION_COLORS.values(), *ERROR_COLORS.values()})
WIDGET = "application/vnd.jupyter.widget-view+json"


def select(start: int = 1, only: int | None = None) -> list[int]:
    """Return the numbers of the notebooks to run; raises BratsError for one that is not 1 to 5."""
    for option, number in (("--from", start), ("--only", only)):
        if number is not None and number not in range(1, len(NAMES) + 1):
            listed = ", ".join(f"{i} ({name})" for i, name in enumerate(NAMES, 1))
            raise BratsError(f"{option} {number}: there is no such notebook; there are {listed}.")
    return [only] if only else list(range(start, len(NAMES) + 1))


def check_repository() -> None:
    """Raise BratsError if the module is installed without the notebooks that it runs."""
    if not (ROOT / "kaggle-metadata.json").is_file() or not FOLDER.is_dir():
        raise BratsError(f"this needs the repository with its notebooks, and {ROOT} holds the "
                         "module alone: clone the repository and run the command there.")


def declared(number: int) -> dict[str, str]:
    """Return the parameters of a notebook and what their comments say."""
    check_repository()
    found = papermill.inspect_notebook(str(FOLDER / f"{NAMES[number - 1]}.ipynb"))
    return {name: entry["help"] for name, entry in found.items()}


def match_parameters(numbers: Sequence[int], wanted: Mapping[str, object]) -> dict[int, dict]:
    """Return which of the wanted parameters each notebook takes.

    Raises BratsError with the valid names for a parameter that no notebook takes.
    """
    tables = {number: declared(number) for number in numbers}
    known = sorted({name for table in tables.values() for name in table})
    if unknown := sorted(set(wanted) - set(known)):
        lines = []
        for name in known:
            takers = {str(number): table[name] for number, table in tables.items() if name in table}
            lines.append(f"\n  {name:<18} {next(iter(takers.values()))} "
                         f"(notebook {', '.join(takers)})")
        raise BratsError(f"none of these notebooks has a parameter {', '.join(unknown)}; "
                         f"there are:{''.join(lines)}")
    return {number: {k: v for k, v in wanted.items() if k in table}
            for number, table in tables.items()}


def run_series(preset: str | None = None, source: str | None = None, work: Path | None = None,
               start: int = 1, only: int | None = None,
               parameters: Mapping[str, object] | None = None) -> Path:
    """Execute the notebooks and render them into `work`/notebooks; returns the work folder.

    Notebook 01 takes preset (quick) and source (phantom) and stores them for the others. Finished
    results in the work folder are reused. Raises BratsError with notebook, cell and error.
    """
    numbers = select(start, only)
    if preset:
        preset_of(preset)  # a wrong name fails here, not in notebook 01
    if numbers[0] != 1 and source:
        raise BratsError("notebook 01 sets --source: start there, or leave the option out.")
    if clash := sorted({"work", "preset", "source"} & set(parameters or {})):
        options = ", ".join(f"--{name}" for name in clash)
        raise BratsError(f"give {options} instead of -p {clash[0]}.")
    work = Path(work or Path("runs") / (preset or "quick")).absolute()
    _check_preset(work, preset, numbers)
    if source and source not in KINDS:
        source = str(Path(source).expanduser().absolute())
    common = {"preset": preset or "quick", "source": source or "phantom", "work": str(work)}
    given = match_parameters(numbers, parameters or {})
    remove_leftovers(work / "notebooks")
    begun = time.monotonic()
    with tqdm(numbers, desc="series", unit="notebook",
              bar_format="{desc}: {n}/{total} |{bar}| {elapsed}, {postfix}") as bar:
        for done, number in enumerate(bar):
            left = time_left_text(numbers[:done], numbers[done:], time.monotonic() - begun)
            bar.set_postfix_str(f"{left}{NAMES[number - 1]}")
            basics = {k: v for k, v in common.items() if k in declared(number)}
            execute(number, work / "notebooks", {**basics, **given[number]})
    return work


def time_left_text(done: Sequence[int], to_do: Sequence[int], seconds: float) -> str:
    """Say how long the notebooks `to_do` will take if those `done` took `seconds`."""
    if not done:
        return ""
    shares = [sum(SHARES[number - 1] for number in numbers) for numbers in (done, to_do)]
    return f"about {seconds * shares[1] / shares[0] / 60:.0f} minutes left for the series, "


def _check_preset(work: Path, preset: str | None, numbers: Sequence[int]) -> None:
    """Raise BratsError for a preset that only notebook 01, which is not run, could change."""
    if preset and numbers[0] != 1 and (work / "config.json").is_file():
        settled = Config.load(work / "config.json").preset
        if settled != preset:
            raise BratsError(f"{work} was set up with preset {settled}: run notebook 01 to change "
                             f"it to {preset}.")


def execute(number: int, folder: Path, parameters: Mapping[str, object]) -> Path:
    """Execute a notebook into `folder` and render it as HTML; returns the executed notebook.

    BratsError names the cell at which it stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = NAMES[number - 1]
    target = folder / f"{name}.ipynb"
    keep_memory()
    os.environ["BRATS_HEADLESS"] = "1"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    try:
        papermill.execute_notebook(str(FOLDER / f"{name}.ipynb"), str(target), dict(parameters),
                                   progress_bar={"desc": name, "leave": False},
                                   kernel_name="python3", cwd=str(FOLDER), coalesce_streams=True)
    except PapermillExecutionError as error:
        raise BratsError(f"notebook {name} stopped at cell {error.exec_count}: {error.ename}: "
                         f"{error.evalue}\nWhat it had done is in {target}; run the same command "
                         "again to go on.") from error
    except DeadKernelError as error:
        raise BratsError(f"notebook {name} stopped because its process was killed, most often "
                         "because memory ran out: close other programs, run fewer notebooks at "
                         "once or lower patch and batch, and run the same command again to go on."
                         ) from error
    render(target)
    return target


def render(notebook: Path) -> None:
    """Write the HTML page of an executed notebook next to it."""
    write_file(notebook.with_suffix(".html"), page_of(notebook))


def page_of(notebook: Path) -> str:
    """Return an executed notebook as one HTML page with its pictures and their descriptions."""
    content, said = nbformat.read(notebook, 4), ""
    for cell in content.cells:
        if cell.cell_type != "code":
            said = plain(cell.source) or said
            continue
        # A widget is dead without its kernel; the same cell stores its picture.
        cell.outputs = [out for out in cell.outputs if WIDGET not in out.get("data", {})]
        for out in cell.outputs:
            if "image/png" in out.get("data", {}):  # or else the text above it
                out.metadata["image/png"] = {"alt": said, **out.metadata.get("image/png", {})}
    # nbconvert's embed_images would close each <details> at once.
    exporter = HTMLExporter(raw_template=PAGE.read_text(encoding="utf-8"))
    return exporter.from_notebook_node(content, {"metadata": {"name": notebook.stem}})[0]


def plain(markdown: str) -> str:
    """Return the last heading and paragraph of a text, without markup, to describe a picture."""
    text = re.sub(r"<details>.*?</details>", "", markdown, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    text = re.sub(r"^[|#].*$|[*`_]|\[|\]\([^)]*\)", "", text, flags=re.MULTILINE)
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    return ". ".join(headings[-1:] + paragraphs[-1:])[:300]


def results_table(work: Path) -> str:
    """Return the table that ends a run, from metrics.json."""
    metrics = read_json_as(Path(work) / "metrics.json", "notebook 05", METRICS)
    who = {"test": "unseen test patients",
           "validation": "validation patients (the cohort has no test set); last checkpoint, "
                         "not chosen on them"}
    lines = [f"{metrics['cases']} {who.get(metrics['set'], metrics['set'])}",
             "region   Dice   95% interval    HD95 (mm)"]
    for name in REGIONS:
        interval = interval_text(metrics["dice_ci95"][name])
        lines.append(f"{name:<8} {metrics['dice'][name]:.3f}  {interval:<16}"
                     f"{metrics['hd95_mm'][name]:>9.2f}")
    return "\n".join(lines)


# ---- the committed notebooks

def sync() -> None:
    """Copy the cells of each .py, which people edit and review, into its .ipynb."""
    check_repository()
    for name in NAMES:
        notebook, path = jupytext.read(FOLDER / f"{name}.py"), FOLDER / f"{name}.ipynb"
        if path.is_file():
            stored = nbformat.read(path, 4)
            notebook = jupytext.combine.combine_inputs_with_outputs(notebook, stored)
            notebook.metadata |= {k: v for k, v in stored.metadata.items() if k == SECONDS}
        jupytext.write(clean(notebook), path)


def regenerate(work: Path) -> None:
    """Run the quick preset in `work` and store its outputs in the committed notebooks."""
    sync()
    run_series("quick", work=work)
    for name in NAMES:
        notebook = jupytext.read(FOLDER / f"{name}.py")
        ran = nbformat.read(work / "notebooks" / f"{name}.ipynb", 4)
        notebook.metadata[SECONDS] = round(ran.metadata.papermill.duration)
        executed = [cell for cell in ran.cells
                    if "injected-parameters" not in cell.metadata.get("tags", [])]
        for cell, done in zip(notebook.cells, executed, strict=True):
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = done.outputs, done.execution_count
                for data in (out.get("data", {}) for out in cell.outputs):
                    if "image/png" in data:
                        data["image/png"] = smaller_png(data["image/png"])
        jupytext.write(clean(notebook, str(work)), FOLDER / f"{name}.ipynb")
        write_pictures(notebook, name)


def smaller_png(picture: str) -> str:
    """Reduce a PNG in base64 to 256 colors: half the bytes, and no visible difference.

    Legend colors are kept exactly: few pixels have them, so they would be merged.
    """
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    common = 256 - len(KEPT)
    reduced = image.quantize(common, dither=Image.Dither.NONE)
    pixels, places = np.asarray(image), np.array(reduced)
    kept = [ImageColor.getrgb(color) for color in KEPT]
    for number, color in enumerate(kept, common):
        places[(pixels == color).all(-1)] = number
    palette = (reduced.getpalette() + [0] * 3 * common)[:3 * common] + [*sum(kept, ())]
    reduced = Image.fromarray(places)
    reduced.putpalette(palette)
    content = io.BytesIO()
    reduced.save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def write_pictures(notebook: nbformat.NotebookNode, name: str) -> None:
    """Save the pictures of cells with the tag "readme" in docs/."""
    for cell in notebook.cells:
        if "readme" in cell.metadata.get("tags", []):
            pictures = [out.data["image/png"] for out in cell.outputs
                        if "image/png" in out.get("data", {})]
            write_file(ROOT / "docs" / f"{name}.png", base64.b64decode(pictures[0]))


def clean(notebook: nbformat.NotebookNode, private: str = "") -> nbformat.NotebookNode:
    """Remove what changes between runs or machines: cell ids, paths, progress bars, widgets.

    The duration of the run stays, to test the minutes that the notebook announces.
    """
    notebook.metadata = {
        **{k: v for k, v in notebook.metadata.items() if k == SECONDS},
        "jupytext": {"formats": "ipynb,py:percent"}, "language_info": {"name": "python"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"
        if cell.cell_type == "code":
            cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
            text = json.dumps([out for out in cell.get("outputs", []) if out.get("name") != "stderr"
                               and WIDGET not in out.get("data", {})])
            if private:
                text = text.replace(private, "runs/quick")
            outputs = json.loads(text.replace(str(ROOT), "."))
            cell.outputs = [nbformat.from_dict(out) for out in outputs]
    return notebook
