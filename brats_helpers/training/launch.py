"""Training on all GPUs of a machine from one call.

torchrun runs in the background; its progress, errors and stop appear in the calling process. If the
processes do not connect, or one is lost for good, this process trains alone.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import shorten

import psutil
import torch

from ..basics.config import Config
from ..basics.device import Device, describe_device
from ..basics.errors import BratsError, Stopped, stop_button
from ..basics.files import read_json
from .distributed import STARTED
from .loop import HISTORY
from .resume import check_shares
from .work_folder import checkpoint_folder, train_work

RESTARTS = 3  # of all processes after one has died, before one process trains alone
START_SECONDS = 180  # until all processes have exchanged their first numbers
STOP_SECONDS = 600  # that torchrun waits for processes to save: the longest validation


class GroupFailed(Exception):
    """A failure of several processes, which did not start, hung at the start, or died too often."""


def train_here(config: Config, work: Path, processes: int | None = None,
               on_epoch: Callable[[list[dict]], None] | None = None,
               device: Device | None = None) -> list[dict]:
    """Call `train_work` in this process, or in several that torchrun starts, one for each GPU.

    By default there is one process per GPU, or fewer if they cannot share the batch equally. If
    they fail as a group, this process trains alone, from their last checkpoint. Errors, the stop
    and the result are those of `train`.
    """
    device = device or describe_device()
    gpus = torch.cuda.device_count() if device.kind == "cuda" else 1
    processes = processes or choose_processes(config.batch, gpus)
    if processes > 1:
        check_shares(config, processes)
        try:
            return _train_together(config, work, processes, on_epoch, device)
        except GroupFailed as failure:
            print(f"{processes} processes could not train together ({failure}), so one trains "
                  "alone, from the last checkpoint if there is one.")
    return train_work(config, work, on_epoch, device)


def _train_together(config: Config, work: Path, processes: int,
                    on_epoch: Callable[[list[dict]], None] | None, device: Device) -> list[dict]:
    """Train in several processes that torchrun starts; raises GroupFailed if they fail."""
    watch = HistoryWatch(checkpoint_folder(work) / HISTORY, on_epoch)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "config.json"
        config.save(settings)
        arguments = ["train", "--work", str(work), "--config", str(settings),
                     "--precision", device.precision]
        stopped = run_processes(arguments, processes, device.kind == "cuda", watch)
    if stopped and not (watch.history and watch.history[-1]["epoch"] == config.epochs):
        raise Stopped("stopped before the first step; run it again.")
    return watch.history


def for_all_gpus(config: Config, device: Device, processes: int | None = None) -> Config:
    """Raise the batch to at least one patch per process, with as many patches per epoch.

    By default there is one process per GPU. Two T4s then train the kaggle preset, whose batch is a
    single patch, with NVIDIA's batch of two.
    """
    processes = processes or (torch.cuda.device_count() if device.kind == "cuda" else 1)
    if config.batch >= processes:
        return config
    print(f"{processes} processes share a batch: {processes} patches instead of {config.batch}, "
          "and fewer steps per epoch.")
    steps = max(1, config.steps * config.batch // processes)
    return config.with_(batch=processes, steps=steps)


def choose_processes(batch: int, gpus: int) -> int:
    """Count the GPUs that can share the batch equally; prints a line if others stay idle."""
    chosen = max(n for n in range(1, gpus + 1) if batch % n == 0)
    if chosen < gpus:
        print(f"Training uses {chosen} of {gpus} GPUs: batch={batch} cannot be shared equally by "
              f"more. batch={gpus} uses all.")
    return chosen


class HistoryWatch:
    """A reader of a history file that passes the history to `on_epoch` when it changes."""

    def __init__(self, path: Path, on_epoch: Callable[[list[dict]], None] | None) -> None:
        self.path = path
        self.on_epoch = on_epoch
        self.history: list[dict] = []
        self.last_mtime = self._mtime()  # an existing file is of an earlier training

    def _mtime(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.path.stat().st_mtime_ns
        return 0

    def __call__(self) -> None:
        """Look at the file once."""
        if (mtime := self._mtime()) in (0, self.last_mtime):
            return
        self.last_mtime = mtime
        self.history = read_json(self.path, "training")
        if self.history and self.on_epoch:
            self.on_epoch(self.history)


def run_processes(arguments: Sequence[str], processes: int, gpus: bool,
                  watch: Callable[[], None]) -> bool:
    """Run `python -m brats_helpers ARGUMENTS` in several processes; True if it was stopped.

    Shows their output and calls `watch` a few times a second. Passes on the first press of the stop
    button. BratsError has the message of the process that failed; GroupFailed if there is none.
    """
    with tempfile.TemporaryDirectory() as logs, stop_button() as stopped:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc-per-node", str(processes), "--max-restarts", str(RESTARTS),
                   "--log-dir", logs, "-m", "brats_helpers", *arguments]
        started = Path(logs) / "started"
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 start_new_session=True,
                                 env=_environment(processes, gpus, started))
        relay = threading.Thread(target=_relay, args=(child,), daemon=True)
        relay.start()
        interrupted = False
        try:
            for _ in _until_it_ends(child, started):
                if stopped() and not interrupted:
                    child.send_signal(signal.SIGINT)
                    interrupted = True
                watch()
        finally:
            child.terminate()  # does nothing if it has ended
        relay.join(5)
        watch()
        _raise_failure(Path(logs), child.returncode and not interrupted)
        return interrupted


def _until_it_ends(child: subprocess.Popen, started: Path) -> Iterator[None]:
    """Yield a few times a second while torchrun runs; GroupFailed if a start takes too long.

    The file `started` exists while the processes are connected; a restart removes it.
    """
    deadline = time.monotonic() + START_SECONDS
    while child.poll() is None:
        if started.exists():
            deadline = time.monotonic() + START_SECONDS
        elif time.monotonic() > deadline:
            # One that hangs ignores torchrun's signals.
            for process in [*psutil.Process(child.pid).children(recursive=True), child]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            raise GroupFailed(f"they did not connect within {START_SECONDS} seconds")
        yield
        time.sleep(0.2)


def _environment(processes: int, gpus: bool, started: Path) -> dict[str, str]:
    """Build the environment of the processes: this module, a share of the CPU, GPUs or none."""
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ}
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment | {"PYTHONUNBUFFERED": "1", STARTED: str(started),
                          "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(STOP_SECONDS)}


def _relay(child: subprocess.Popen) -> None:
    """Copy the output of a process to this one's stderr as it comes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while chunk := child.stdout.read1(4096):
        sys.stderr.write(decoder.decode(chunk))
        sys.stderr.flush()


def _raise_failure(logs: Path, failed: bool) -> None:
    """Raise the error that the processes logged for torchrun, one of ours first."""
    texts = [path.read_text("utf-8") for path in logs.rglob("error.json")]
    messages = [json.loads(text)["message"]["message"] for text in texts
                if text.endswith("}")]  # else the process was ended while it wrote
    for kind in (Stopped, BratsError):
        for message in messages:
            if message.startswith(f"{kind.__name__}: "):
                raise kind(message.removeprefix(f"{kind.__name__}: "))
    if failed:
        cause = messages[-1] if messages else "one was killed, perhaps for memory"
        raise GroupFailed(shorten(cause, 120, placeholder=" ..."))
