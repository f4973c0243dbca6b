"""The command line and the notebooks: in step with their sources, complete, and executed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import nibabel as nib
import numpy as np
import pytest
from conftest import SMOKE

from brats_helpers.__main__ import main
from brats_helpers.basics.config import Config
from brats_helpers.basics.errors import BratsError
from brats_helpers.basics.shapes import mismatch
from brats_helpers.data.cohort import read_cohort, read_source, write_source
from brats_helpers.phantoms.kinds import make_patient
from brats_helpers.tools import series

COARSE = {"spacing_mm": 6.0}  # notebook 01 shows phantoms of this size beside the user's patients


def sources(name: str, suffix: str) -> list[tuple[str, str]]:
    """The cells of a notebook, kind and text."""
    return [(cell.cell_type, cell.source)
            for cell in jupytext.read(series.FOLDER / f"{name}{suffix}").cells]


@pytest.mark.parametrize("name", series.NAMES)
def test_pair_is_in_step_small_and_has_its_outputs(name: str) -> None:
    assert sources(name, ".py") == sources(name, ".ipynb"), "run: make notebooks"
    path = series.FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 1_500_000
    cells = nbformat.read(path, 4).cells
    assert any("parameters" in cell.metadata.get("tags", []) for cell in cells)
    outputs = [out for cell in cells if cell.cell_type == "code" for out in cell.outputs]
    assert sum("image/png" in out.get("data", {}) for out in outputs) >= 4
    assert not [out for out in outputs if out.output_type == "error"]


def test_the_bootstrap_cell_is_the_same_in_all_five() -> None:
    cells = {next(text for kind, text in sources(name, ".py") if "import start" in text)
             for name in series.NAMES}
    assert len(cells) == 1


def test_unknown_parameters_and_numbers_list_the_valid_ones(capsys) -> None:
    assert main(["run", "-p", "learning_rat", "0.1"]) == 1
    said = capsys.readouterr().err
    assert "learning_rat;" in said and "learning_rate " in said and "notebook 5" in said
    assert main(["run", "--only", "6"]) == 1 and "01_setup" in capsys.readouterr().err
    with pytest.raises(BratsError, match="preset 'fast'.*quick"):
        series.run_series("fast")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--from", "2", "--source", "x.tar"], "notebook 01 sets --source"),
    (["-p", "work", "x"], "--work instead of -p work")])
def test_options_that_would_be_ignored_are_refused(arguments: list[str], message: str,
                                                   capsys) -> None:
    assert main(["run", *arguments]) == 1 and message in capsys.readouterr().err


def test_the_bar_says_how_many_minutes_are_left_for_the_series(monkeypatch, capfd,
                                                               tmp_path: Path) -> None:
    assert series.time_left_text([], [1, 2, 3, 4, 5], 0) == ""
    assert series.time_left_text([1, 2], [3, 4, 5], 102) == (
        "about 8 minutes left for the series, ")
    assert len(series.SHARES) == len(series.NAMES) and sum(series.SHARES) == 100
    monkeypatch.setattr(series, "execute", lambda *_: None)
    series.run_series(work=tmp_path, start=4)
    said = capfd.readouterr().err
    assert "04_architecture" in said
    assert "about 0 minutes left for the series, 05_training_evaluation" in said


def test_a_notebook_that_stops_is_named_and_what_a_killed_series_left_is_removed(
    tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / ".part-killed.html").touch()
    with pytest.raises(BratsError, match="02_extraction stopped at cell .*run notebook 01 first"):
        series.run_series(work=tmp_path, only=2)
    assert [path.name for path in (tmp_path / "notebooks").iterdir()] == ["02_extraction.ipynb"]


def test_a_kernel_that_is_killed_is_said(tmp_path: Path, monkeypatch) -> None:
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import os; os.kill(os.getpid(), 9)")])
    nbformat.write(book, tmp_path / "01_setup.ipynb")
    monkeypatch.setattr(series, "FOLDER", tmp_path)
    said = "01_setup stopped because its process was killed, most often because memory ran out"
    with pytest.raises(BratsError, match=said):
        series.execute(1, tmp_path / "out", {})


def test_help_has_examples() -> None:
    for command in ("run", "predict"):
        out = subprocess.run([sys.executable, "-m", "brats_helpers", command, "--help"],
                             capture_output=True, text=True, cwd=series.ROOT, check=True).stdout
        assert "examples:" in out


def test_the_decathlons_cohort_with_a_twin_and_a_damaged_patient_goes_through_three(
    tmp_path: Path) -> None:
    names = [HOSTILE := "<script>alert(1)<b>$x_{$", "BRATS_1", "BRATS_2", "TWIN"]
    rows, source, work = [], tmp_path / "msd", tmp_path / "work"
    for index, name in enumerate(names):
        patient = make_patient(0, min(index, 2), 6.0)
        for folder, array in (("imagesTr", np.moveaxis(patient.images, 0, -1)),
                              ("labelsTr", patient.reference)):
            (source / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, patient.affine), source / folder / f"{name}.nii.gz")
        rows.append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
    (source / "dataset.json").write_text(json.dumps({
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, "training": rows}))
    series.run_series(source=str(source), work=work, only=1, parameters=COARSE)
    series.run_series(work=work, only=2)
    splits = read_cohort(work).splits
    assert list(splits["persons"].values()) == [["BRATS_2", "TWIN"]]
    assert len({"BRATS_2", "TWIN"} & set(splits["validation"])) in (0, 2)
    # the one that 02 would show
    (source / "labelsTr" / f"{HOSTILE}.nii.gz").write_bytes(b"half a download")
    with pytest.raises(BratsError, match=r"1 patient\(s\) have problems.*on_error=skip"):
        series.run_series(work=work, only=2)
    series.run_series(work=work, only=2, parameters={"on_error": "skip"})
    assert read_cohort(work).left_out == [HOSTILE]
    page = (work / "notebooks" / "02_extraction.html").read_text()
    assert "&lt;script&gt;alert" in page and "<script>alert" not in page
    series.run_series(work=work, only=3)
    assert len(list((work / "preprocessed").glob("*.b2nd"))) == 3


def test_metrics_of_one_patient_have_no_interval() -> None:
    names = ("WT", "TC", "ET")
    one = {"cases": 1, "set": "test", "dice": dict.fromkeys(names, 0.5),
           "dice_ci95": dict.fromkeys(names), "hd95_mm": dict.fromkeys(names, 1.0)}
    assert not mismatch(one, series.METRICS)
    assert "item 0" in mismatch(one | {"dice_ci95": dict.fromkeys(names, ["x"])}, series.METRICS)


def test_all_five_notebooks_run_and_the_second_time_reuse(tmp_path: Path) -> None:
    work = series.run_series(work=tmp_path / "work", parameters=SMOKE)
    metrics = json.loads((work / "metrics.json").read_text())
    assert metrics["cases"] == 2
    assert metrics["set"] == "test"
    assert metrics["preset"] == "quick"
    assert metrics["seed"] == 0
    for key in ("dice", "hd95_mm", "iou", "sensitivity", "dice_ci95"):
        assert set(metrics[key]) == {"WT", "TC", "ET"}
    assert len(metrics["per_case"]) == 2
    assert metrics["train_seconds"] > 0
    assert metrics["parameters"] > 1000
    assert len(list((work / "predictions").glob("*.nii.gz"))) == 2
    for name in series.NAMES:
        page = (work / "notebooks" / f"{name}.html").read_text()
        assert "data:image/png;base64" in page
        assert "No description" not in page
        assert 'alt=""' not in page
        assert not re.search(r"<summary>[^<]*</summary>\s*</details>", page)  # answers stay folded
        assert not re.search(
            r"(src|href)=.https?://[^>]*(\.js|\.css)|import\(|@import|cdnjs|unpkg|jsdelivr", page)
    kept = [work / "checkpoints" / "last.pt", *sorted((work / "preprocessed").glob("*.b2nd")),
            *(work / "data").glob("*.tar")]
    before = [path.stat().st_mtime_ns for path in kept]
    series.run_series(work=work, start=5,
                      parameters={k: SMOKE[k] for k in ("epochs", "steps", "patch")})
    assert before == [path.stat().st_mtime_ns for path in kept]
    assert metrics == json.loads((work / "metrics.json").read_text())
    config, source = Config.load(work / "config.json"), read_source(work)
    write_source(work, config.with_(seed=1), source["source"], Path(source["training"]),
                 Path(source["test"]), synthetic=True)  # as notebook 01 does
    with pytest.raises(BratsError, match="run notebooks 02 and 03 again"):
        series.run_series(work=work, only=5)


@pytest.mark.skipif("BRATS_REAL_DATA" not in os.environ,
                    reason="BRATS_REAL_DATA is not set: no real scans to test on")
def test_real_patients_go_through_all_five(tmp_path: Path) -> None:
    work = series.run_series(source=os.environ["BRATS_REAL_DATA"], work=tmp_path / "work",
                             parameters={"tta": False, **{name: value for name, value
                                         in SMOKE.items() if "patients" not in name}})
    metrics = json.loads((work / "metrics.json").read_text())
    assert metrics["set"] == "validation"
    assert metrics["checkpoint"] == "last.pt"
    assert metrics["cases"] == 2
    said = (work / "notebooks" / "05_training_evaluation.html").read_text()
    assert "would start from the network in the box, but spacing_mm=4.0 is not its 2.0" in said
