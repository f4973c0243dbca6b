"""Run the series on Kaggle: each notebook there reads the output of the previous one.

kaggle-metadata.json describes all five notebooks once. `build` writes the helper dataset: the
module, and the wheels that Kaggle's image lacks, so that the internet may be off. It also writes a
folder for each notebook with the kernel-metadata.json that Kaggle's client reads
(https://github.com/Kaggle/kaggle-api/wiki/Kernel-Metadata). `push` gives these to that client, in
order. Only the client handles credentials.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from tqdm import tqdm

from ..basics.errors import BratsError
from ..basics.files import read_json, write_json
from .series import NAMES, ROOT, check_repository, declared

METADATA = ROOT / "kaggle-metadata.json"
FIELDS = {"title", "owner", "license", "keywords", "enable_gpu", "enable_internet",
          "dataset_sources", "helpers", "parameters", "notebooks"}
NOTEBOOK_FIELDS = {"order", "file", "title", "slug", "enable_gpu"}
WHEELS = ("monai",)  # pure Python packages that notebooks import and Kaggle's image lacks
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # of an owner, a notebook or a dataset
CREDENTIALS = ("no credentials for Kaggle were found, and nothing was sent. Make a token on "
               "https://www.kaggle.com/settings/api (Generate New Token) and save it as "
               "~/.kaggle/access_token, or set KAGGLE_API_TOKEN, or run `kaggle auth login`.")
FAILED = {"ERROR", "CANCEL_REQUESTED", "CANCEL_ACKNOWLEDGED"}
POLL_SECONDS = 20


def slug_of(title: str) -> str:
    """Return the slug that Kaggle makes of a title: lower case, hyphens between words."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def read_metadata(path: Path = METADATA, owner: str | None = None) -> dict:
    """Read kaggle-metadata.json; raises BratsError for a field that breaks the client's rules."""
    check_repository()
    data = read_json(path, "git checkout of this file")
    data["owner"] = owner or data.get("owner", "")
    unknown, missing = sorted(set(data) - FIELDS), sorted(FIELDS - set(data))
    _check(path, [
        (not unknown, f"{', '.join(unknown)} is not a field of this file"),
        (not missing, f"{', '.join(missing)} is missing"),
        (NAME.fullmatch(data["owner"]),
         f"owner is {data['owner']!r}: give your Kaggle name with --owner")])
    rules = [(re.fullmatch(r"[^/]+/[^/]+(/\d+)?", source),
              f"dataset_sources has {source!r}, not owner/dataset")
             for source in data["dataset_sources"]]
    orders = [book.get("order") for book in data["notebooks"]]
    rules.append((orders == list(range(1, len(NAMES) + 1)),
                  f"notebooks must be {len(NAMES)}, with order 1 to {len(NAMES)}"))
    for number, entry in enumerate([data["helpers"], *data["notebooks"]]):
        rules += _entry_rules(number, entry)
    _check(path, rules)
    return data


def _entry_rules(number: int, entry: Mapping) -> list[tuple[object, str]]:
    """Return the rules for the helper dataset (number 0) or for a notebook."""
    where = f"notebooks[{number}]" if number else "helpers"
    unknown = sorted(set(entry) - (NOTEBOOK_FIELDS if number else {"title", "slug"}))
    title, slug = entry.get("title", ""), entry.get("slug", "")
    return [
        (not unknown, f"{where} has unknown fields: {', '.join(unknown)}"),
        (6 <= len(title) <= 50, f"{where}.title is {title!r}: Kaggle wants 6 to 50 characters"),
        (NAME.fullmatch(slug),
         f"{where}.slug is {slug!r}: use lower-case letters, digits and single hyphens"),
        (slug == slug_of(title),
         f"{where}.slug is {slug!r}, but the title resolves to {slug_of(title)!r}"),
        (not number or (ROOT / entry.get("file", "?")).is_file(),
         f"{where}.file names a file that is not there")]


def _check(path: Path, rules: list[tuple[object, str]]) -> None:
    if broken := [problem for holds, problem in rules if not holds]:
        raise BratsError(f"{path}: {'; '.join(broken)}.")


# ---- build

def build(out: Path, owner: str | None = None) -> list[Path]:
    """Write the folders to push into `out`: the helper dataset, then the notebooks in order."""
    data, out = read_metadata(METADATA, owner), Path(out)
    folders = [_helpers(data, out / data["helpers"]["slug"])]
    for before, book in zip([None, *data["notebooks"]], data["notebooks"], strict=False):
        folder, table = out / book["slug"], declared(book["order"])
        folder.mkdir(parents=True, exist_ok=True)
        known = {name: value for name, value in data["parameters"].items() if name in table}
        notebook = parameterize_notebook(load_notebook_node(str(ROOT / book["file"])), known)
        notebook, _ = ClearOutputPreprocessor().preprocess(notebook, {})
        nbformat.write(notebook, folder / Path(book["file"]).name)
        write_json(folder / "kernel-metadata.json", _kernel(data, book, before))
        folders.append(folder)
    return folders


def _kernel(data: Mapping, book: Mapping, before: Mapping | None) -> dict:
    """Return a notebook's metadata for the client; the previous notebook is a source."""
    owner = data["owner"]
    return {"id": f"{owner}/{book['slug']}", "title": book["title"],
            "code_file": Path(book["file"]).name, "language": "python",
            "kernel_type": "notebook", "is_private": True,
            "enable_gpu": book.get("enable_gpu", data["enable_gpu"]), "enable_tpu": False,
            "enable_internet": data["enable_internet"], "keywords": data["keywords"],
            "dataset_sources": [*data["dataset_sources"], f"{owner}/{data['helpers']['slug']}"],
            "kernel_sources": [f"{owner}/{before['slug']}"] if before else [],
            "competition_sources": [], "model_sources": []}


def _helpers(data: Mapping, folder: Path) -> Path:
    """Write the helper dataset: the module and the wheels."""
    shutil.rmtree(folder, ignore_errors=True)  # no file of an older module stays
    shutil.copytree(ROOT / "brats_helpers", folder / "brats_helpers",
                    ignore=shutil.ignore_patterns("__pycache__"))
    wheels = folder / "wheels"
    done = subprocess.run([
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--only-binary=:all:", "-c", str(ROOT / "constraints.txt"),
        "-d", str(wheels), *WHEELS], capture_output=True, text=True)
    if done.returncode:
        raise BratsError(f"pip could not get {', '.join(WHEELS)} for the helper dataset:\n"
                         f"{done.stderr.strip()}")
    if built := [p.name for p in wheels.iterdir() if not p.name.endswith("-none-any.whl")]:
        raise BratsError(f"{', '.join(built)}: not pure Python, so it may not run on Kaggle.")
    write_json(folder / "dataset-metadata.json", {
        "title": data["helpers"]["title"], "id": f"{data['owner']}/{data['helpers']['slug']}",
        "licenses": [{"name": data["license"]}], "keywords": data["keywords"]})
    return folder


# ---- push

def sign_in() -> object:
    """Return Kaggle's client, signed in; raises BratsError without the client or credentials."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # our own message is shorter
            from kaggle.api.kaggle_api_extended import KaggleApi
            client = KaggleApi()
            client.authenticate()
    except ModuleNotFoundError as error:
        raise BratsError("Kaggle's client is not installed: pip install kaggle.") from error
    except (SystemExit, OSError) as error:
        raise BratsError(CREDENTIALS) from error
    return client


def push(folders: list[Path], client: object) -> None:
    """Upload the helper dataset, then push each notebook when the previous one has run.

    `folders` are from `build`, `client` is from `sign_in`. Raises BratsError at the first failure.
    """
    helpers, *books = folders
    dataset = read_json(helpers / "dataset-metadata.json", "kaggle build")["id"]
    mine = client.dataset_list(mine=True, search=dataset.split("/")[1]) or []
    if dataset in {str(one.ref) for one in mine}:
        answer = client.dataset_create_version(str(helpers), "the module as it is now", quiet=True,
                                               dir_mode="zip")
    else:
        answer = client.dataset_create_new(str(helpers), quiet=True, dir_mode="zip")
    if getattr(answer, "error", None):
        raise BratsError(f"the dataset {dataset} was not accepted: {answer.error}. "
                         "No notebook was pushed.")
    _wait(dataset, lambda: _is_ready(client, dataset))
    for folder in tqdm(books, desc="kaggle", unit="notebook"):
        kernel = read_json(folder / "kernel-metadata.json", "kaggle build")["id"]
        answer = client.kernels_push(str(folder))
        if answer.error:
            raise BratsError(f"{kernel} was not accepted: {answer.error}. "
                             "The notebooks before it are on Kaggle.")
        if unknown := [*answer.invalid_dataset_sources, *answer.invalid_kernel_sources]:
            raise BratsError(f"{kernel}: Kaggle does not know its sources {', '.join(unknown)}: "
                             "check owner and names.")
        _wait(kernel, lambda kernel=kernel: _has_run(client, kernel))


def _wait(name: str, ready: Callable[[], bool]) -> None:
    with tqdm(desc=name, unit="poll") as bar:
        while not ready():
            time.sleep(POLL_SECONDS)
            bar.update()


def _is_ready(client: object, dataset: str) -> bool:
    """Tell whether Kaggle has processed a dataset; BratsError if that failed."""
    status = str(client.dataset_status(dataset)).lower()
    if status in ("failed", "deleted"):
        raise BratsError(f"Kaggle ended the dataset {dataset} with {status}. No notebook was "
                         "pushed.")
    return status == "ready"


def _has_run(client: object, kernel: str) -> bool:
    """Return whether a notebook has run; raises BratsError with Kaggle's message if it failed."""
    answer = client.kernels_status(kernel)
    status = getattr(answer.status, "name", str(answer.status))
    if status in FAILED:
        reason = answer.failure_message or "no message"
        raise BratsError(f"{kernel} ended with {status} ({reason}): see "
                         f"https://www.kaggle.com/code/{kernel}. "
                         "The notebooks after it were not pushed.")
    return status == "COMPLETE"
