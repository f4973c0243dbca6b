"""Measures processes, a Dask cluster, the loader alone, and memory by size of the cohort.

`python -m benchmarks.scaling` writes scaling.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from brats_helpers.basics.config import PRESETS, Config
from brats_helpers.basics.device import keep_memory
from brats_helpers.basics.files import read_json, write_json

COUNTS = (10, 100, 400)  # patients, small ones: what grows with their number shows


def prepare_many(folder: Path) -> tuple[float, float]:
    """Prepare a folder's patients in their own process: seconds, and peak memory in MiB (Linux).

    `getrusage` also counts the peak of the process that started this one.
    """
    code = f"""
from pathlib import Path
from brats_helpers.data.cases import find_cases
from brats_helpers.data.pipeline import preprocess_cohort
preprocess_cohort(find_cases(Path({str(folder)!r})), Path({str(folder) + '.out'!r}), 8.0, jobs=1)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return time.perf_counter() - begin, int(done.stdout.split()[-1]) / 1024


def copies(folder: Path, count: int) -> Path:
    """Write `count` patients with the same voxels, as hard links."""
    from brats_helpers.data.archive import extract
    from brats_helpers.phantoms.archive import build_cohort
    archive, _ = build_cohort(folder / "data", 0, 1, 0, 8.0, jobs=1)
    extract(archive, folder / "one")
    source = next(p for p in (folder / "one").iterdir() if p.is_dir())
    target = folder / f"cohort{count}"
    for index in range(count):
        name = f"BraTS2021_{index:05d}"
        (target / name).mkdir(parents=True)
        for path in source.iterdir():
            (target / name / path.name.replace(source.name, name)).hardlink_to(path)
    return target


def on_dask(cohort: Path, folder: Path) -> dict:
    """Compare `preprocess_cohort` on a Dask scheduler with two workers and on joblib's own."""
    from dask.distributed import Client, LocalCluster
    from joblib import parallel_config

    from brats_helpers.data.cases import find_cases
    from brats_helpers.data.pipeline import preprocess_cohort
    cases, taken = find_cases(cohort), {}
    with LocalCluster(n_workers=2, threads_per_worker=1,
                      dashboard_address=None) as cluster, Client(cluster):
        for backend in ("loky", "dask"):
            out = folder / backend
            begin = time.perf_counter()
            with parallel_config(backend=backend, n_jobs=2):
                metas = preprocess_cohort(cases, out, 8.0, jobs=None)
            taken[backend] = round(time.perf_counter() - begin, 2)
            assert len(metas) == len(cases)
        same = all((folder / "loky" / p.name).read_bytes() == p.read_bytes()
                   for p in (folder / "dask").iterdir())
        workers = len(cluster.workers)
    return {"seconds": taken, "workers": workers, "patients": len(cases), "same_bytes": same}


def on_processes(work: Path, config: Config, counts: Sequence[int] = (1, 2),
                 cores: int = 2) -> list[dict]:
    """Return steps a second of `train` on the CPU with the same batch, by the number of processes.

    The first epoch and the last one, which validates, do not count.
    """
    from brats_helpers.training.loop import HISTORY
    from brats_helpers.training.work_folder import checkpoint_folder
    config, rows = config.with_(epochs=3, validate_every=3), []
    for count in counts:
        shutil.rmtree(checkpoint_folder(work), ignore_errors=True)
        config.save(work / "config.json")
        subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                        "--nproc-per-node", str(count), "-m", "brats_helpers", "train", "--work",
                        str(work)], check=True,
                       env={**os.environ, "OMP_NUM_THREADS": str(cores // count),
                            "CUDA_VISIBLE_DEVICES": ""})
        first, second, _ = read_json(checkpoint_folder(work) / HISTORY, "training")
        rows.append({"processes": count, "threads_each": cores // count, "batch": config.batch,
                     "steps_per_second": round(config.steps
                                               / max(second["seconds"] - first["seconds"], 0.1),
                                               2)})
    return rows


def on_loaders(folder: Path, spacing_mm: float = 1.0, patch: int = 128,
               count: int = 200) -> list[dict]:
    """Return batches of two patches a second, without a consumer, by number of loader processes.

    The phantoms are in the page cache; the first ten batches do not count.
    """
    from brats_helpers.data.loaders import PatchDataset, batches
    from brats_helpers.data.preprocessing import prepare
    from brats_helpers.data.storage import save_prepared
    from brats_helpers.phantoms.kinds import make_patient
    paths, rows = [folder / f"{index}.b2nd" for index in range(2)], []
    for index, path in enumerate(paths):
        save_prepared(prepare(make_patient(0, index, spacing_mm), spacing_mm), path)
    for workers in (0, 1, 2):
        stream = batches(PatchDataset(paths, patch, 0.4, 0), 2, 0, count + 10, workers)
        for _ in range(10):
            next(stream)
        begin = time.perf_counter()
        for _ in stream:
            pass
        rows.append({"processes": workers,
                     "batches_per_second": round(count / (time.perf_counter() - begin), 1)})
    return rows


def main() -> int:
    """Measure, and write scaling.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent,
                        help="folder for the results")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        for count in COUNTS:
            seconds, peak = prepare_many(copies(folder, count))
            rows.append({"patients": count, "seconds": round(seconds, 1), "peak_mib": round(peak)})
        dask = on_dask(folder / "cohort100", folder)
        shutil.rmtree(folder / "dask")
        config = PRESETS["quick"].with_(spacing_mm=8.0, patch=32, filters=(8, 16, 32), steps=100)
        from benchmarks.cohort import fill_work_folder
        fill_work_folder(folder / "work", config, "phantom", folder / "cohort10", jobs=1,
                         synthetic=True)
        processes = on_processes(folder / "work", config)
        keep_memory()  # as notebook 05 does
        loaders = on_loaders(folder)
    write_json(out / "scaling.json",
               {"memory": rows, "dask": dask, "processes": processes, "loader": loaders})
    print(f"wrote {out / 'scaling.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
