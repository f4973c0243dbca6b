"""Benchmarks at tiny sizes: timing, the GPU's part, the real patients' part, and the pages."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_case

from benchmarks import costs, gpu, limit, pages, real_cohort, real_systems, real_tables
from benchmarks.report import table
from benchmarks.timing import Result, race
from brats_helpers.basics.config import Config
from brats_helpers.basics.device import Device
from brats_helpers.basics.errors import BratsError
from brats_helpers.data.cases import Case, find_cases, read_case
from brats_helpers.evaluation.metrics import regions
from brats_helpers.evaluation.postprocessing import postprocess
from brats_helpers.phantoms.kinds import make_patient

CPU = Device("cpu", "test", 1.0, torch.float32)


def as_stored(labels: np.ndarray) -> np.ndarray:
    """Convert labels 0 to 3 to BraTS's."""
    return np.array([0, 1, 2, 4], np.uint8)[labels]


def test_a_race_counts_every_way_and_ratios_are_the_peers_over_ours() -> None:
    calls = []
    ours, peers = race(lambda: calls.append("a"), {"peer": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4 and ours > 0 and peers["peer"] > 0
    result = Result("item", 2.0, {"peer": 6.0}, "yes", goals={"peer": 2.5})
    assert result.as_dict()["ratio"] == {"peer": 3.0}
    assert "| item | peer | 6 ms | 2 ms | 3.00 | 2.5 |" in table([result], {"processor": "x"})


def test_the_gpus_part_runs_on_a_cpu_and_both_networks_learn_alike(tmp_path: Path) -> None:
    path = tmp_path / "gpu_test.json"
    found = gpu.measure(CPU, (4, 6, 8, 8), 16, 8.0, 1, 0, path)
    networks = [row["network"] for row in found["throughput"]]
    assert networks == 2 * ["ours", "DynUNet", "PlainConvUNet"] + ["ours, not compiled"]
    assert all(row["steps_per_second"] > 0 for row in found["throughput"])
    assert found["loss_curves"]["first_gap"] < 1e-4
    assert found["loss_curves"]["mean_gap_last_tenth"] < 1e-2
    assert all(row["fits"] and row["steps_per_second"] > 0 for row in found["t4"].values())
    assert len(found["inference_seconds"]) == 3
    assert all(v > 0 for v in found["inference_seconds"].values())
    assert all(0 < found["training"][name] < math.inf for name in ("from disk", "from memory"))
    again = gpu.measure(CPU, (4, 6, 8, 8), 16, 8.0, 1, 0, path, ["loss_curves"])
    assert str(again) == str(json.loads(path.read_text()))
    assert str(again["throughput"]) == str(found["throughput"])
    assert "| ours | float32 | 2 |" in gpu.table(again)


def test_the_pages_show_the_stored_results(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["pages", "--check"])
    assert pages.main() == 0, capsys.readouterr().out
    shown = {mark[1] for text in pages.pages().values() for mark in pages.MARK.findall(text)}
    assert shown == pages.tables().keys()


def test_a_page_that_is_out_of_date_is_named_and_written(tmp_path: Path, monkeypatch,
                                                         capsys) -> None:
    page = tmp_path / "page.md"
    page.write_text("old")
    monkeypatch.setattr(pages, "pages", lambda: {page: "new"})
    for arguments, status, text in ((["--check"], 1, "old"), ([], 0, "new"),
                                    (["--check"], 0, "new")):
        monkeypatch.setattr(sys, "argv", ["pages", *arguments])
        assert pages.main() == status and page.read_text() == text
    assert f"{page} is out of date" in capsys.readouterr().out


class Knowing:
    """A system that gives the reference of the coarse patient as its probabilities."""

    labels = staticmethod(postprocess)

    def probabilities(self, case: Case, snapshot: Path, views: bool) -> np.ndarray:
        return regions(read_case(case).reference).astype(np.float32)


def test_a_coarse_patient_is_scored_on_the_grid_of_the_scan(tmp_path: Path) -> None:
    # as if it were the fine one: 119 columns become 60, 78 slices 39
    patient = make_patient(0, 3, 2.0)
    write_case(tmp_path, "P", patient.images[:, :119], as_stored(patient.reference[:119]),
               patient.affine)
    case = find_cases(tmp_path / "P")[0]
    coarse = real_cohort.coarse_case(case, tmp_path / "coarse", 4.0)
    small = read_case(coarse)
    assert small.images.shape == (4, 60, 60, 39) and np.allclose(small.spacing, 4)
    corner = small.affine @ [-0.5, -0.5, -0.5, 1]  # the outer corner stays where it was
    assert np.allclose(corner, patient.affine @ [-0.5, -0.5, -0.5, 1])
    rows = real_cohort.scores(Knowing(), case, coarse, tmp_path)
    assert all(row["dice"] > 0.85 and row["lesion_dice"] > 0.8 for row in rows.values())
    assert rows["WT"]["dice"] == real_cohort.scores(Knowing(), case, coarse, tmp_path, False)["WT"]
    assert real_cohort.coarse_case(case, tmp_path / "same", 2.0) == case


def test_ours_learns_from_patients_and_nnunets_labels_are_its_own(tmp_path: Path) -> None:
    for index in range(4):
        patient = make_patient(0, index, 8.0)
        write_case(tmp_path / "raw", f"P{index}", patient.images, as_stored(patient.reference),
                   patient.affine)
    cases = find_cases(tmp_path / "raw")
    config = Config(preset="quick", filters=(4, 6, 8), patch=16, warmup=2, spacing_mm=8.0)
    ours = real_systems.Ours(tmp_path / "ours", config)
    ours.train(cases, 0.1, 0)
    said = real_systems.read_training(tmp_path / "ours")
    assert said["steps"]
    assert not said["pretrained"]  # the network in the box works at 2 mm, not at 8
    assert len(said["snapshots"]) == real_systems.EPOCHS
    assert said["snapshots"] == sorted(said["snapshots"])
    last = sorted((tmp_path / "ours" / "snapshots").glob("*.pt"))[-1]
    found = ours.probabilities(cases[0], last, False)
    assert found.shape == (3, *read_case(cases[0]).images.shape[1:])
    assert 0 <= found.min()
    assert found.max() <= 1
    chain = np.array([[0.6, 0.6, 0.6, 0.4], [0.4, 0.6, 0.6, 0.6], [0.4, 0.4, 0.6, 0.4]])
    chain = chain[:, :, None, None]
    assert real_systems.NnUNet.labels(chain, (1, 1, 1)).ravel().tolist() == [2, 1, 3, 1]


def test_trainings_side_by_side_share_the_cores_equally() -> None:
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(mine) < 2:
        pytest.skip("one core, or none that can be chosen")
    ask = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
    with ThreadPoolExecutor(2, initializer=real_cohort.keep_to_a_share,
                            initargs=(real_cohort.shares_of_cores(2),)) as pool:
        said = [run.stdout.split()
                for run in pool.map(lambda _: subprocess.run(ask, capture_output=True, text=True),
                                    "ab")]
    assert len(said[0]) == len(said[1]) == len(mine) // 2 and not set(said[0]) & set(said[1])
    assert {int(core) for core in said[0] + said[1]} <= mine == os.sched_getaffinity(0)
    with pytest.raises(BratsError, match="--at-once 9999: there are"):
        real_cohort.shares_of_cores(9999)


def test_what_is_left_of_the_budget_is_spread_over_the_parts_that_are_left(tmp_path: Path) -> None:
    clock = real_systems.Clock(tmp_path, 100.0)
    whole = clock.steps(1.0)
    assert whole == pytest.approx(60 * 100 * (1 - real_systems.RESERVE) / real_systems.EPOCHS,
                                  abs=1)
    clock.notes = [0.0] * (real_systems.EPOCHS // 2)
    assert clock.steps(1.0) == pytest.approx(2 * whole, abs=2)
    assert clock.steps(2.0) == pytest.approx(whole, abs=1)
    clock.started -= 99 * 60  # late: as little as there can be
    assert clock.steps(1.0) == 1


def result(system: str, fold: int, value: float, seed: int = 0, learnt: int = 8) -> dict:
    """Scores of two patients that a training did not see: `value`, and a tenth more."""
    patients = {f"P{fold}{n}": {name: {"dice": value + n / 10, "hd95_mm": 4.0, "lesion_dice": 0.5}
                                for name in ("WT", "TC", "ET")} for n in range(2)}
    training = {"minutes": 1.0 + fold, "steps": 10 * (1 + fold),
                **({"steps_on_phantoms": 5} if system == "ours" else {})}
    return {"system": system, "fold": fold, "seed": seed, "minutes": 1, "learnt": learnt,
            "patients": patients, "training": training,
            "curve": [[0.5, 0.1, 0.2, 0.3], [1.0, value, value, value]]}


def test_a_table_compares_the_same_patients_within_a_seed() -> None:
    results = [result("ours", 0, 0.8), result("ours", 1, 0.1), result("nnunet-small", 0, 0.5),
               result("ours", 0, 0.2, seed=1)]
    found = real_tables.scores_by_system(results)
    text = real_tables.patients_table(found) + "\n" + real_tables.means_table(found)
    assert ("| 0 | nnunet-small | 2 | 0.550, 0.550, 0.550 | 0.550 | 0.850, 0.850, 0.850 | +0.300 "
            "(+0.300 to +0.300) | 4.0, 4.0, 4.0 | 0.500, 0.500, 0.500 |") in text
    assert "| 1 | ours | 2 | 0.250, 0.250, 0.250 | 0.250 |" in text
    assert "| all | ours | 2 | 0.550, 0.550, 0.550 | 0.550 |" in text
    assert "| all | nnunet-small" not in text
    assert "| P10 | 0.10, 0.10, 0.10 |  |  |" in text
    assert "| P00 | 0.80, 0.80, 0.80 | 0.50, 0.50, 0.50 | 0.20, 0.20, 0.20 |" in text
    lines = real_tables.trainings(results).splitlines()
    assert lines[2:] == ["| 0 | ours | 1.0 to 2.0 | 5 to 5 | 10 to 20 | 0.200 | 0.450 |",
                         "| 0 | nnunet-small | 1.0 to 1.0 |  | 10 to 10 | 0.200 | 0.500 |",
                         "| 1 | ours | 1.0 to 1.0 | 5 to 5 | 10 to 10 | 0.200 | 0.200 |"]


def test_what_phantoms_are_worth_is_read_off_the_folds_that_all_trainings_share() -> None:
    without = "ours-without-phantoms"
    assert real_tables.by_patients([result("ours", 0, 0.8), result(without, 1, 0.5)]) == ""
    results = [result("ours", 0, 0.8), result("ours", 1, 0.0), result(without, 0, 0.5),
               result(without, 1, 0.0), result("ours", 0, 0.4, learnt=2),
               result(without, 0, 0.1, learnt=2)]
    assert real_tables.by_patients(results).splitlines()[2:] == [
        "| 2 | 0.450, 0.450, 0.450: 0.450 | 0.150, 0.150, 0.150: 0.150 |",
        "| 8 | 0.850, 0.850, 0.850: 0.850 | 0.550, 0.550, 0.550: 0.550 |"]


def test_a_verdict_names_the_goals_that_were_missed() -> None:
    results = [result("ours", 0, 0.8), result("nnunet-small", 0, 0.5),
               result("ours", 0, 0.3, seed=1), result("nnunet-small", 0, 0.5, seed=1)]
    lines = real_tables.verdicts(real_tables.scores_by_system(results)).splitlines()
    assert lines[0] == ("- Seed 0, ours: 0.300 above (0.300 to 0.300), ahead in 2 of 2 patients. "
                        "All goals reached.")
    assert "behind by 0.200 in P00 and 0.200 in P01. Missed: a mean at least 0.03 above" in lines[1]
    assert lines[2].startswith("- All seeds, each patient counted once, ours: 0.050 above")


def test_the_operations_of_a_step_are_counted() -> None:
    found = limit.measure(rounds=1)
    at_the_top = 2 * 2 * 64**3 * 27 * (5 * 8 + 8 * 8 + 16 * 8 + 8 * 8)  # two patches, convolutions
    assert 3 * at_the_top < 1.1 * found["operations"] < 6 * at_the_top  # forward and backward
    assert found["step_s"] > 0 and f"{found['product_s']:.2f} s" in limit.sentence(found)


def test_computed_costs_agree_with_published_ones_and_a_patch_can_be_timed() -> None:
    assert 0 < costs.quarter_seconds((4, 4, 4, 4, 4, 4, 4)) < costs.QUARTER_SECONDS
    slow, fast = costs.relative(costs.V100, costs.GPUS["A100"])
    assert 0.9 * slow < costs.PUBLISHED["V100"] / costs.PUBLISHED["A100"] < 1.1 * fast
