"""What a device can do is read from what it says of itself; no GPU is needed to test that."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import brats_helpers.__main__
from brats_helpers.basics import device
from brats_helpers.basics.config import PRESETS
from brats_helpers.basics.errors import BratsError
from brats_helpers.lessons import session


def pretend(monkeypatch, name: str, capability: tuple[int, int], built_for: list[str]) -> None:
    """A torch that sees this GPU."""
    monkeypatch.delenv(device.PRECISION, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    monkeypatch.setattr(torch.cuda, "get_device_properties",
                        lambda *a: types.SimpleNamespace(total_memory=15 * 2**30))


@pytest.mark.parametrize(("name", "capability", "dtype", "scaler"), [
    ("Tesla T4", (7, 5), torch.float16, True),
    ("Tesla P100-PCIE-16GB", (6, 0), torch.float16, True),
    ("NVIDIA A100", (8, 0), torch.bfloat16, False), ("NVIDIA H200", (9, 0), torch.bfloat16, False)])
def test_precision_follows_the_capability(monkeypatch, name, capability, dtype, scaler) -> None:
    pretend(monkeypatch, name, capability, ["sm_60", "sm_75", "sm_80", "sm_90"])
    found = device.describe_device()
    assert (found.kind, found.name) == ("cuda", name)
    assert (found.dtype, found.loss_scaling) == (dtype, scaler)


def test_a_gpu_that_torch_was_not_built_for_is_named_and_the_cpu_used(monkeypatch) -> None:
    pretend(monkeypatch, "Tesla P100-PCIE-16GB", (6, 0), ["sm_75", "sm_80", "sm_90", "compute_90"])
    with pytest.warns(UserWarning, match="P100.*sm_60.*CPU is used"):
        assert device.describe_device().kind == "cpu"


def test_binaries_run_on_later_minors_and_ptx_on_later_gpus() -> None:
    assert device.supported(8, 6, ["sm_80"]) and not device.supported(8, 0, ["sm_86"])
    assert device.supported(12, 0, ["compute_90"])
    assert not device.supported(7, 0, ["compute_90", "sm_75"])
    assert device.supported(9, 0, ["sm_90a"])


@pytest.mark.parametrize(("capability", "there", "compiles"), [
    ((7, 5), {"gcc", "triton"}, True), ((6, 0), {"gcc", "triton"}, False),
    ((9, 0), {"triton"}, False), ((9, 0), {"cc"}, False)])
def test_a_gpu_compiles_where_triton_knows_it_and_has_a_c_compiler(monkeypatch, capability, there,
                                                                   compiles) -> None:
    pretend(monkeypatch, "GPU", capability, ["sm_60", "sm_75", "sm_90"])
    monkeypatch.setattr(device.shutil, "which", lambda name: name if name in there else None)
    monkeypatch.setattr(device.importlib.util, "find_spec",
                        lambda name: name if name in there else None)
    assert device.describe_device().compiles == compiles
    assert not device.Device("cpu", "test", 1.0, torch.float32).compiles


def test_the_environment_overrides_the_precision_and_a_wrong_name_lists_the_right_ones(
        monkeypatch) -> None:
    for name in device.PRECISIONS:
        monkeypatch.setenv(device.PRECISION, name)
        assert device.describe_device().dtype == getattr(torch, name)
    monkeypatch.setenv(device.PRECISION, "fp32")
    with pytest.raises(BratsError, match="BRATS_PRECISION=fp32.*float32, bfloat16, float16"):
        device.describe_device()


@pytest.mark.parametrize("command", ["run", "sweep", "train"])
def test_the_option_sets_the_precision_for_all_that_the_command_starts(monkeypatch,
                                                                      command) -> None:
    monkeypatch.setenv(device.PRECISION, "bfloat16")  # restored after the test
    seen = []
    monkeypatch.setitem(brats_helpers.__main__.COMMANDS, command,
                        lambda _: seen.append(os.environ[device.PRECISION]) or 0)
    assert brats_helpers.__main__.main([command]) == 0
    assert brats_helpers.__main__.main([command, "--precision", "float32"]) == 0
    assert seen == ["bfloat16", "float32"]


def wait_settings(**environment: str) -> list[str]:
    """What torch's OpenMP says of its waiting threads in a process that imports us, then torch."""
    script = "import sys, brats_helpers; assert 'torch' not in sys.modules; import torch"
    bare = {name: value for name, value in os.environ.items()
            if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          check=True, env=bare | {"OMP_DISPLAY_ENV": "VERBOSE"} | environment)
    return [line.split("=")[1].strip(" '") for line in done.stderr.splitlines()
            if "GOMP_SPINCOUNT" in line]


def test_waiting_threads_do_not_spin_unless_the_user_says_so() -> None:
    ours = wait_settings()
    if not ours:
        pytest.skip("this torch uses another OpenMP than GNU's")
    assert set(ours) == {"300"}
    assert set(wait_settings(OMP_WAIT_POLICY="PASSIVE")) == {"0"}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_is_kept_costs_no_page_faults() -> None:
    script = """import resource, torch
from brats_helpers.basics.device import keep_memory
def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
usual = faults(2**25)
keep_memory()
print(usual, [faults(2**25) for _ in range(4)][-1], faults(2**26))"""
    bare = {k: v for k, v in os.environ.items() if k not in device.MALLOC}
    done = subprocess.run([sys.executable, "-c", script], env=bare, capture_output=True,
                          text=True, check=True)
    usual, kept, large = map(int, done.stdout.split())
    assert usual > 1000 and kept < usual / 100
    assert large > 1000  # the tensors of the full network leave no gaps


def test_budget_says_what_does_not_fit(monkeypatch, tmp_path: Path) -> None:
    kaggle = session.disk_budget(PRESETS["kaggle"], 1251, tmp_path / "not yet there")
    assert 8 < kaggle["prepared_gb"] < 11  # 1,251 patients are inside Kaggle's 20 GB
    monkeypatch.setattr(device.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1e9))
    assert not session.disk_budget(PRESETS["kaggle"], 1251, tmp_path)["fits"]
    assert session.disk_budget(PRESETS["quick"], 40, tmp_path)["fits"]
    assert session.disk_budget(PRESETS["full"], 8, tmp_path, unpack=False)["raw_gb"] == 0


def test_versions_name_every_package() -> None:
    assert session.package_versions()["torch"].startswith("2.")
