"""The benchmarks' own machinery, at tiny sizes: what is timed must be right, and the GPU's part must be ready."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from benchmarks import costs, gpu
from benchmarks.report import table
from benchmarks.timing import Result, race
from brats_helpers.device import Device

CPU = Device("cpu", "test", 1.0, torch.float32)


def test_a_race_counts_every_way_and_ratios_are_the_peers_over_ours() -> None:
    calls = []
    ours, peers = race(lambda: calls.append("a"), {"peer": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4 and ours > 0 and peers["peer"] > 0
    result = Result("item", 2.0, {"peer": 6.0}, "yes", goals={"peer": 2.5})
    assert result.as_dict()["ratio"] == {"peer": 3.0}
    assert "| item | peer | 6 ms | 2 ms | 3.00 | 2.5 |" in table([result], {"processor": "x"})


def test_the_gpus_part_runs_on_a_cpu_and_both_networks_learn_alike() -> None:
    found = gpu.measure(CPU, (4, 6, 8, 8), 16, 8.0, 1, 0)
    assert {row["network"] for row in found["throughput"]} == {"ours", "ours, checkpointing", "DynUNet", "PlainConvUNet"}
    assert all(row["steps_per_second"] > 0 for row in found["throughput"])
    assert found["loss_curves"]["first_gap"] < 1e-4 and found["loss_curves"]["mean_gap_last_tenth"] < 1e-2
    assert found["inference_8_flips"]["seconds"] > 0 and all(math.isfinite(v) for v in found["training"].values())


def test_the_readmes_costs_are_what_is_computed_and_the_method_holds_where_it_can_be_tested() -> None:
    assert costs.table() in (Path(__file__).parent.parent / "README.md").read_text()
    slow, fast = costs.relative(costs.V100)
    assert 0.9 * slow < costs.PUBLISHED["V100"] / costs.PUBLISHED["A100"] < 1.1 * fast
