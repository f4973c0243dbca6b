"""Choose how many processes share a piece of work."""

from __future__ import annotations

import sys
from concurrent.futures.process import BrokenProcessPool

from joblib import cpu_count
from joblib.parallel import get_active_backend

from .errors import BratsError

MOST = 4  # processes per core; joblib starts as many as it is told, however little there is to do


def worker_count(jobs: int, tasks: int) -> int:
    """Return how many processes to start for `jobs` (-1: one per core); BratsError for 0.

    At most one per task, and MOST per core. Dask counts its own workers, so `jobs` stays.
    """
    if jobs == 0:
        raise BratsError("jobs=0 cannot work: give 1 or more, or -1 for one process per core.")
    if on_dask():
        return jobs
    wanted = jobs if jobs > 0 else cpu_count() + 1 + jobs
    return max(1, min(wanted, tasks, MOST * cpu_count()))


def on_dask() -> bool:
    """Tell whether Dask is joblib's backend; it counts its own workers."""
    return "Dask" in type(get_active_backend()[0]).__name__


def worker_death_errors() -> tuple[type[BaseException], ...]:
    """Return the errors that joblib's backends raise when a worker has died."""
    distributed = sys.modules.get("distributed.scheduler")
    return (BrokenProcessPool, *([distributed.KilledWorker] if distributed else []))


def death_message(error: BaseException) -> str:
    """Explain why a patient has no result: their process died while it had no other task."""
    return (f"its process was killed ({type(error).__name__}), most often because memory ran out: "
            "close other programs, or leave this patient out")
