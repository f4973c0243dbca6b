"""The benchmarks' own machinery, at tiny sizes: what is timed must be right, and the GPU's part must be ready."""

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

from benchmarks import costs, gpu, real_cohort, real_systems
from benchmarks.report import table
from benchmarks.timing import Result, race
from brats_helpers.basics.config import Config
from brats_helpers.basics.device import Device
from brats_helpers.basics.errors import BratsError
from brats_helpers.data.cases import Case, find_cases, read_case
from brats_helpers.evaluation.metrics import bootstrap_ci, regions
from brats_helpers.evaluation.postprocessing import postprocess
from brats_helpers.phantoms.patient import make_patient

CPU = Device("cpu", "test", 1.0, torch.float32)


def as_stored(labels: np.ndarray) -> np.ndarray:
    """Labels 0 to 3 as BraTS stores them."""
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
    assert found["loss_curves"]["first_gap"] < 1e-4 and found["loss_curves"]["mean_gap_last_tenth"] < 1e-2
    assert all(row["fits"] and row["steps_per_second"] > 0 for row in found["t4"].values())
    assert len(found["inference_seconds"]) == 3 and all(v > 0 for v in found["inference_seconds"].values())
    assert all(0 < found["training"][name] < math.inf for name in ("from disk", "from memory"))
    again = gpu.measure(CPU, (4, 6, 8, 8), 16, 8.0, 1, 0, path, ["loss_curves"])
    assert str(again) == str(json.loads(path.read_text())) and str(again["throughput"]) == str(found["throughput"])
    assert "| ours | float32 | 2 |" in gpu.table(again)


def test_the_page_on_gpus_says_what_was_measured() -> None:
    folder = Path(gpu.__file__).parent
    found = json.loads((folder / "gpu_nvidia_h200.json").read_text())
    assert gpu.table(found) == (folder / "gpu_nvidia_h200.md").read_text()
    rows = {(r["network"], r["dtype"], r["batch"]): r for r in found["throughput"]}
    plans = [(dtype, batch) for dtype in ("float16", "bfloat16") for batch in (1, 2)]
    times, share = ([rows["ours", *plan][what] / rows["DynUNet", *plan][what] for plan in plans]
                    for what in ("steps_per_second", "peak_gib"))
    page = (folder / "README.md").read_text().partition("## On a GPU")[2].partition("\n## ")[0]
    assert "| {:.2f} and {:.2f} in fp16 (batch 1 and 2), {:.2f} and {:.2f} in bf16 |".format(*times) in page
    assert f"| {min(share):.2f} to {max(share):.2f} |" in page
    assert f"| {found['t4']['compiled']['peak_gib']:.1f} GiB, under a cap" in page
    disk, memory, flips = (*(found["training"][f"from {name}"] for name in ("disk", "memory")),
                           found["inference_seconds"]["8 flips"])
    for reached, measured in ((disk > 0.98 * memory, f"{disk:.1f} steps a second from disk, {memory:.1f} from memory"),
                              (flips <= gpu.NVIDIA_SECONDS / 5, f"{flips:.3f} s")):
        assert f"| {measured} |" in page if reached else f"| **{measured}: not reached** |" in page
    assert f"{found['loss_curves']['mean_gap_last_tenth']:.2g} apart in the last tenth, at a loss of" in page


class Knowing:
    """A system that gives the reference of the coarse patient as its probabilities."""

    labels = staticmethod(postprocess)

    def probabilities(self, case: Case, snapshot: Path, views: bool) -> np.ndarray:
        return regions(read_case(case).reference).astype(np.float32)


def test_a_coarse_patient_is_scored_on_the_grid_that_he_came_from(tmp_path: Path) -> None:
    patient = make_patient(0, 3, 2.0)                 # as if it were the fine one: 119 columns become 60, 78 slices 39
    write_case(tmp_path, "P", patient.images[:, :119], as_stored(patient.reference[:119]), patient.affine)
    case = find_cases(tmp_path / "P")[0]
    coarse = real_cohort.coarse_case(case, tmp_path / "coarse", 4.0)
    small = read_case(coarse)
    assert small.images.shape == (4, 60, 60, 39) and np.allclose(small.spacing, 4)
    corner = small.affine @ [-0.5, -0.5, -0.5, 1]     # the outer corner stays where it was
    assert np.allclose(corner, patient.affine @ [-0.5, -0.5, -0.5, 1])
    rows = real_cohort.scores(Knowing(), case, coarse, tmp_path)
    assert all(row["dice"] > 0.85 and row["lesion_dice"] > 0.8 for row in rows.values())
    assert rows["WT"]["dice"] == real_cohort.scores(Knowing(), case, coarse, tmp_path, False)["WT"]
    assert real_cohort.coarse_case(case, tmp_path / "same", 2.0) == case


def test_ours_learns_from_phantoms_and_patients_and_nnunets_labels_are_its_own(tmp_path: Path) -> None:
    for index in range(4):
        patient = make_patient(0, index, 8.0)
        write_case(tmp_path / "raw", f"P{index}", patient.images, as_stored(patient.reference), patient.affine)
    cases = find_cases(tmp_path / "raw")
    config = Config(preset="quick", filters=(4, 6, 8), patch=16, warmup=2, spacing_mm=8.0)
    ours = real_systems.Ours(tmp_path / "ours", config)
    ours.train(cases, 0.1, 0)
    said = real_systems.read_training(tmp_path / "ours")
    assert said["steps"] and said["steps_on_phantoms"] and said["phantoms"] == real_systems.LEAST_PHANTOMS
    assert len(said["snapshots"]) == real_systems.EPOCHS and said["snapshots"] == sorted(said["snapshots"])
    last = sorted((tmp_path / "ours" / "snapshots").glob("*.pt"))[-1]
    found = ours.probabilities(cases[0], last, False)
    assert found.shape == (3, *read_case(cases[0]).images.shape[1:]) and 0 <= found.min() and found.max() <= 1
    chain = np.array([[0.6, 0.6, 0.6, 0.4], [0.4, 0.6, 0.6, 0.6], [0.4, 0.4, 0.6, 0.4]])[:, :, None, None]
    assert real_systems.NnUNet.labels(chain, (1, 1, 1)).ravel().tolist() == [2, 1, 3, 1]


def test_trainings_side_by_side_share_the_cores_equally() -> None:
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(mine) < 2:
        pytest.skip("one core, or none that can be chosen")
    ask = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
    with ThreadPoolExecutor(2, initializer=real_cohort.keep_to_a_share, initargs=(real_cohort.shares_of_cores(2),)) as pool:
        said = [run.stdout.split() for run in pool.map(lambda _: subprocess.run(ask, capture_output=True, text=True), "ab")]
    assert len(said[0]) == len(said[1]) == len(mine) // 2 and not set(said[0]) & set(said[1])
    assert {int(core) for core in said[0] + said[1]} <= mine == os.sched_getaffinity(0)
    with pytest.raises(BratsError, match="--at-once 9999: there are"):
        real_cohort.shares_of_cores(9999)


def test_what_is_left_of_the_budget_is_spread_over_the_parts_that_are_left(tmp_path: Path) -> None:
    clock = real_systems.Clock(tmp_path, 100.0)
    whole = clock.steps(1.0)
    assert whole == pytest.approx(60 * 100 * (1 - real_systems.RESERVE) / real_systems.EPOCHS, abs=1)
    clock.notes = [0.0] * (real_systems.EPOCHS // 2)
    assert clock.steps(1.0) == pytest.approx(2 * whole, abs=2) and clock.steps(2.0) == pytest.approx(whole, abs=1)
    clock.started -= 99 * 60                          # late: as little as there can be
    assert clock.steps(1.0) == 1


def result(system: str, fold: int, value: float, seed: int = 0, learnt: int = 8) -> dict:
    """Scores of two patients that a training did not see: `value`, and a tenth more."""
    patients = {f"P{fold}{n}": {name: {"dice": value + n / 10, "hd95_mm": 4.0, "lesion_dice": 0.5}
                                for name in ("WT", "TC", "ET")} for n in range(2)}
    training = {"minutes": 1.0 + fold, "steps": 10 * (1 + fold), **({"steps_on_phantoms": 5} if system == "ours" else {})}
    return {"system": system, "fold": fold, "seed": seed, "minutes": 1, "learnt": learnt, "patients": patients,
            "training": training, "curve": [[0.5, 0.1, 0.2, 0.3], [1.0, value, value, value]]}


def test_a_table_compares_the_same_patients_within_a_seed() -> None:
    results = [result("ours", 0, 0.8), result("ours", 1, 0.1), result("nnunet-small", 0, 0.5), result("ours", 0, 0.2, seed=1)]
    text = real_cohort.table(results)
    assert ("| 0 | nnunet-small | 2 | 0.550, 0.550, 0.550 | 0.550 | 0.850, 0.850, 0.850 | +0.300 (+0.300 to +0.300) "
            "| 4.0, 4.0, 4.0 | 0.500, 0.500, 0.500 |") in text
    assert "| 1 | ours | 2 | 0.250, 0.250, 0.250 | 0.250 |" in text
    assert "| all | ours | 2 | 0.550, 0.550, 0.550 | 0.550 |" in text and "| all | nnunet-small" not in text
    assert "| P10 | 0.10, 0.10, 0.10 |  |  |" in text
    assert "| P00 | 0.80, 0.80, 0.80 | 0.50, 0.50, 0.50 | 0.20, 0.20, 0.20 |" in text
    lines = real_cohort.trainings(results).splitlines()
    assert lines[2:] == ["| 0 | ours | 1.0 to 2.0 | 5 to 5 | 10 to 20 | 0.200 | 0.450 |",
                         "| 0 | nnunet-small | 1.0 to 1.0 |  | 10 to 10 | 0.200 | 0.500 |",
                         "| 1 | ours | 1.0 to 1.0 | 5 to 5 | 10 to 10 | 0.200 | 0.200 |"]


def test_what_phantoms_are_worth_is_read_off_the_folds_that_all_trainings_share() -> None:
    without = "ours-without-phantoms"
    assert real_cohort.by_patients([result("ours", 0, 0.8), result(without, 1, 0.5)]) == ""
    results = [result("ours", 0, 0.8), result("ours", 1, 0.0), result(without, 0, 0.5), result(without, 1, 0.0),
               result("ours", 0, 0.4, learnt=2), result(without, 0, 0.1, learnt=2)]
    assert real_cohort.by_patients(results).splitlines()[2:] == [
        "| 2 | 0.450, 0.450, 0.450: 0.450 | 0.150, 0.150, 0.150: 0.150 |",
        "| 8 | 0.850, 0.850, 0.850: 0.850 | 0.550, 0.550, 0.550: 0.550 |"]


class Stored:
    """What is stored of the trainings on ten patients, by the present rules and by earlier ones, and the page about it."""

    def __init__(self) -> None:
        folder = Path(real_cohort.__file__).parent
        self.results, self.earlier = (json.loads((folder / f"{name}.json").read_text())["results"]
                                      for name in ("real_cohort", "real_cohort_earlier"))
        self.now = [r for r in self.results if r["learnt"] == 8]
        self.page = (folder / "real_cohort.md").read_text()
        self.results_page = " ".join((folder.parent / "docs" / "results.md").read_text().split())
        self.dices = {(r["system"], r["seed"], name): np.array([row[region]["dice"] for region in ("WT", "TC", "ET")])
                      for r in (*self.now, *self.earlier) for name, row in r["patients"].items()}
        self.names = sorted({key[2] for key in self.dices})

    def of(self, system: str, seed: int) -> np.ndarray:
        """Dice of each patient, (10, 3)."""
        return np.array([self.dices[system, seed, name] for name in self.names])

    def gains(self, *seeds: int, system: str = "ours") -> np.ndarray:
        """How far a system is above nnunet-small in each patient, a mean over seeds, (10, 3)."""
        return np.mean([self.of(system, seed) - self.of("nnunet-small", seed) for seed in seeds], axis=0)


def test_the_page_of_real_patients_says_what_the_stored_scores_say_and_what_they_do_not_reach() -> None:
    stored = Stored()
    prose = " ".join(stored.page.split())
    for part in (stored.now, stored.earlier):
        assert real_cohort.table(part) in stored.page and real_cohort.trainings(part) in stored.page
    assert real_cohort.by_patients(stored.results) in stored.page
    spans = {}
    for seed in (0, 1, 2, 3):
        gains = stored.gains(seed)
        gain, *spans[seed] = bootstrap_ci(gains.mean(1))
        said = f"{gain:.3f} above ({spans[seed][0]:.3f} to {spans[seed][1]:.3f})"
        assert gain >= 0.03 and gains.mean(0).min() >= -0.01 and said in prose
        reached = "reaches all three" if spans[seed][0] > 0 else "does not reach the second"
        assert f"Seed {seed} {reached}" in prose
        assert all(f"behind by {-value:.3f}" in prose for value in gains.mean(1) if value < 0)
    above = [stored.gains(seed).mean() for seed in (2, 3)]
    assert "by {:.3f} with one seed and {:.3f} with the other".format(*above) in stored.results_page
    assert "{:.3f} to {:.3f} and {:.3f} to {:.3f}".format(*spans[2], *spans[3]) in stored.results_page
    assert min(stored.gains(seed).mean(1).min() for seed in (2, 3)) > 0 and "ahead in each of the ten patients" in prose
    gain, low, high = bootstrap_ci(stored.gains(2, 3).mean(1))
    assert f"it is {gain:.3f} above ({low:.3f} to {high:.3f})" in prose


def test_the_page_compares_seeds_and_earlier_rules_as_the_stored_scores_do() -> None:
    stored = Stored()
    prose = " ".join(stored.page.split())
    theirs = [stored.of("nnunet-small", seed).mean() for seed in range(4)]
    assert "{2:.3f} and {3:.3f} here, {0:.3f} and {1:.3f} before".format(*theirs) in prose
    assert f"ours would be by {stored.of('ours', 2).mean() - max(theirs):.3f} with seed 2" in prose
    wt = [stored.of("ours", seed)[:, 0] for seed in range(4)]
    lost, won = (wt[0] + wt[1]) / 2 - wt[2], wt[3] - (wt[0] + wt[1]) / 2
    assert f"WT with seed 2 is {lost.mean():.3f} lower" in prose and lost[stored.names.index("BraTS2021_00014")] > lost.sum()
    assert f"WT is {won.mean():.3f} higher than that mean" in prose
    missed = stored.names.index("BraTS2021_00012")
    assert max(stored.of(system, seed)[missed, 2] for system in ("ours", "nnunet-small") for seed in range(4)) < 0.03
    earlier, kept = stored.gains(0, 1).mean(1), stored.gains(1, system="ours-a-third-kept").mean(1)
    gain, low, high = bootstrap_ci(earlier)
    assert low > 0 and f"{gain:.3f} above ({low:.3f} to {high:.3f})" in prose
    assert f"ahead in {np.sum(earlier > 0)} of {len(earlier)} patients" in prose
    gain, low, high = bootstrap_ci(kept)
    assert f"{gain:.3f} above nnU-Net ({low:.3f} to {high:.3f})" in prose
    gain, low, high = bootstrap_ci((stored.gains(0).mean(1) + kept) / 2)
    assert f"{gain:.3f} above ({low:.3f} to {high:.3f})" in prose
    assert all(f"behind by {-gain:.3f}" in prose for gain in (*earlier, *kept) if gain < 0)


def test_the_results_and_the_page_say_of_few_patients_what_is_stored() -> None:
    stored = Stored()
    page = " ".join(stored.page.split())
    for system in ("ours", "nnunet-small"):
        wt, tc, et = (stored.of(system, 2) + stored.of(system, 3)).mean(0) / 2
        assert f"| {wt:.3f} | {tc:.3f} | {et:.3f} |" in stored.results_page
    patients = {(r["system"], r["learnt"]): np.array([[r["patients"][name][region]["dice"] for region in ("WT", "TC", "ET")]
                                                      for name in ("BraTS2021_00006", "BraTS2021_00008")])
                for r in stored.results if r["fold"] == 0 and r["seed"] == 2}
    gains = {n: patients["ours", n] - patients["ours-without-phantoms", n] for n in (2, 4)}
    assert "all of it in WT; with four" in page and gains[2].mean(0)[0] > 0 > gains[2].mean(0)[1:].max()
    assert "all of it in 00008" in page and gains[4].mean(1)[1] > 0 > gains[4].mean(1)[0]
    first = {key: dices.mean() for key, dices in patients.items()}
    assert "have served as well as eight here" in page and abs(first["ours", 2] - first["ours", 8]) < 0.005
    two, four, eight = (first["ours", n] - first["ours-without-phantoms", n] for n in (2, 4, 8))
    assert f"phantoms are worth {two:.3f}" in page and f"eight little ({eight:.3f})" in page
    assert f"with four {four:.3f}" in page and f"worth {two:.3f} and {four:.3f}" in stored.results_page
    alone, other = first["ours-without-phantoms", 8], first["nnunet-small", 8]
    assert f"{alone:.3f} where nnunet-small has {other:.3f}" in page and eight < (alone - other) / 2


def test_the_pages_costs_are_what_is_computed_and_the_method_holds_where_it_can_be_tested() -> None:
    assert costs.table() in (Path(__file__).parent.parent / "docs" / "costs.md").read_text()
    notebook = (Path(__file__).parent.parent / "notebooks" / "04_architecture.ipynb").read_text()
    assert f'"{costs.QUARTER_SECONDS} s, forward and backward' in notebook
    slow, fast = costs.relative(costs.V100, costs.GPUS["A100"])
    assert 0.9 * slow < costs.PUBLISHED["V100"] / costs.PUBLISHED["A100"] < 1.1 * fast
