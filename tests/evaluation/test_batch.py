"""A batch ends with as much done as can be, and the same call does the rest."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import signal
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import small_volumes, write_case
from joblib.externals.loky.process_executor import TerminatedWorkerError

from brats_helpers.__main__ import main
from brats_helpers.basics import jobs
from brats_helpers.basics.config import Config
from brats_helpers.basics.errors import BratsError
from brats_helpers.basics.lock import HELD, hold_folder
from brats_helpers.evaluation import batch
from brats_helpers.evaluation.batch import predict_cases, try_output
from brats_helpers.evaluation.checkpoints import write_checkpoint
from brats_helpers.evaluation.prediction_table import (
    DONE,
    FAILED,
    INCOMPLETE,
    TABLE,
    mask_crc,
    new_row,
)
from brats_helpers.network.unet import UNet

CONFIG = Config(preset="quick", filters=(4, 6), patch=8, tta=False, spacing_mm=4.0)


def save_network(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    write_checkpoint(path, CONFIG, {"average": UNet(CONFIG.filters).state_dict()})
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_network(tmp_path / "c" / "best.pt", 0)


def cohort(folder: Path, count: int) -> Path:
    images, labels = small_volumes()
    for i in range(count):
        write_case(folder, f"P{i:02d}", images + np.int16(i) * (images > 0), labels)
    return folder


def table(out: Path) -> dict[str, dict]:
    with open(out / TABLE, encoding="utf-8", newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def stamps(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}


def break_five(data: Path) -> None:
    """Break every fifth patient in another way; the reference of P25 is damaged, too."""
    whole = (data / "P00" / "P00_t2.nii.gz").read_bytes()
    (data / "P00" / "P00_t2.nii.gz").write_bytes(whole[: len(whole) // 2])
    (data / "P05" / "P05_t1ce.nii.gz").unlink()
    other = nib.Nifti1Image(np.ones((5, 6, 7), np.int16), np.eye(4))
    nib.save(other, data / "P10" / "P10_flair.nii.gz")
    (data / "P15" / "P15_t1.nii.gz").write_text("version https://git-lfs.github.com/spec/v1")
    broken = np.full((21, 26, 17), np.nan, np.float32)
    nib.save(nib.Nifti1Image(broken, nib.load(data / "P20" / "P20_t1.nii.gz").affine),
             data / "P20" / "P20_flair.nii.gz")
    (data / "P25" / "P25_seg.nii.gz").write_bytes(
        b"a damaged reference, which predict does not need")


def test_thirty_patients_with_five_faults_give_25_masks_and_only_the_five_are_tried_again(
    checkpoint: Path, tmp_path: Path, capsys, monkeypatch, faults
) -> None:
    data = cohort(tmp_path / "data", 30)
    break_five(data)
    command = ["predict", str(data), "--checkpoint", str(checkpoint), "--out",
               str(tmp_path / "masks")]
    assert main(command) == 3
    rows, before, said = table(tmp_path / "masks"), stamps(tmp_path / "masks"), capsys.readouterr()
    bad = ["P00", "P05", "P10", "P15", "P20"]
    assert sorted(rows) == [f"P{i:02d}" for i in range(30)] and len(before) == 25
    assert [name for name, row in rows.items() if row["status"] != DONE] == bad
    assert (
        rows["P05"]["status"] == INCOMPLETE
        and "t1ce" in rows["P05"]["warnings"]
        and "all four" in rows["P05"]["warnings"]
    )
    assert all(f"NOT SEGMENTED: {name}: " in said.out for name in bad) and "25 of 30" in said.out
    assert "5 patient(s) could not be segmented" in said.err
    assert all(
        float(row["WT_ml"]) >= float(row["TC_ml"]) >= 0
        for name, row in rows.items()
        if name not in bad
    )
    tried = []
    monkeypatch.setattr(
        batch,
        "check_cohort",
        lambda cases, jobs: (
            tried.extend(c.name for c in cases),
            [{"problems": ["still broken"]} for _ in cases],
        )[1],
    )
    assert main(command) == 3
    assert tried == bad and stamps(tmp_path / "masks") == before
    faults("broken patients in a batch", 5)


def test_what_is_kept_and_what_is_made_anew(checkpoint: Path, tmp_path: Path, capsys) -> None:
    data, out = cohort(tmp_path / "data", 3), tmp_path / "masks"

    def made_anew(**options: object) -> set[str]:
        before = stamps(out)
        predict_cases([data], [options.pop("checkpoint", checkpoint)], out, **options)
        return {
            name.split(".")[0] for name, stamp in stamps(out).items() if before.get(name) != stamp
        }

    assert made_anew() == {"P00", "P01", "P02"} and made_anew() == set()
    shutil.copy(checkpoint, tmp_path / "moved.pt")
    assert made_anew(checkpoint=tmp_path / "moved.pt") == set()  # the weights count, not the name
    (out / "P00.nii.gz").write_bytes((out / "P00.nii.gz").read_bytes()[:50])
    images, _ = small_volumes(1)
    write_case(data, "P01", images, None)
    assert made_anew() == {"P00", "P01"}  # cut short; other scans
    assert made_anew(overwrite=True) == {"P00", "P01", "P02"}
    assert made_anew(tta=True) == {"P00", "P01", "P02"}
    assert made_anew(checkpoint=save_network(tmp_path / "other.pt", 1)) == {"P00", "P01", "P02"}
    mask = nib.load(out / "P02.nii.gz")
    corrected = np.asarray(mask.dataobj).copy()
    corrected[0, 0, 0] ^= 1
    nib.save(nib.Nifti1Image(corrected, mask.affine), out / "P02.nii.gz")
    assert made_anew() == {
        "P00",
        "P01",
    } and "P02: the mask was changed after it was written, and is kept" in (capsys.readouterr().out)
    for damage in (b"\xff\xfe\0 no table", b"name,age\nAnn,7\n"):
        (out / TABLE).write_bytes(damage)
        assert made_anew() == {"P00", "P01", "P02"}
        assert "damaged or not a table of predict" in capsys.readouterr().out
    kept = {path.read_bytes() for path in out.glob(f"{TABLE}.unreadable*")}
    assert kept == {b"\xff\xfe\0 no table", b"name,age\nAnn,7\n"}  # neither is lost


def test_a_mask_drawn_for_a_failed_patient_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    data, mask = cohort(tmp_path / "data", 2), tmp_path / "masks" / "P00.nii.gz"
    predict_cases([data], [checkpoint], mask.parent)
    scan = next((data / "P00").glob("*t1ce*"))
    whole, ours = scan.read_bytes(), mask.read_bytes()
    scan.write_bytes(whole[:50])
    row = predict_cases([data], [checkpoint], mask.parent)[0]
    assert "mask that is there is from an earlier call" in row["warnings"]
    drawn = nib.load(mask)
    nib.save(nib.Nifti1Image(1 - np.minimum(drawn.dataobj, 1), drawn.affine), mask)
    by_hand = mask.read_bytes()
    row = predict_cases([data], [checkpoint], mask.parent)[0]
    assert "mask that is there is not from predict" in row["warnings"]
    scan.write_bytes(whole)
    predict_cases([data], [checkpoint], mask.parent)
    assert mask_crc(mask) == zlib.crc32(gzip.decompress(ours)).to_bytes(4).hex()
    assert (mask.parent / "P00.nii.gz.earlier").read_bytes() == by_hand


def test_a_name_that_is_too_long_stops_nobody_else(checkpoint: Path, tmp_path: Path) -> None:
    images, _ = small_volumes()
    for name in ("N" * 252, "P2"):
        (tmp_path / "in" / name).mkdir(parents=True)
        write_case(tmp_path / "other", "x", images, None)
        for path in (tmp_path / "other" / "x").iterdir():
            path.rename(tmp_path / "in" / name / path.name.removeprefix("x_"))
    rows = predict_cases([tmp_path / "in"], [checkpoint], tmp_path / "out")
    assert [row["status"] for row in rows] == [FAILED, DONE]
    assert "rename the patient's folder" in rows[0]["warnings"]


@pytest.mark.parametrize("damage", [b"", b"garbage", gzip.compress(b"no mask", mtime=0)])
def test_a_mask_that_cannot_be_read_is_made_again(checkpoint: Path, tmp_path: Path,
                                                  damage: bytes) -> None:
    data, mask = cohort(tmp_path / "data", 1), tmp_path / "masks" / "P00.nii.gz"
    for _ in range(2):
        rows = predict_cases([data], [checkpoint], mask.parent)
        assert rows[0]["mask_crc"] == mask_crc(mask) and "kept" not in rows[0]["warnings"]
        mask.write_bytes(damage)


def test_a_folder_with_the_name_of_a_mask_stops_nobody_else(checkpoint: Path, tmp_path: Path
                                                            ) -> None:
    data, out = cohort(tmp_path / "data", 2), tmp_path / "masks"
    (out / "P00.nii.gz").mkdir(parents=True)
    for overwrite in (False, True):
        rows = predict_cases([data], [checkpoint], out, overwrite=overwrite)
        assert [row["status"] for row in rows] == [FAILED, DONE]
        assert "P00.nii.gz is a folder" in rows[0]["warnings"]


def test_an_interrupted_batch_goes_on(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    data, out, real = cohort(tmp_path / "data", 3), tmp_path / "masks", batch._segment_one

    def press_stop(case, *rest: object) -> dict:
        if case.name == "P01":
            raise KeyboardInterrupt
        return real(case, *rest)

    monkeypatch.setattr(batch, "_segment_one", press_stop)
    with pytest.raises(KeyboardInterrupt):
        predict_cases([data], [checkpoint], out)
    assert [row["status"] for row in table(out).values()] == [DONE, "not yet", "not yet"]
    first = stamps(out)
    monkeypatch.setattr(batch, "_segment_one", real)
    rows = predict_cases([data], [checkpoint], out)
    assert [row["status"] for row in rows] == [DONE] * 3 and first.items() < stamps(out).items()


def test_processes_share_a_cohort(checkpoint: Path, tmp_path: Path) -> None:
    data = cohort(tmp_path / "data", 4)
    alone = predict_cases([data], [checkpoint], tmp_path / "alone")
    shared = predict_cases([data], [checkpoint], tmp_path / "shared", jobs=2)
    assert [row["mask_crc"] for row in alone] == [row["mask_crc"] for row in shared]
    for number in (0, -2):
        with pytest.raises(BratsError, match=f"jobs={number} cannot work"):
            predict_cases([data], [checkpoint], tmp_path / "alone", jobs=number)


def test_no_more_processes_start_than_can_work(monkeypatch) -> None:
    monkeypatch.setattr(jobs, "cpu_count", lambda: 8)
    wanted = {(1000, 3): 3, (1000, 1000): 32, (2, 9): 2, (-1, 100): 8, (-1, 3): 3, (-2, 100): 7,
              (2, 0): 1}
    assert {key: jobs.worker_count(*key) for key in wanted} == wanted


def _die_for_one(case, task, out: Path) -> dict:
    if case.name == "P01":
        os.kill(os.getpid(), signal.SIGKILL)
    return new_row(case.name, DONE, seconds=1, made_from="x", mask_crc="y")


def test_a_worker_that_dies_loses_nothing(checkpoint: Path, tmp_path: Path, monkeypatch,
                                          faults) -> None:
    data = cohort(tmp_path / "data", 3)
    monkeypatch.setattr(batch, "_segment_in_worker", _die_for_one)
    rows = {
        row["case"]: row for row in predict_cases([data], [checkpoint], tmp_path / "out", jobs=2)
    }
    assert [rows[f"P{i:02d}"]["status"] for i in range(3)] == [DONE, FAILED, DONE]
    assert "its process was killed" in rows["P01"]["warnings"]
    assert issubclass(TerminatedWorkerError, jobs.worker_death_errors())
    faults("killed workers")


def test_patients_where_they_are_named_from(checkpoint: Path, tmp_path: Path, monkeypatch,
                                            capsys) -> None:
    images, labels = small_volumes()
    folder = tmp_path / "BraTS-GLI-00001-000"
    folder.mkdir()
    for name, image in zip(("flair", "t1", "t1c", "t2"), images, strict=True):
        nib.save(nib.Nifti1Image(image, np.diag([-1.0, -1, 1, 1])), folder / f"{name}.nii.gz")
    monkeypatch.chdir(folder)
    assert main(["predict", ".", "--checkpoint", str(checkpoint), "--out", "."]) == 0
    assert (folder / "BraTS-GLI-00001-000.nii.gz").is_file()
    assert (
        main(["predict", ".", "--checkpoint", str(checkpoint), "--out", "."]) == 0
    )  # what it wrote is no input
    assert "1 mask(s) are there already" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert (
        main(
            ["predict", str(folder), str(tmp_path / "empty"), "--checkpoint", str(checkpoint),
             "--out", str(tmp_path / "masks")]
        )
        == 3
    )  # the others of a shell's data/* are done
    assert (
        main(
            ["predict", str(folder), str(tmp_path / "empty" / ".." / folder.name), "--checkpoint",
             str(checkpoint), "--out", str(tmp_path / "masks")]
        )
        == 0
    )  # one patient, named twice


def test_what_was_written_is_not_found_as_input(checkpoint: Path, tmp_path: Path) -> None:
    data = cohort(tmp_path / "data", 2)
    copied = data / "runs" / "cases"
    shutil.copytree(data / "P00", copied / "P00")  # a work folder inside the source
    for name in ("config.json", "cohort.json"):
        (data / "runs" / name).write_text("{}")
    (data / "P_t1").mkdir()  # its mask is called P_t1.nii.gz
    for path in (data / "P00").iterdir():
        shutil.copy(path, data / "P_t1" / path.name.replace("P00_", ""))
    for out in (data, data / "P00",
                data / "masks"):  # patients in or below the output folder are patients
        for _ in range(2):
            rows = predict_cases([data], [checkpoint], out)
            assert [row["case"] for row in rows] == ["P00", "P01", "P_t1"]
        (out / "P_t1.nii.gz").unlink(missing_ok=True)
    assert predict_cases([copied], [checkpoint], tmp_path / "out")[0]["status"] == DONE


def test_two_patients_of_one_name_are_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BratsError, match="two patients are called P00 .*a/P00.* and .*b/P00"):
        predict_cases([cohort(tmp_path / "a", 1), cohort(tmp_path / "b", 1)], [checkpoint],
                      tmp_path / "out")
    folders = [str(cohort(tmp_path / "a", 2)), str(tmp_path / "b")]
    out = tmp_path / "out"
    assert main(["predict", *folders, "--checkpoint", str(checkpoint), "--out", str(out)]) == 3
    assert [row["status"] for row in table(out).values()] == [FAILED, DONE]
    assert "two patients are called P00" in table(out)["P00"]["warnings"]


def test_the_output_is_tried_before_the_work(tmp_path: Path, monkeypatch, faults) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BratsError, match="cannot hold masks, because .*file is not a folder"):
            try_output(out)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(BratsError, match="link is not a folder"):
        try_output(tmp_path / "link")
    try_output(tmp_path / "new" / "deep")
    assert not list((tmp_path / "new" / "deep").iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BratsError, match="could not be written.*No space left"):
        predict_cases([tmp_path], [tmp_path / "none.pt"], tmp_path / "new")
    faults("useless output folders", 4)


def test_a_folder_in_use_is_held(checkpoint: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    CONFIG.save(out / "config.json")
    with hold_folder(out):
        with hold_folder(out):  # and so may what this run starts
            pass
        monkeypatch.setenv(HELD, "")  # another run
        with (
            pytest.raises(
                BratsError,
                match=rf"out is in use by another run \(process {os.getpid()} on .*since",
            ),
            hold_folder(out),
        ):
            pass
        assert (
            main(
                ["predict", str(cohort(tmp_path / "data", 1)), "--checkpoint", str(checkpoint),
                 "--out", str(out)]
            )
            == 1
        )
        assert main(["train", "--work", str(out)]) == main(["run", "--work", str(out)]) == 1
        assert capsys.readouterr().err.count("in use by another run") == 3
    with hold_folder(out):
        pass
    (tmp_path / "file").write_text("")
    with (pytest.raises(BratsError, match="file cannot be written to .it is a file"),
          hold_folder(tmp_path / "file")):
        pass


def test_what_is_odd_about_scans_is_printed_before_the_network_runs(
        checkpoint: Path, tmp_path: Path, capsys) -> None:
    images, _ = small_volumes()
    images[2] = images[1]
    write_case(tmp_path, "P1", images, None)
    predict_cases([tmp_path / "P1"], [checkpoint], tmp_path / "out")
    assert "WARNING: patient P1: t1 and t1ce are the same image" in capsys.readouterr().out


def test_files_of_others_are_not_lost(checkpoint: Path, tmp_path: Path, capsys) -> None:
    images, _ = small_volumes()
    write_case(tmp_path / "in", "P1", images, None)
    out = tmp_path / "out"
    out.mkdir()
    (out / "P1.nii.gz").write_bytes(b"an expert's")
    for _ in range(2):
        predict_cases([tmp_path / "in"], [checkpoint], out)
        assert (out / "P1.nii.gz.earlier").read_bytes() == b"an expert's"
    assert "written by predict, or was changed: kept as P1.nii" in capsys.readouterr().out
    assert len(list(out.glob("P1.nii.gz*"))) == 2
    (out / TABLE).unlink()  # so nobody knows who wrote the mask, which may be corrected by hand
    predict_cases([tmp_path / "in"], [checkpoint], out)
    assert (out / "P1.nii.gz.earlier").read_bytes() == b"an expert's"
    assert mask_crc(out / "P1.nii.gz.earlier1") == mask_crc(out / "P1.nii.gz") != ""
    (out / TABLE).write_text((out / TABLE).read_text().replace(",", ";"))  # as a spreadsheet may
    predict_cases([tmp_path / "in"], [checkpoint], out)
    assert len(list(out.glob("*.earlier*"))) == 2 and not list(out.glob("*.unreadable*"))
    (out / TABLE).unlink()
    (out / TABLE).mkdir()
    with pytest.raises(BratsError, match="is a folder.*move it away"):
        predict_cases([tmp_path / "in"], [checkpoint], out)


@pytest.mark.parametrize("command", [["predict", "in", "--out", ""], ["predict", "", "--out", "o"],
                                     ["check", "in", "--csv", ""], ["run", "--source", ""],
                                     ["run", "--work", ""], ["train", "--config", ""]])
def test_an_empty_path_is_not_this_folder(command: list[str], capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "the name is empty" in capsys.readouterr().err


def test_a_mask_never_replaces_a_scan(checkpoint: Path, tmp_path: Path) -> None:
    images, _ = small_volumes()
    folder = write_case(tmp_path, "flair", images, None)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.removeprefix("flair_"))
    before = (folder / "flair.nii.gz").read_bytes()
    with pytest.raises(BratsError, match="would replace the scan"):
        predict_cases([folder], [checkpoint], folder)
    assert (folder / "flair.nii.gz").read_bytes() == before


def test_a_patient_given_twice_through_a_link_is_one(checkpoint: Path, tmp_path: Path) -> None:
    images, _ = small_volumes()
    folder = write_case(tmp_path / "in", "P1", images, None)
    (tmp_path / "link").symlink_to(folder)
    rows = predict_cases([folder, tmp_path / "link"], [checkpoint], tmp_path / "out")
    assert [row["status"] for row in rows] == [DONE]


def test_patients_are_found_before_a_network_is_loaded(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "load_ensemble", lambda *_: pytest.fail("a network was loaded"))
    (tmp_path / "patients.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    for name in ("patients.zip", "empty", "nowhere"):
        with pytest.raises(BratsError, match=name):
            predict_cases([tmp_path / name], None, tmp_path / "masks")


def test_a_name_like_a_formula_is_kept_from_running_and_known_again(
        checkpoint: Path, tmp_path: Path) -> None:
    images, _ = small_volumes()
    folder = write_case(tmp_path / "in", "=1+1", images, None)
    for _ in range(2):  # the second call keeps the mask
        rows = predict_cases([folder], [checkpoint], tmp_path / "out")
        assert [row["case"] for row in rows] == ["=1+1"]
        assert "\n'=1+1,done" in (tmp_path / "out" / TABLE).read_text()


def test_a_folder_whose_name_cannot_be_printed_is_a_failed_patient(
        checkpoint: Path, tmp_path: Path) -> None:
    images, _ = small_volumes()
    write_case(tmp_path / "in", "P1", images, None)
    write_case(tmp_path / "in", "P2", images, None).rename(tmp_path / "in" / "P\n2")
    rows = predict_cases([tmp_path / "in"], [checkpoint], tmp_path / "out")
    assert [(row["case"], row["status"]) for row in rows] == [("P1", DONE), ("P\\n2", FAILED)]
