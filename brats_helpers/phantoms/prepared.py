"""Varied phantoms as prepared files, without an archive, for `make weights`."""

from __future__ import annotations

import contextlib
from pathlib import Path

from joblib import Parallel, delayed
from tqdm import tqdm

from ..basics.errors import BratsError
from ..basics.jobs import worker_count
from ..data.preprocessing import prepare
from ..data.storage import open_volume, save_prepared
from .varied import VERSION, make_varied


def prepare_varied(folder: Path, number: int, seed: int, spacing_mm: float) -> list[Path]:
    """Make the first phantoms of the varied cohort `seed` and store them prepared, in order.

    Files that can be read stay, so an interrupted call goes on where it stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"varied_{VERSION}_{seed}_{spacing_mm:g}mm_{index:05d}.b2nd"
             for index in range(number)]
    missing = [index for index, path in enumerate(files) if not _is_stored(path)]
    done = Parallel(n_jobs=worker_count(-1, len(missing)), return_as="generator")(
        delayed(_prepare_one)(files[index], seed, index, spacing_mm) for index in missing)
    if missing:
        for _ in tqdm(done, total=len(missing), desc="phantoms", unit="patient"):
            pass
    return files


def _is_stored(path: Path) -> bool:
    with contextlib.suppress(BratsError):
        return path.is_file() and bool(open_volume(path))
    return False


def _prepare_one(path: Path, seed: int, index: int, spacing_mm: float) -> None:
    patient = make_varied(seed, index, spacing_mm)
    save_prepared(prepare(patient, spacing_mm, f"varied {seed} {index}"), path)
