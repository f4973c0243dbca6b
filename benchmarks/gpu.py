"""Compares the full network on a GPU with MONAI's DynUNet and nnU-Net's PlainConvUNet.

`python -m benchmarks.gpu` measures steps per second and peak memory at batch 1 and 2, in fp16 and
bf16. It trains both networks for 200 steps from the same weights on the same data, and times a
patient with 8 flips. It checks that the kaggle preset fits a T4's 14 GiB and that the loader keeps
up.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from brats_helpers.basics.config import PRESETS, Config
from brats_helpers.basics.device import GIB, Device, describe_device, keep_memory
from brats_helpers.basics.files import atomic_path, read_json, write_json
from brats_helpers.data.cases import Patient
from brats_helpers.data.loaders import PatchDataset, batches
from brats_helpers.data.preprocessing import Prepared, prepare
from brats_helpers.data.storage import save_prepared
from brats_helpers.evaluation import sliding_window
from brats_helpers.evaluation.build import WORTH_COMPILING, compile_for_training, for_inference
from brats_helpers.network import losses
from brats_helpers.network.unet import UNet
from brats_helpers.phantoms.kinds import make_patient
from brats_helpers.training import step as training_step
from brats_helpers.training.state import State, new_state

from . import peers

T4_GIB = 14.0
NVIDIA_SECONDS = 639 / 219  # a patient with 8 flips on an A100: its BraTS21 notebook
PATIENTS = (1, 2, 3)  # phantoms that, as real patients, need eight windows
Loss = Callable[[Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """Describes a row: a network, how to make it, the precision and the batch."""

    name: str
    make: Callable[[], nn.Module]
    dtype: torch.dtype
    batch: int


def ours(filters: Sequence[int], device: Device) -> nn.Module:
    """Return our network, compiled as for a long training."""
    model = UNet(filters).to(device.torch_device)
    compile_for_training(model, device, WORTH_COMPILING)
    return model


def cases(device: Device, filters: Sequence[int]) -> list[Case]:
    """Return three networks in two precisions and at two batches.

    And what compiling changes, for our network and for DynUNet.
    """
    def compiled_peer() -> nn.Module:
        model = peers.dynunet(filters)
        model.compile(dynamic=False)
        return model
    networks = {"ours": lambda: ours(filters, device), "DynUNet": lambda: peers.dynunet(filters),
                "PlainConvUNet": lambda: peers.plain_conv_unet(filters)}
    dtypes = (torch.float16, torch.bfloat16) if device.kind == "cuda" else (device.dtype,)
    lines = [Case(name, make, dtype, batch) for dtype in dtypes for batch in (1, 2)
             for name, make in networks.items()]
    lines.append(Case("ours, not compiled", lambda: UNet(filters), dtypes[0], 1))
    if device.compiles:
        lines.append(Case("DynUNet, compiled", compiled_peer, dtypes[0], 1))
    return lines


def main_loss(outputs: object, target: Tensor) -> Tensor:
    """Return the loss of the full-resolution head, which all networks share."""
    return losses.region_loss(outputs[:, 0] if isinstance(outputs, Tensor) else outputs[0], target)


def supervised_loss(outputs: object, target: Tensor) -> Tensor:
    """Return the loss with deep supervision.

    outputs: a list of resolutions, or DynUNet's stack of its heads at full resolution.
    """
    if isinstance(outputs, Tensor):  # (B, heads, 3, D, H, W)
        heads = outputs.unbind(1)
        weights = [0.5**i for i in range(len(heads))]
        return sum(w * losses.region_loss(h, target)
                   for w, h in zip(weights, heads, strict=True)) / sum(weights)
    return losses.deep_supervision_loss(outputs, target)


def stream(device: Device, batch: int, patch: int,
           seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield noise and, as target, the bright parts of the smoothed noise; the seed decides."""
    generator = torch.Generator(device.torch_device).manual_seed(seed)
    while True:
        x = torch.randn(batch, 5, patch, patch, patch, generator=generator,
                        device=device.torch_device)
        yield x, (torch.nn.functional.avg_pool3d(x[:, :3], 5, 1, 2) > 0.1).float()


def train_steps(model: nn.Module, device: Device, batch: int, patch: int, steps: int,
                fixed: bool = True, loss_of: Loss = supervised_loss) -> dict:
    """Train for some steps, after three that do not count.

    Returns steps a second, peak memory in GiB, and the losses.
    """
    model = model.to(device.torch_device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    scaler = torch.amp.GradScaler(device.kind, enabled=device.loss_scaling)
    source, seen = stream(device, batch, patch), []
    first = next(source)
    for step in range(steps + 3):
        if step == 3:
            begin = _wait(device, reset=True)
        x, target = first if fixed else next(source)
        with device.autocast():
            outputs = model(x)
        loss = loss_of(outputs, target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        seen.append(loss.detach())
    return {"steps_per_second": steps / (_wait(device) - begin), "peak_gib": _peak(device),
            "losses": torch.stack(seen).float().tolist()}


def _wait(device: Device, reset: bool = False) -> float:
    if device.kind == "cuda":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
    return time.perf_counter()


def _peak(device: Device) -> float:
    return torch.cuda.max_memory_allocated() / GIB if device.kind == "cuda" else float("nan")


def _half(device: Device) -> Device:
    return replace(device, dtype=torch.float16) if device.kind == "cuda" else device


def _clear(device: Device) -> None:
    """Forget what the row before compiled and allocated."""
    torch.compiler.reset()
    if device.kind == "cuda":
        torch.cuda.empty_cache()


def throughput(device: Device, filters: Sequence[int], patch: int, steps: int) -> list[dict]:
    """Return a row for each case; one that does not fit has None."""
    rows = []
    for case in tqdm(cases(device, filters), desc="throughput"):
        row = {"network": case.name, "dtype": str(case.dtype).removeprefix("torch."),
               "batch": case.batch}
        begin = time.perf_counter()
        try:
            torch.manual_seed(0)
            done = train_steps(case.make(), replace(device, dtype=case.dtype), case.batch, patch,
                               steps)
            row |= {k: round(done[k], 3) for k in ("steps_per_second", "peak_gib")}
            row["ready_seconds"] = round(time.perf_counter() - begin - steps
                                         / done["steps_per_second"], 1)
        except torch.cuda.OutOfMemoryError:
            row |= {"steps_per_second": None, "peak_gib": None}
        rows.append(row)
        _clear(device)
    return rows


def loss_curves(device: Device, filters: Sequence[int], patch: int, steps: int) -> dict:
    """Train both networks from the same weights on the same data.

    Returns the losses of every tenth step, and how far they are apart.
    """
    torch.manual_seed(0)
    model, theirs = (network.to(device.torch_device)
                     for network in (UNet(filters), peers.dynunet(filters)))
    peers.copy_weights(model, theirs, patch)
    compile_for_training(model, device, WORTH_COMPILING)
    curves, half = {}, _half(device)
    for name, network in (("ours", model), ("DynUNet", theirs)):
        curves[name] = train_steps(network, half, 1, patch, steps, False, main_loss)["losses"]
    gap, last = np.abs(np.subtract(*curves.values())), max(1, len(curves["ours"]) // 10)
    _clear(device)
    return {name: [round(v, 4) for v in values[::10]] for name, values in curves.items()} | {
        "dtype": str(half.dtype).removeprefix("torch."), "first_gap": float(gap[0]),
        "mean_gap_last_tenth": float(gap[-last:].mean())}


def fits_a_t4(device: Device, config: Config, paths: Sequence[Path], steps: int) -> dict:
    """Train with the kaggle preset in fp16, with the allocator limited to 14 GiB."""
    if device.kind == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, T4_GIB / device.memory_gib))
    rows = {}
    for name, long in (("compiled", True), ("not compiled", False)):
        try:
            state = new_state(config.with_(epochs=WORTH_COMPILING if long else 1), _half(device))
            rate = _steps_a_second(state, config, _half(device), paths, steps, 0, False)
            rows[name] = {"fits": True, "peak_gib": round(_peak(device), 2),
                          "steps_per_second": round(rate, 2)}
        except torch.cuda.OutOfMemoryError:
            rows[name] = {"fits": False}
        _clear(device)
    if device.kind == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)
    return rows


def loader_share(device: Device, config: Config, paths: Sequence[Path], steps: int,
                 workers: int) -> dict:
    """Return training steps a second with patches from disk and from memory: equal without waiting.

    Medians of three alternating runs.
    """
    state = new_state(config.with_(epochs=WORTH_COMPILING), device)
    rates = {"from disk": [], "from memory": []}
    for name, found in [*rates.items()] * 3:
        found.append(_steps_a_second(state, config, device, paths, steps, workers,
                                     name == "from disk"))
    _clear(device)
    return {name: round(statistics.median(found), 3) for name, found in rates.items()} | {
        "batch": config.batch, "workers": workers}


def _steps_a_second(state: State, config: Config, device: Device,
                    paths: Sequence[Path], steps: int, workers: int, disk: bool) -> float:
    """Return steps a second with augmentation, after three that do not count."""
    source = batches(PatchDataset(paths, config.patch, config.oversample_foreground, 0),
                     config.batch, 0, steps + 3, workers)
    ahead = training_step.PrefetchedBatches(source if disk else iter(list(source)), config, device)
    for number, batch in enumerate(ahead):
        if number == 3:
            begin = _wait(device, reset=True)
        training_step.train_step(state, batch, config, device, ahead.prepare_next)
    return steps / (_wait(device) - begin)


def infer_seconds(device: Device, config: Config, patients: Sequence[Patient]) -> dict:
    """Return seconds a patient, windows overlapping by half: medians of each patient's second run.

    From a prepared patient to probabilities on the scan's grid, with 8 flips and with few views;
    and from the scan in memory.
    """
    model = for_inference(UNet(config.filters).to(device.torch_device), device, WORTH_COMPILING)
    taken: dict[str, list[float]] = {
        "8 flips": [], f"{len(sliding_window.OPPOSITE_FLIPS)} views": [],
        "8 flips, from the scan": []}
    for patient in tqdm(patients, desc="inference"):
        prepared = prepare(patient, config.spacing_mm)

        def probabilities(ready: Prepared, tta: bool) -> np.ndarray:
            return sliding_window.predict_prepared([model], ready, config.patch, config.overlap,
                                                   tta, device)

        ways = (lambda p=prepared: probabilities(p, True),
                lambda p=prepared: probabilities(p, False),
                lambda p=patient: probabilities(prepare(p, config.spacing_mm), True))
        for times, way in zip(taken.values(), ways, strict=True):
            way()
            begin = _wait(device)
            way()
            times.append(_wait(device) - begin)
    return {name: round(statistics.median(times), 3) for name, times in taken.items()}


def parts(device: Device, filters: Sequence[int], patch: int, spacing_mm: float, steps: int,
          workers: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the measurements by name; prepares phantoms in `folder`."""
    patients = [make_patient(0, number, spacing_mm) for number in PATIENTS]
    paths = [folder / f"{patient.name}.b2nd" for patient in patients]
    for patient, path in zip(patients, paths, strict=True):
        save_prepared(prepare(patient, spacing_mm), path)
    kaggle, full = (PRESETS[name].with_(filters=tuple(filters), patch=patch, spacing_mm=spacing_mm)
                    for name in ("kaggle", "full"))
    return {"inference_seconds": lambda: infer_seconds(device, full, patients),
            "training": lambda: loader_share(device, full, paths, 2 * steps, workers),
            "t4": lambda: fits_a_t4(device, kaggle, paths, steps),
            "loss_curves": lambda: loss_curves(device, filters, patch, 10 * steps),
            "throughput": lambda: throughput(device, filters, patch, steps)}


def measure(device: Device, filters: Sequence[int], patch: int, spacing_mm: float, steps: int,
            workers: int, path: Path, only: Sequence[str] = ()) -> dict:
    """Run all measurements, or some and take the others from `path`; writes `path` after each."""
    found = read_json(path, "python -m benchmarks.gpu, all of it") if only else {}
    found |= {"device": device.name, "torch": torch.__version__, "filters": list(filters),
              "patch": patch}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts(device, filters, patch, spacing_mm, steps, workers,
                                Path(folder)).items():
            if not only or name in only:
                found[name] = part()
                write_json(path, found)
    return found


def table(found: dict) -> str:
    """Return Markdown with throughput and memory relative to DynUNet's, then the rest."""
    rows = found["throughput"]
    peer = {(r["dtype"], r["batch"]): r for r in rows if r["network"] == "DynUNet"}
    lines = [f"{found['device']}, torch {found['torch']}, patches of {found['patch']}³", "",
             "| network | precision | batch | steps a second | in DynUNet's | peak GiB | in "
             "DynUNet's | ready after, s |", "|---|---|--:|--:|--:|--:|--:|--:|"]
    for r in rows:
        start = f"| {r['network']} | {r['dtype']} | {r['batch']} |"
        rate, peak, base = r["steps_per_second"], r["peak_gib"], peer[r["dtype"], r["batch"]]
        lines.append(f"{start} does not fit | | | | |" if rate is None else
                     f"{start} {rate:.1f} | {rate / base['steps_per_second']:.2f} | {peak:.2f} | "
                     f"{peak / base['peak_gib']:.2f} | {r['ready_seconds']:.0f} |")
    return "\n".join([*lines, "", *_findings(found), ""])


def _findings(found: dict) -> list[str]:
    curves, loader, seconds = found["loss_curves"], found["training"], found["inference_seconds"]
    fits = [f"{name}: {row['peak_gib']:.1f} GiB, {row['steps_per_second']:.1f} steps a second"
            if row["fits"] else f"{name}: does not fit" for name, row in found["t4"].items()]
    few, flips, views = flips_and_views(seconds)
    return [
        f"- Equal learning: from the same weights on the same data ({curves['dtype']}), the first "
        f"loss differs by {curves['first_gap']:.1g} and the last tenth of the steps by "
        f"{curves['mean_gap_last_tenth']:.2g} on average, at a loss of {curves['ours'][-1]:.3f}.",
        f"- The kaggle preset (batch 1, fp16) with a limit of {T4_GIB:.0f} GiB: {'; '.join(fits)}.",
        f"- The loader, {loader['workers']} processes, batch {loader['batch']}: "
        f"{loader['from disk']:.1f} steps a second from disk, {loader['from memory']:.1f} with the "
        "same patches in memory; both include augmentation.",
        "- A patient, from the prepared file to probabilities: "
        f"{flips:.2f} s with 8 flips, {views:.2f} s with {few} views; from the scan in memory "
        f"{seconds['8 flips, from the scan']:.2f} s with 8 flips. NVIDIA's notebook, on an A100: "
        f"{NVIDIA_SECONDS:.1f} s with 8 flips, {NVIDIA_SECONDS / flips:.1f} times as long."]


def flips_and_views(seconds: dict) -> tuple[int, float, float]:
    """Return how many views a quick prediction took, and the seconds with 8 flips and with these.

    They were 4 when the stored figures were measured.
    """
    name = next(name for name in seconds if name.endswith(" views"))
    return int(name.split()[0]), seconds["8 flips"], seconds[name]


def goals(found: dict) -> str:
    """Return Markdown with the goals and the results; bold for one that was not reached."""
    rows = {(r["network"], r["dtype"], r["batch"]): r for r in found["throughput"]}
    plans = [(dtype, batch) for dtype in ("float16", "bfloat16") for batch in (1, 2)]
    speed, memory = ([rows["ours", *plan][what] / rows["DynUNet", *plan][what] for plan in plans]
                     for what in ("steps_per_second", "peak_gib"))
    curves, seconds = found["loss_curves"], found["inference_seconds"]["8 flips"]
    disk, cached = (found["training"][f"from {name}"] for name in ("disk", "memory"))
    gap, peak = curves["mean_gap_last_tenth"], found["t4"]["compiled"]["peak_gib"]
    return "\n".join(["| goal | measured |", "|---|---|"] + [
        f"| {goal} | {text if reached else f'**{text}: not reached**'} |"
        for goal, text, reached in (
            ("1.3 times DynUNet's steps a second",
             "{:.2f} and {:.2f} in fp16 (batch 1 and 2), {:.2f} and {:.2f} in bf16".format(*speed),
             min(speed) >= 1.3),
            ("equal losses", f"200 steps from the same weights: {gap:.2g} apart in the last tenth, "
             f"at a loss of {curves['ours'][-1]:.2f}", gap < 0.01),
            ("0.8 of DynUNet's peak memory", f"{min(memory):.2f} to {max(memory):.2f}",
             max(memory) <= 0.8),
            ("batch 1 in a T4's 14 GiB", f"{peak:.1f} GiB, with the limit set in the allocator",
             peak <= T4_GIB),
            ("no wait for the loader, four processes",
             f"{disk:.1f} steps a second from disk, {cached:.1f} from memory",
             disk > 0.98 * cached),
            (f"a patient with 8 flips in a fifth of NVIDIA's {NVIDIA_SECONDS:.1f} s, "
             f"{NVIDIA_SECONDS / 5:.3f} s", f"{seconds:.3f} s", seconds <= NVIDIA_SECONDS / 5))])


def main() -> int:
    """Measure and write gpu_<name>.json and .md; without a GPU, say so."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent,
                        help="folder for the results")
    parser.add_argument("--only", nargs="+", default=(), metavar="PART",
                        help="inference_seconds, training, t4, loss_curves "
                        "or throughput; what else the file has stays as it is")
    arguments = parser.parse_args()
    keep_memory()  # for everybody, as in `make bench`
    device = describe_device()
    if device.kind != "cuda":
        print(f"No GPU here ({device.name}): nothing was measured.")
        return 0
    torch.backends.cudnn.benchmark = True
    path = arguments.out / f"gpu_{device.name.lower().replace(' ', '_')}.json"
    found = measure(device, PRESETS["full"].filters, 128, 1.0, 20, 4, path, arguments.only)
    with atomic_path(path.with_suffix(".md")) as temporary:
        temporary.write_text(table(found), encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
