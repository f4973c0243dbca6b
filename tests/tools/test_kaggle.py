"""Kaggle: its client accepts what we build, and each notebook runs on the one before it."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import namespaces_allowed
from test_editions import assert_all_open

from brats_helpers.basics.errors import BratsError
from brats_helpers.lessons import session
from brats_helpers.phantoms.archive import build_cohort
from brats_helpers.tools import editions, kaggle, series

HELPERS = "brats-step-by-step-helpers"
SMOKE = {"preset": "quick", "spacing_mm": 4.0, "epochs": 1, "steps": 3, "patch": 32,
         "overfit_steps": 15, "full_size": False, "pretrained": False}
# The real client, which knows only Kaggle's own address, is given another.
PUSH = """import sys, kagglesdk.kaggle_env as env
env._env_to_endpoint[env.KaggleEnv.PROD] = sys.argv[1]
from brats_helpers.tools import kaggle
from brats_helpers.__main__ import main
kaggle.POLL_SECONDS = 0.01
sys.exit(main(["kaggle", "push", "--owner", "somebody", "--out", sys.argv[2]]))"""
SESSION = Path(__file__).with_name("kaggle_session.sh")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> list[Path]:
    return kaggle.build(tmp_path_factory.mktemp("kaggle"), "somebody")


def test_each_notebook_has_its_forerunner_and_the_helpers_as_sources(built: list[Path]) -> None:
    helpers, *books = built
    about = json.loads((helpers / "dataset-metadata.json").read_text())
    assert about["id"] == f"somebody/{HELPERS}" and about["licenses"] == [{"name": "MIT"}]
    assert (helpers / "brats_helpers" / "lessons" / "viewer.js").is_file()
    assert not list(helpers.rglob("__pycache__"))
    assert {p.name.split("-")[0] for p in (helpers / "wheels").iterdir()} == {"monai"}
    kernels = [json.loads((folder / "kernel-metadata.json").read_text()) for folder in books]
    before = [[], *([kernel["id"]] for kernel in kernels[:-1])]
    assert [kernel["kernel_sources"] for kernel in kernels] == before
    assert [kernel["enable_gpu"] for kernel in kernels] == [False, False, False, True, True]
    for name, folder, kernel in zip(series.NAMES, books, kernels, strict=True):
        assert kernel["code_file"] == f"{name}.ipynb"
        assert f"somebody/{HELPERS}" in kernel["dataset_sources"]
        cells = nbformat.read(folder / kernel["code_file"], 4).cells
        assert not any(cell.get("outputs") for cell in cells)
        injected = [cell.source for cell in cells
                    if "injected-parameters" in cell.metadata.get("tags", [])]
        assert injected and (name != "01_setup" or "/kaggle/input/brats-2021-task1" in injected[0])


@pytest.mark.parametrize(("change", "message"),
                         [({"owner": "INSERT_OWNER"},
                           "owner is 'INSERT_OWNER': give your Kaggle name"),
                          ({"color": 1}, "color is not a field"),
                          ({"license": None}, "license is missing"),
                          ({"dataset_sources": ["brats"]},
                           "dataset_sources has 'brats', not owner/dataset"),
                          ({"slug": "Bad Slug"}, r"notebooks\[2\].slug is 'Bad Slug'"),
                          ({"title": "Hi"}, r"notebooks\[2\].title is 'Hi'"),
                          ({"title": "Another title"}, "but the title resolves to 'another-title'"),
                          ({"gpu": 1}, r"notebooks\[2\] has unknown fields: gpu"),
                          ({"order": 7}, "with order 1 to 5"),
                          ({"file": "notebooks/9.ipynb"},
                           r"notebooks\[2\].file names a file that is not there")])
def test_metadata_that_kaggle_rejects_names_the_field(tmp_path: Path, change: dict,
                                                      message: str) -> None:
    data = json.loads(kaggle.METADATA.read_text()) | {"owner": "somebody"}
    name, value = next(iter(change.items()))
    place = data["notebooks"][1] if name in ("slug", "title", "gpu", "file", "order") else data
    place[name] = value
    if value is None:
        del place[name]
    (tmp_path / "m.json").write_text(json.dumps(data))
    with pytest.raises(BratsError, match=message):
        kaggle.read_metadata(tmp_path / "m.json")


@contextlib.contextmanager
def stub(failing: str = "") -> Iterator[tuple[str, list[tuple[str, dict]]]]:
    """Serve Kaggle's API on loopback; yields its address and the requests.

    failing: the slug of a notebook that fails.
    """
    asked: list[tuple[str, dict]] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = self.path.rsplit("/", 1)[1]
            asked.append((request, json.loads(body) if body[:1] == b"{" else {}))
            made = any(name == "CreateDataset" for name, _ in asked)
            failed = failing and asked[-1][1].get("kernelSlug") == failing
            status = "ERROR" if failed else "COMPLETE"
            answers = {"SaveKernel": {"versionNumber": 1, "url": "u"},
                       "CreateDataset": {"status": "ok", "ref": "r"},
                       "GetKernelSessionStatus": {"status": status,
                                                  "failureMessage": "out of memory"},
                       "StartBlobUpload": {"token": "t", "createUrl": f"{address}/blob"},
                       "GetDatasetStatus": {"status": "READY"}}
            self.send_response(404 if request == "GetDatasetStatus" and not made else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(request, {})).encode())

        do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield address, asked
    server.shutdown()


def push(address: str, out: Path, **credentials: str) -> subprocess.CompletedProcess:
    if importlib.util.find_spec("kaggle") is None:  # to import it would be to sign in
        pytest.skip("Kaggle's client is not installed")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KAGGLE")}
    return subprocess.run([sys.executable, "-c", PUSH, address, str(out)], cwd=series.ROOT,
                          capture_output=True, text=True,
                          env={**kept, "HOME": str(out), **credentials}, timeout=120)


def test_the_real_client_is_given_the_dataset_and_then_the_notebooks_in_order(
    tmp_path: Path) -> None:
    with stub() as (address, asked):
        done = push(address, tmp_path, KAGGLE_USERNAME="somebody", KAGGLE_KEY="0" * 32)
    assert done.returncode == 0, done.stderr
    names = [name for name, _ in asked]
    assert names.index("CreateDataset") < names.index("SaveKernel")
    assert names.count("SaveKernel") == 5
    saved = [body for name, body in asked if name == "SaveKernel"]
    assert [body["slug"].split("-")[-2] for body in saved[:3]] == ["01", "02", "03"]
    for before, body in zip([None, *saved], saved):
        assert body["language"] == "python"
        assert body["kernelType"] == "notebook"
        assert body.get("isPrivate")
        assert body.get("kernelDataSources", []) == ([before["slug"]] if before else [])
        assert not body.get("enableInternet")
        assert json.loads(body["text"])["cells"]
    assert "0" * 32 not in done.stdout + done.stderr  # a credential is never shown


def test_the_first_notebook_that_fails_there_stops_the_push(tmp_path: Path) -> None:
    with stub("brats-step-by-step-02-extraction") as (address, asked):
        done = push(address, tmp_path, KAGGLE_USERNAME="somebody", KAGGLE_KEY="0" * 32)
    assert done.returncode == 1 and [name for name, _ in asked].count("SaveKernel") == 2
    assert "02-extraction ended with ERROR (out of memory)" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_credentials_nothing_is_sent_and_the_way_to_get_them_is_said(
    tmp_path: Path) -> None:
    with stub() as (address, asked):
        done = push(address, tmp_path)
    assert done.returncode == 1 and not asked and not (tmp_path / HELPERS).exists()
    assert "no credentials for Kaggle" in done.stderr and "kaggle.com/settings/api" in done.stderr


# ---------------------------------------------------------------- a session there

def test_what_was_left_is_taken_over_once_and_the_newest_checkpoint_wins(tmp_path: Path) -> None:
    for name, age in (("before", 1_000), ("cut-off", 2_000)):
        folder = tmp_path / "input" / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "cohort.json").write_text("{}")
        (folder / "config.json").write_text(name)
        (folder / "__notebook__.ipynb").write_text("not ours")
        (folder / "checkpoints" / "last.pt").write_text(name)
        os.utime(folder / "checkpoints" / "last.pt", (age, age))
    (tmp_path / "input" / "before" / "splits.json").write_text("from before")
    work = tmp_path / "work"
    session.take_over(tmp_path / "input", work)
    assert (work / "checkpoints" / "last.pt").read_text() == "cut-off"
    assert (work / "config.json").read_text() == "cut-off"
    assert (work / "splits.json").read_text() == "from before"
    assert not (work / "__notebook__.ipynb").exists()
    (work / "config.json").write_text("changed here")
    session.take_over(tmp_path / "input", work)
    assert (work / "config.json").read_text() == "changed here"


def test_wheels_that_are_missing_are_installed_without_the_internet(tmp_path: Path) -> None:
    (tmp_path / "pkg" / "bratsdummy").mkdir(parents=True)
    (tmp_path / "pkg" / "bratsdummy" / "__init__.py").write_text("here = True\n")
    project = '[project]\nname = "bratsdummy"\nversion = "1"\n'
    (tmp_path / "pkg" / "pyproject.toml").write_text(project)
    wheels = tmp_path / "input" / "helpers" / "wheels"
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation",
                    "--no-deps", "-w", str(wheels), str(tmp_path / "pkg")], check=True)
    code = ("from brats_helpers.lessons.session import install_wheels\n"
            f"place = {str(tmp_path / 'input')!r}\n"
            "assert install_wheels(place) == ['bratsdummy']\n"
            "import bratsdummy\nassert bratsdummy.here and install_wheels(place) == []")
    target = str(tmp_path / "target")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=series.ROOT, env={
        **os.environ, "PIP_TARGET": target, "PYTHONPATH": target})


def make_archives(folder: Path, made: Path) -> Path:
    """Make Kaggle's dataset: a large archive, and two of one patient each, who are in it, too."""
    training, _ = build_cohort(made, 0, 6, 0, 4.0)
    folder.mkdir(parents=True)
    large = Path(shutil.move(training, folder / training.name))
    for number in (1, 3):
        name = f"BraTS2021_{number:05d}"
        with tarfile.open(large) as tar:
            tar.extractall(made, filter="data",
                           members=[m for m in tar if m.name.startswith(name)])
        with tarfile.open(folder / f"{name}.tar", "w") as single:
            single.add(made / name, name)
    return large


def test_a_student_on_kaggle_who_leaves_every_blank_comes_to_the_end(tmp_path: Path,
                                                                     monkeypatch) -> None:
    """Run five sessions, each on the output of the one before, which write what Kaggle keeps."""
    if not namespaces_allowed():
        pytest.skip("mount namespaces are not allowed here")
    data = json.loads(kaggle.METADATA.read_text())
    editions.write_editions(tmp_path / "editions")
    for book in data["notebooks"]:
        book["file"] = str(tmp_path / "editions" / "student" / Path(book["file"]).name)
    (tmp_path / "m.json").write_text(json.dumps(data | {"parameters": data["parameters"] | SMOKE}))
    monkeypatch.setattr(kaggle, "METADATA", tmp_path / "m.json")
    built = kaggle.build(tmp_path / "built", "somebody")
    large = make_archives(tmp_path / "input" / "brats-2021-task1", tmp_path / "made")
    shutil.copytree(built[0], tmp_path / "input" / HELPERS)
    root = tmp_path / "root"
    root.mkdir()
    for folder, notebook in zip(built[1:], series.NAMES, strict=True):
        working, name = tmp_path / folder.name, f"{notebook}.ipynb"
        working.mkdir()
        shutil.copy(folder / name, tmp_path / "input")
        done = subprocess.run(["unshare", "-rm", "bash", str(SESSION), str(tmp_path / "input"),
                               str(working), str(root), sys.executable, "-m", "papermill", "-k",
                               "python3", f"/kaggle/input/{name}", "__notebook__.ipynb"],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert_all_open(working / "__notebook__.ipynb", notebook)
        for old in (tmp_path / "input").glob("brats-step-by-step-0*"):
            shutil.rmtree(old)
        working.rename(tmp_path / "input" / folder.name)  # the next one's only forerunner
    assert_kaggle_keeps_it(tmp_path / "input" / built[-1].name, large)


def assert_kaggle_keeps_it(last: Path, large: Path) -> None:
    """The last session's output is complete and fits; large: the archive, which is not unpacked."""
    metrics = json.loads((last / "metrics.json").read_text())
    assert metrics["set"] == "validation" and metrics["cases"] >= 1
    assert (last / "checkpoints" / "last.pt").is_file()
    patients = json.loads((last / "patients.json").read_text())
    assert patients["folders"]["training"].endswith("brats-2021-task1")
    assert len(patients["rows"]["training"]) == 6
    scans = [p for p in last.rglob("*_flair.nii.gz") if "first" not in p.parts]
    assert not scans, "the archive is read where it lies"
    kept = sum(p.stat().st_size for p in last.rglob("*") if p.is_file()
               and p.parts[-2] in ("preprocessed", "cases", "first"))
    # Kaggle's 20 GB beside BraTS's 12.4
    assert kept < 20 / 12.4 * large.stat().st_size
