"""Training on all GPUs of a machine from one call: torchrun in the background, its progress, errors and stop in the front."""

from __future__ import annotations

import codecs
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..basics.config import Config
from ..basics.device import Device, describe_device
from ..basics.errors import BratsError, Stopped
from ..basics.files import read_json, stop_button
from .resume import check_shares, newest
from .stages import train_work

RESTARTS = 3                                          # of all processes, after one has died, before training has failed
STOP_SECONDS = 600                                    # that torchrun waits for processes to save: the longest validation


def train_here(config: Config, work: Path, processes: int | None = None,
               on_epoch: Callable[[list[dict]], None] | None = None, device: Device | None = None) -> list[dict]:
    """`train_work` with all that this machine has: in this process, or in several that torchrun starts and looks after.

    processes: None is one for each GPU, or fewer where the batch cannot be shared by so many. Errors, the stop and what
    is returned are those of `train`.
    """
    device = device or describe_device()
    processes = processes or choose_processes(config.batch, torch.cuda.device_count() if device.kind == "cuda" else 1)
    if processes == 1:
        return train_work(config, work, on_epoch, device)
    check_shares(config, processes)
    with tempfile.TemporaryDirectory() as name:
        settings, epochs = Path(name) / "config.json", Path(name) / "history.json"
        config.save(settings)
        arguments = ["train", "--work", str(work), "--config", str(settings), "--history", str(epochs), "--precision",
                     str(device.dtype).removeprefix("torch.")]
        stopped = run_processes(arguments, processes, device.kind == "cuda", Watch(epochs, on_epoch))
        begun = epochs.is_file()                      # else what lies there may be of other settings
    content = newest(work / "checkpoints", device)
    history = content["history"] if content else []
    if stopped and not (begun and history and history[-1]["epoch"] == config.epochs):
        raise Stopped("stopped before the first step; run it again.")
    return history


def for_all_gpus(config: Config, device: Device, processes: int | None = None) -> Config:
    """The settings with a batch that gives each process a patch at least, and as many patches an epoch as before.

    processes: None is one for each GPU. So two T4s train the kaggle preset's single patch as NVIDIA's batch of two.
    """
    processes = processes or (torch.cuda.device_count() if device.kind == "cuda" else 1)
    if config.batch >= processes:
        return config
    print(f"{processes} processes share a batch: {processes} patches instead of {config.batch}, and fewer steps an epoch.")
    return config.with_(batch=processes, steps=max(1, config.steps * config.batch // processes))


def choose_processes(batch: int, gpus: int) -> int:
    """One process for each GPU, or as many as can share the batch equally; says so where GPUs are left idle."""
    chosen = max(n for n in range(1, gpus + 1) if batch % n == 0)
    if chosen < gpus:
        print(f"{chosen} of {gpus} GPUs trains: batch={batch} cannot be shared equally by more. batch={gpus} uses all.")
    return chosen


class Watch:
    """Calls `on_epoch` whenever a file with the history has changed."""

    def __init__(self, path: Path, on_epoch: Callable[[list[dict]], None] | None) -> None:
        self.path, self.on_epoch, self.seen = path, on_epoch, 0

    def __call__(self) -> None:
        """Look at the file once."""
        if self.on_epoch and self.path.is_file() and (changed := self.path.stat().st_mtime_ns) != self.seen:
            self.seen = changed
            self.on_epoch(read_json(self.path, "training"))


def run_processes(arguments: Sequence[str], processes: int, gpus: bool, watch: Callable[[], None]) -> bool:
    """Run `python -m brats_helpers ARGUMENTS` in several processes and show what they print; True where it was stopped.

    `watch` is called a few times a second. The stop button is handed on once. BratsError with what the process that
    failed has said.
    """
    with tempfile.TemporaryDirectory() as notes, stop_button() as stopped:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
                   "--max-restarts", str(RESTARTS), "--log-dir", notes, "-m", "brats_helpers", *arguments]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                                 env=_environment(processes, gpus))
        relay = threading.Thread(target=_relay, args=(child,), daemon=True)
        relay.start()
        told = False
        try:
            while child.poll() is None:
                if stopped() and not told:
                    child.send_signal(signal.SIGINT)
                    told = True
                watch()
                time.sleep(0.2)
        finally:
            child.terminate()                         # does nothing where it has ended
        relay.join(5)
        watch()
        _raise_failure(Path(notes), child.returncode and not told)
        return told


def _environment(processes: int, gpus: bool) -> dict[str, str]:
    """The environment of the processes: this module, their share of the CPU, no GPU where none is wanted."""
    threads = {} if "OMP_NUM_THREADS" in os.environ else {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    ours = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    return {**os.environ, **threads, **ours, **({} if gpus else {"CUDA_VISIBLE_DEVICES": ""}), "PYTHONUNBUFFERED": "1",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(STOP_SECONDS)}


def _relay(child: subprocess.Popen) -> None:
    """Hand what a process prints to this one's stderr, as it comes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while chunk := child.stdout.read1(4096):
        sys.stderr.write(decoder.decode(chunk))
        sys.stderr.flush()


def _raise_failure(notes: Path, failed: bool) -> None:
    """Raise what the processes have noted for torchrun, ours before others; where they noted nothing, say so."""
    written = [path.read_text() for path in notes.rglob("error.json")]
    said = [json.loads(text)["message"]["message"] for text in written if text.endswith("}")]    # not cut off as it was ended
    for kind in (Stopped, BratsError):
        for text in said:
            if text.startswith(f"{kind.__name__}: "):
                raise kind(text.removeprefix(f"{kind.__name__}: "))
    if failed:
        raise BratsError(f"training on several processes failed, {RESTARTS} restarts included: "
                         f"{said[-1] if said else 'a process was killed, perhaps for memory'}. What was trained is kept: "
                         "run it again, with processes=1 if it fails once more.")
