"""The series on Kaggle: what is uploaded, in which order, and how a notebook there finds what the one before it left.

kaggle-metadata.json describes all five notebooks once. `build` makes of it a folder for each with the
kernel-metadata.json that Kaggle's client wants (https://github.com/Kaggle/kaggle-api/wiki/Kernel-Metadata),
and the helper dataset: the module and the wheels that Kaggle's image lacks, so that internet may be off.
`push` hands them to that client, in order. Credentials are the client's business alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from tqdm import tqdm

from ..basics.errors import BratsError
from ..basics.files import read_json, write_json
from .series import NAMES, ROOT, check_repository, declared

METADATA = ROOT / "kaggle-metadata.json"
FIELDS = {"title", "owner", "license", "keywords", "enable_gpu", "enable_internet", "dataset_sources", "helpers",
          "parameters", "notebooks"}
NOTEBOOK_FIELDS = {"order", "file", "title", "slug", "enable_gpu"}
WHEELS = ("monai", "jupytext")                        # what Kaggle's image lacks of requirements.txt, in pure Python
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")          # of an owner, a notebook or a dataset
CREDENTIALS = ("no credentials for Kaggle were found, and nothing was sent. Make a token on "
               "https://www.kaggle.com/settings/api (Generate New Token) and save it as ~/.kaggle/access_token, or set "
               "KAGGLE_API_TOKEN, or run `kaggle auth login`.")
DONE, FAILED = {"COMPLETE"}, {"ERROR", "CANCEL_REQUESTED", "CANCEL_ACKNOWLEDGED"}
POLL_SECONDS = 20


def slug_of(title: str) -> str:
    """What Kaggle makes of a title: lower case, and a hyphen for all that is neither a letter nor a digit."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def read_metadata(path: Path = METADATA, owner: str | None = None) -> dict:
    """kaggle-metadata.json, checked against the client's rules; BratsError names the field that breaks one."""
    check_repository()
    data = read_json(path, "git checkout of this file")
    data["owner"] = owner or data.get("owner", "")
    rules = [(not set(data) - FIELDS, ", ".join(sorted(set(data) - FIELDS)), "is not a field of this file"),
             (not FIELDS - set(data), ", ".join(sorted(FIELDS - set(data))), "is missing"),
             (bool(NAME.fullmatch(data["owner"])), "owner", f"is {data['owner']!r}: give your Kaggle name with --owner")]
    _judge(path, rules)
    rules = [(bool(re.fullmatch(r"[^/]+/[^/]+(/\d+)?", source)), "dataset_sources", f"has {source!r}, not owner/dataset")
             for source in data["dataset_sources"]]
    rules += [([book.get("order") for book in data["notebooks"]] == list(range(1, len(NAMES) + 1)), "notebooks",
               f"must be {len(NAMES)}, with order 1 to {len(NAMES)}")]
    for n, entry in enumerate([data["helpers"], *data["notebooks"]]):
        where = f"notebooks[{n}]" if n else "helpers"
        unknown = set(entry) - (NOTEBOOK_FIELDS if n else {"title", "slug"})
        title, slug = entry.get("title", ""), entry.get("slug", "")
        rules += [(not unknown, where, f"has unknown fields: {', '.join(sorted(unknown))}"),
                  (6 <= len(title) <= 50, f"{where}.title", f"is {title!r}: Kaggle wants 6 to 50 characters"),
                  (bool(NAME.fullmatch(slug)), f"{where}.slug", f"is {slug!r}: small letters, digits and single hyphens"),
                  (slug == slug_of(title), f"{where}.slug", f"is {slug!r}, but the title resolves to {slug_of(title)!r}"),
                  (not n or (ROOT / entry.get("file", "?")).is_file(), f"{where}.file", "names a file that is not there")]
    _judge(path, rules)
    return data


def _judge(path: Path, rules: list[tuple[bool, str, str]]) -> None:
    if broken := [f"{field} {problem}" for holds, field, problem in rules if not holds]:
        raise BratsError(f"{path}: {'; '.join(broken)}.")


# ---------------------------------------------------------------- build

def build(out: Path, owner: str | None = None, path: Path = METADATA) -> list[Path]:
    """Write the folders to push into `out`: the helper dataset, then the notebooks in their order."""
    data, out = read_metadata(path, owner), Path(out)
    folders = [_helpers(data, out / data["helpers"]["slug"])]
    for before, book in zip([None, *data["notebooks"]], data["notebooks"], strict=False):
        folder = out / book["slug"]
        folder.mkdir(parents=True, exist_ok=True)
        number = book["order"]
        known = {name: value for name, value in data["parameters"].items() if name in declared(number)}
        notebook = parameterize_notebook(load_notebook_node(str(ROOT / book["file"])), known)
        nbformat.write(nbformat.from_dict(_without_outputs(notebook)), folder / Path(book["file"]).name)
        write_json(folder / "kernel-metadata.json", _kernel(data, book, before))
        folders.append(folder)
    return folders


def _kernel(data: Mapping, book: Mapping, before: Mapping | None) -> dict:
    """What the client reads beside a notebook; the notebook before it is one of its sources."""
    owner = data["owner"]
    return {"id": f"{owner}/{book['slug']}", "title": book["title"], "code_file": Path(book["file"]).name,
            "language": "python", "kernel_type": "notebook", "is_private": True,
            "enable_gpu": book.get("enable_gpu", data["enable_gpu"]), "enable_tpu": False,
            "enable_internet": data["enable_internet"], "keywords": data["keywords"],
            "dataset_sources": [*data["dataset_sources"], f"{owner}/{data['helpers']['slug']}"],
            "kernel_sources": [f"{owner}/{before['slug']}"] if before else [], "competition_sources": [],
            "model_sources": []}


def _helpers(data: Mapping, folder: Path) -> Path:
    """The helper dataset: the module as it is here, and the wheels."""
    shutil.rmtree(folder, ignore_errors=True)         # no file of an older module stays
    shutil.copytree(ROOT / "brats_helpers", folder / "brats_helpers", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "-c", str(ROOT / "constraints.txt"), "-d", str(folder / "wheels"), *WHEELS]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BratsError(f"pip could not get {', '.join(WHEELS)} for the helper dataset:\n{done.stderr.strip()}")
    if built := [p.name for p in (folder / "wheels").iterdir() if not p.name.endswith("-none-any.whl")]:
        raise BratsError(f"{', '.join(built)}: not pure Python, and so not sure to run on Kaggle.")
    write_json(folder / "dataset-metadata.json", {
        "title": data["helpers"]["title"], "id": f"{data['owner']}/{data['helpers']['slug']}",
        "licenses": [{"name": data["license"]}], "keywords": data["keywords"]})
    return folder


def _without_outputs(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


# ---------------------------------------------------------------- push

def push(folders: list[Path], client: object) -> None:
    """Upload the helper dataset and push each notebook when the one before it has run; BratsError at the first that fails.

    folders: what `build` returned; client: what `sign_in` did.
    """
    helpers, *books = folders
    _upload(client, helpers)
    for folder in tqdm(books, desc="kaggle", unit="notebook"):
        kernel = json.loads((folder / "kernel-metadata.json").read_text())["id"]
        answer = client.kernels_push(str(folder))
        if answer.error:
            raise BratsError(f"{kernel} was not accepted: {answer.error}. The notebooks before it are on Kaggle.")
        invalid = [*answer.invalid_dataset_sources, *answer.invalid_kernel_sources]
        if invalid:
            raise BratsError(f"{kernel}: Kaggle does not know its sources {', '.join(invalid)}: check owner and names.")
        _wait(client, kernel)


def sign_in() -> object:
    """Kaggle's own client, signed in; BratsError where it is not installed or has no credentials."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from kaggle.api.kaggle_api_extended import KaggleApi
    except ModuleNotFoundError as error:
        raise BratsError("Kaggle's client is not installed: pip install kaggle.") from error
    except SystemExit as error:                       # older clients sign in on import, and leave where they cannot
        raise BratsError(CREDENTIALS) from error
    client = KaggleApi()
    try:
        with contextlib.redirect_stdout(io.StringIO()):                     # what it says, we say shorter
            client.authenticate()
    except (SystemExit, OSError) as error:
        raise BratsError(CREDENTIALS) from error
    return client


def _upload(client: object, folder: Path) -> None:
    """The helper dataset: made new, or a new version of it; returns when Kaggle has unpacked it."""
    name = json.loads((folder / "dataset-metadata.json").read_text())["id"]
    mine = {str(dataset.ref) for dataset in client.dataset_list(mine=True, search=name.split("/")[1]) or []}
    if name in mine:
        answer = client.dataset_create_version(str(folder), "the module as it is now", quiet=True, dir_mode="zip")
    else:
        answer = client.dataset_create_new(str(folder), quiet=True, dir_mode="zip")
    if getattr(answer, "error", None):
        raise BratsError(f"the dataset {name} was not accepted: {answer.error}. No notebook was pushed.")
    with tqdm(desc=f"{name} is unpacked there") as bar:
        while str(client.dataset_status(name)).lower() != "ready":
            time.sleep(POLL_SECONDS)
            bar.update()


def _wait(client: object, kernel: str) -> None:
    """Until a notebook has run; BratsError with Kaggle's message where it failed."""
    with tqdm(desc=kernel, unit="poll") as bar:
        while True:
            answer = client.kernels_status(kernel)
            status = getattr(answer.status, "name", str(answer.status))
            bar.set_postfix_str(status.lower())
            if status in DONE:
                return
            if status in FAILED:
                reason = answer.failure_message or "no message"
                raise BratsError(f"{kernel} ended with {status} ({reason}): see https://www.kaggle.com/code/{kernel}. "
                                 "The notebooks after it were not pushed.")
            time.sleep(POLL_SECONDS)
            bar.update()
