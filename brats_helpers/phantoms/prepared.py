"""Varied phantoms made straight into prepared files, for a training that starts from them."""

from __future__ import annotations

from pathlib import Path

from joblib import Parallel, delayed
from tqdm import tqdm

from ..basics.jobs import useful
from ..data.preprocessing import prepare
from ..data.storage import save_prepared
from .varied import VERSION, make_varied


def prepare_varied(folder: Path, number: int, seed: int, spacing_mm: float) -> list[Path]:
    """Make the first phantoms of the varied cohort `seed` and store them prepared, in order.

    Files that exist stay, so an interrupted call goes on where it stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"varied_{VERSION}_{seed}_{spacing_mm:g}mm_{index:05d}.b2nd"
             for index in range(number)]
    missing = [index for index, path in enumerate(files) if not path.exists()]
    done = Parallel(n_jobs=useful(-1, len(missing)), return_as="generator")(
        delayed(_prepare_one)(files[index], seed, index, spacing_mm) for index in missing)
    if missing:
        for _ in tqdm(done, total=len(missing), desc="phantoms", unit="patient"):
            pass
    return files


def _prepare_one(path: Path, seed: int, index: int, spacing_mm: float) -> None:
    patient = make_varied(seed, index, spacing_mm)
    save_prepared(prepare(patient, spacing_mm, f"varied {seed} {index}"), path)
