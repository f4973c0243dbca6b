"""`python -m benchmarks.gpu`: the full network on a GPU beside MONAI's DynUNet and nnU-Net's PlainConvUNet.

Steps a second and peak memory at batch 1 and 2, in fp16 and bf16; whether batch 1 fits into a T4's 14 GiB; 200 steps of
both networks from the same weights on the same data; inference with 8 flips; and whether the loader keeps up.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from brats_helpers import inference, losses, training
from brats_helpers.config import PRESETS, Config
from brats_helpers.device import Device, describe_device
from brats_helpers.files import write_json
from brats_helpers.loaders import PatchDataset, batches
from brats_helpers.phantom import make_patient
from brats_helpers.preprocessing import prepare, save
from brats_helpers.unet import UNet

from . import peers

T4_GIB = 14.0
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def networks(filters: Sequence[int]) -> dict[str, Callable[[], torch.nn.Module]]:
    """What is compared, by name; ours once more with recomputed activations."""
    return {"ours": lambda: UNet(filters), "ours, checkpointing": lambda: UNet(filters, checkpointing=True),
            "DynUNet": lambda: peers.dynunet(filters), "PlainConvUNet": lambda: peers.plain_conv_unet(filters)}


def main_loss(outputs: object, target: torch.Tensor) -> torch.Tensor:
    """The loss of the full-resolution head alone, which is the same number for the same weights in every network."""
    return losses.region_loss(outputs[:, 0] if isinstance(outputs, torch.Tensor) else outputs[0], target)


def supervised_loss(outputs: object, target: torch.Tensor) -> torch.Tensor:
    """With deep supervision: on a list of resolutions, or on DynUNet's stack of them at full resolution."""
    if isinstance(outputs, torch.Tensor):             # (B, heads, 3, D, H, W)
        heads = outputs.unbind(1)
        weights = [0.5**i for i in range(len(heads))]
        return sum(w * losses.region_loss(h, target) for w, h in zip(weights, heads, strict=True)) / sum(weights)
    return losses.deep_supervision_loss(outputs, target)


def stream(device: Device, batch: int, patch: int, seed: int = 0):
    """Endless batches, the same for the same seed: noise, and as target what is brighter than 1 in it, smoothed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(batch, 5, patch, patch, patch, generator=generator)
        smooth = torch.nn.functional.avg_pool3d(x[:, :3], 5, 1, 2)
        yield x.to(device.torch_device), (smooth > 0.1).float().to(device.torch_device)


def train_steps(model: torch.nn.Module, device: Device, batch: int, patch: int, steps: int, fixed: bool = True,
                loss_of: Loss = supervised_loss) -> dict:
    """Train for some steps; steps a second (after 3 that do not count), peak memory in GiB, the losses."""
    model = model.to(device.torch_device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    scaler = torch.amp.GradScaler(device.kind, enabled=device.scaler)
    source, seen = stream(device, batch, patch), []
    first = next(source)
    for step in range(steps + 3):
        if step == 3:
            _wait(device, reset=True)
            begin = time.perf_counter()
        x, target = first if fixed else next(source)
        with device.autocast():
            outputs = model(x)
        loss = loss_of(outputs, target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        seen.append(loss.detach())
    _wait(device)
    seconds = time.perf_counter() - begin
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.kind == "cuda" else float("nan")
    return {"steps_per_second": steps / seconds, "peak_gib": peak, "losses": torch.stack(seen).float().tolist()}


def _wait(device: Device, reset: bool = False) -> None:
    if device.kind == "cuda":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()


def throughput(device: Device, filters: Sequence[int], patch: int, steps: int) -> list[dict]:
    """A row for each network, precision and batch; one that does not fit says so."""
    rows = []
    dtypes = (torch.float16, torch.bfloat16) if device.kind == "cuda" else (device.dtype,)
    plans = [(n, make, t, b) for n, make in networks(filters).items() for t in dtypes for b in (1, 2)]
    for name, make, dtype, batch in tqdm(plans, desc="throughput"):
        chosen = Device(device.kind, device.name, device.memory_gib, dtype)
        row = {"network": name, "dtype": str(dtype).removeprefix("torch."), "batch": batch}
        try:
            torch.manual_seed(0)
            done = train_steps(make(), chosen, batch, patch, steps)
            rows.append(row | {k: round(done[k], 3) for k in ("steps_per_second", "peak_gib")})
        except torch.cuda.OutOfMemoryError:
            rows.append(row | {"steps_per_second": None, "peak_gib": None})
        if device.kind == "cuda":
            torch.cuda.empty_cache()
    return rows


def fits_a_t4(device: Device, filters: Sequence[int], patch: int) -> dict:
    """Batch 1 in fp16 with checkpointing, under a cap of 14 GiB that the allocator enforces."""
    if device.kind == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, T4_GIB / device.memory_gib))
    half = Device(device.kind, device.name, device.memory_gib, torch.float16 if device.kind == "cuda" else device.dtype)
    rows = {}
    for checkpointing in (False, True):
        try:
            done = train_steps(UNet(filters, checkpointing=checkpointing), half, 1, patch, 3)
            rows["checkpointing" if checkpointing else "plain"] = {"fits": True, "peak_gib": round(done["peak_gib"], 2)}
        except torch.cuda.OutOfMemoryError:
            rows["checkpointing" if checkpointing else "plain"] = {"fits": False}
    if device.kind == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)
    return rows


def loss_curves(device: Device, filters: Sequence[int], patch: int, steps: int) -> dict:
    """The same weights and data in both networks: the losses of every tenth step, and their largest difference."""
    torch.manual_seed(0)
    ours, theirs = UNet(filters), peers.dynunet(filters)
    peers.copy_weights(ours, theirs)
    curves = {name: train_steps(model, device, 1, patch, steps, False, main_loss)["losses"]
              for name, model in (("ours", ours), ("DynUNet", theirs))}
    gap = np.abs(np.subtract(*curves.values()))
    return {name: [round(v, 4) for v in values[::10]] for name, values in curves.items()} | {
        "first_gap": float(gap[0]), "mean_gap_last_tenth": float(gap[-max(1, len(gap) // 10):].mean())}


def infer_seconds(device: Device, filters: Sequence[int], patch: int, spacing_mm: float) -> dict:
    """Seconds for a whole patient with 8 flips, windows overlapping by half, raw scan in memory to labels."""
    patient = make_patient(0, 0, spacing_mm)
    config = Config(filters=tuple(filters), patch=patch, spacing_mm=spacing_mm)
    model, taken = UNet(filters).to(device.torch_device).eval(), []
    for _ in range(3):
        begin = time.perf_counter()
        inference.segment([model], patient, config, True, device)
        taken.append(time.perf_counter() - begin)
    return {"seconds": round(min(taken), 3)}


def loader_share(device: Device, filters: Sequence[int], patch: int, spacing_mm: float, steps: int, workers: int) -> dict:
    """Steps a second when patches come from disk, and with the same patch again and again: equal if nothing waits."""
    config = Config(filters=tuple(filters), patch=patch, batch=2, spacing_mm=spacing_mm, steps=steps, epochs=1, warmup=1)
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"P{i}.b2nd" for i in range(4)]
        for index, path in enumerate(paths):
            save(prepare(make_patient(0, index, spacing_mm), spacing_mm), path)
        dataset = PatchDataset(paths, patch, 0.4, 0)
        for name in ("from disk", "from memory"):
            state = training.new_state(config, device)
            source = batches(dataset, 2, 0, steps + 3, workers)
            first = next(source)
            training.train_step(state, first, config, device)
            _wait(device)
            begin = time.perf_counter()
            for batch in (source if name == "from disk" else [first] * (steps + 2)):
                training.train_step(state, batch, config, device)
            _wait(device)
            rates[name] = round((steps + 2) / (time.perf_counter() - begin), 3)
    return rates


def measure(device: Device, filters: Sequence[int], patch: int, spacing_mm: float, steps: int, workers: int) -> dict:
    """Everything, as one dictionary."""
    return {"device": device.name, "torch": torch.__version__, "filters": list(filters), "patch": patch,
            "throughput": throughput(device, filters, patch, steps), "t4": fits_a_t4(device, filters, patch),
            "loss_curves": loss_curves(device, filters, patch, 10 * steps),
            "inference_8_flips": infer_seconds(device, filters, patch, spacing_mm),
            "training": loader_share(device, filters, patch, spacing_mm, steps, workers)}


def main() -> int:
    """Measure and write gpu_<name>.json; a clear word where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the results")
    out = parser.parse_args().out
    device = describe_device()
    if device.kind != "cuda":
        print(f"No GPU here ({device.name}): nothing was measured.")
        return 0
    torch.backends.cudnn.benchmark = True
    found = measure(device, PRESETS["full"].filters, 128, 1.0, 20, 4)
    path = out / f"gpu_{device.name.lower().replace(' ', '_')}.json"
    write_json(path, found)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
