"""Segment a cohort: check it first, share it out to processes, and resume.

One patient's failure is a row of `predictions.csv`, not the end of the batch. The table also holds
what each mask was made from, so that a second call does only what is missing.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from ..basics.errors import BratsError
from ..basics.files import output_file, remove_leftovers, write_file
from ..basics.jobs import death_message, on_dask, worker_count, worker_death_errors
from ..basics.lock import hold_folder
from ..data.cases import Case, check_cohort, find_cases, incomplete, read_case, write_mask
from ..data.labels import unnamed
from .ensemble import Ensemble, load_ensemble, made_from
from .metrics import regions
from .prediction import segment
from .prediction_table import (
    DONE,
    FAILED,
    INCOMPLETE,
    TABLE,
    VOLUMES,
    Table,
    mask_crc,
    new_row,
    set_aside,
)
from .trust import expected_dice

SEVERAL = 8  # patients that are worth starting processes to check
PROBE = 1 << 20  # bytes that must fit into the output folder
LONGEST_NAME = 230  # bytes; file systems allow 255, with .nii.gz.earlier


@dataclass(frozen=True)
class Task:
    """The instructions for a worker to load its ensemble, once."""

    checkpoints: tuple[Path, ...]  # empty: the network in the box and its refiner
    tta: bool
    patients: int  # for each worker, about
    tag: str
    modules: tuple[str, ...]  # that define the networks


def predict_cases(folders: Sequence[Path], checkpoints: Sequence[Path] | None, out: Path,
                  tta: bool = False, overwrite: bool = False, jobs: int = 1) -> list[dict]:
    """Segment every patient in these folders into `out`/<case>.nii.gz, with the scans' geometry.

    Several checkpoints are averaged; without any, the network in the box is used. The refiner comes
    with it, and with networks that are `fine_tuned` from it.
    What an earlier call finished from the same checkpoints, options and scans is kept unless
    `overwrite` is set. `jobs` counts the processes, -1 for one per core; joblib's Dask backend uses
    its own workers. Returns each patient's row of predictions.csv.
    """
    if jobs < 1 and jobs != -1:
        raise BratsError(f"jobs={jobs} cannot work: give 1 or more, or -1 for one per core.")
    out = Path(out).absolute()
    try_output(out)
    with hold_folder(out):
        remove_leftovers(out)
        table = Table(out / TABLE)
        cases, failed = cases_to_segment(folders, {out / f"{name}.nii.gz" for name in table.rows})
        ensemble = _load(checkpoints, tta)
        if ensemble.takes_incomplete:
            cases = [incomplete(case) for case in cases]
        for row in failed:
            table.write(row)
        sources = {case.name: made_from(case, ensemble) for case in cases}
        todo = [c for c in cases if overwrite or not table.keeps(c, sources[c.name])]
        if kept := len(cases) - len(todo):
            tqdm.write(f"{kept} mask(s) are there already and are kept (see --overwrite).")
        _keep_scans(todo, cases, out)
        sound = list(_check(todo, table, ensemble))
        _keep_others_files(sound, table, out)
        task = Task(tuple(Path(path).absolute() for path in checkpoints or ()), tta,
                    max(1, len(sound) // worker_count(jobs, len(sound))), ensemble.tag,
                    tuple({type(model).__module__ for model in ensemble.models}))
        rows = _share_out(sound, ensemble, task, out, jobs)
        for row in tqdm(rows, total=len(sound), desc="predict", unit="patient"):
            table.write(row)
            if row["status"] == FAILED:
                try_output(out)  # a full disk fails everyone: stop
        names = [row["case"] for row in failed] + [case.name for case in cases]
        return [table.rows[name] for name in names]


def _load(checkpoints: Sequence[Path] | None, tta: bool) -> Ensemble:
    ensemble = load_ensemble(checkpoints, tta)
    if checkpoints and ensemble.refiner:
        tqdm.write("The training started from the network in the box and was brief, so the refiner "
                   "segments the tumor again with smaller voxels.")
    return ensemble


def try_output(out: Path) -> None:
    """Write a file of 1 MB and remove it; BratsError if masks cannot be written."""
    there = next(path for path in (out, *out.parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise BratsError(f"{out} cannot hold masks, because {there} is not a folder: name a folder "
                         "with --out.")
    try:
        write_file(out / ".probe", bytes(PROBE))
        (out / ".probe").unlink(missing_ok=True)  # another call may try the same folder
    except OSError as error:
        raise BratsError(f"{out} cannot be written to ({error.strerror}): name another folder with "
                         "--out.") from error


def cases_to_segment(folders: Sequence[Path], masks: Set[Path]) -> tuple[list[Case], list[dict]]:
    """Find the patients in the folders, without their references.

    `masks` are files that earlier calls wrote, not scans. Also returns failed rows for names that
    are shared or too long and, with several folders, for folders without a patient. BratsError if
    no patient is left.
    """
    found: dict[str, Case] = {}
    rows, namesakes = [], {}
    for folder in folders:
        place = Path(os.path.abspath(Path(folder).expanduser()))  # "." has no name
        try:
            cases = find_cases(place)
        except BratsError as error:
            if len(folders) == 1:
                raise
            rows.append(new_row(str(folder), FAILED, [str(error)]))
            continue
        for case in cases:
            if case.images and all(path in masks for path in case.images):
                continue  # named like a scan, as P_t1.nii.gz of patient P_t1
            before = found.setdefault(case.name, replace(case, reference=None))
            if _real(before) != _real(case):
                namesakes[case.name] = (
                    f"two patients are called {case.name} ({before.images[0]} and "
                    f"{case.images[0]}): their masks would overwrite each other. Rename one, or "
                    "call predict twice.")
    if len(found) == len(namesakes):
        raise BratsError(next(iter(namesakes.values()),
                              f"no patient in {', '.join(map(str, folders))}."))
    rows += [new_row(name, FAILED, [text]) for name, text in namesakes.items()]
    long = [name for name in found if len(os.fsencode(name)) > LONGEST_NAME]
    rows += [new_row(name, FAILED, [f"patient {name}: the name is too long for a mask's file: "
                                    "rename the patient's folder or files"]) for name in long]
    return [case for name, case in found.items() if name not in (*namesakes, *long)], rows


def _real(case: Case) -> list[str]:
    return [os.path.realpath(str(path)) for path in case.images]


def _keep_scans(todo: Sequence[Case], cases: Sequence[Case], out: Path) -> None:
    """Raise BratsError if a mask would replace a scan."""
    scans = {path for case in cases for path in _real(case)}
    for case in todo:
        target = out / f"{case.name}.nii.gz"
        if os.path.realpath(target) in scans:
            raise BratsError(f"the mask of {case.name} would replace the scan {target}: name "
                             "another folder with --out.")


def _keep_others_files(todo: Sequence[Case], table: Table, out: Path) -> None:
    """Move files aside that are called like a mask and are not as an earlier call wrote them."""
    for case in todo:
        target = out / f"{case.name}.nii.gz"
        if target.is_file() and not table.wrote(case.name):
            tqdm.write(f"WARNING: {target} was not written by predict, or was changed: kept as "
                       f"{set_aside(target, 'earlier')}.")


def _check(cases: Sequence[Case], table: Table, ensemble: Ensemble) -> Iterator[Case]:
    """Yield the patients that can be segmented; name the others and write them into the table."""
    for case in cases:
        table.wait(case.name)
    rows = check_cohort(cases, -1 if len(cases) >= SEVERAL else 1)
    for case, row in zip(cases, rows, strict=True):
        if not row["problems"]:
            warnings = [*row["warnings"], *ensemble.cost_of(case)]
            for text in warnings:
                tqdm.write(f"WARNING: {text}")
            table.rows[case.name]["warnings"] = " | ".join(warnings)
            yield case
            continue
        lacks = bool(case.missing and case.problem)
        advice = ("No mask is written, because this network needs all four contrasts. Look for a "
                  "file with another name, take the contrast from another series, or leave out "
                  "--checkpoint: the network in the box works with fewer.")
        table.fail(case.name, INCOMPLETE if lacks else FAILED,
                   [*row["problems"], *[advice] * (lacks and not ensemble.takes_incomplete)])
    table.save()


def _share_out(cases: Sequence[Case], ensemble: Ensemble, task: Task, out: Path,
               jobs: int) -> Iterator[dict]:
    """Segment patients here or in several processes; if one dies, the others go on."""
    cluster = on_dask()
    if jobs == 1 and not cluster or len(cases) == 1:
        ready = ensemble.compiled(len(cases))
        yield from (_segment_one(case, ready, out) for case in cases)
        return
    left, alone = {case.name: case for case in cases}, False
    pool = Parallel(n_jobs=-1 if cluster and jobs == 1 else worker_count(jobs, len(cases)),
                    return_as="generator_unordered", batch_size=1)
    while left:
        chosen = list(left.values())[:1 if alone else None]
        try:
            for row in pool(delayed(_segment_in_worker)(case, task, out) for case in chosen):
                del left[row["case"]]
                yield row
        except worker_death_errors() as error:
            if alone:
                del left[chosen[0].name]
                yield new_row(chosen[0].name, FAILED, [death_message(error)])
                continue
            alone = len(left) == len(chosen)  # nobody finished: find out who kills the process
            tqdm.write(f"WARNING: a process was killed; going on with {len(left)} patient(s).")


def _segment_in_worker(case: Case, task: Task, out: Path) -> dict:
    return _segment_one(case, _ensemble_of_worker(task), out)


@lru_cache(maxsize=1)
def _ensemble_of_worker(task: Task) -> Ensemble:
    for module in task.modules:  # the user's own network; the first process trusted it already
        importlib.import_module(module)
    return load_ensemble(task.checkpoints, task.tta).compiled(task.patients)


def _segment_one(case: Case, ensemble: Ensemble, out: Path) -> dict:
    begin, warnings, target = time.perf_counter(), [], out / f"{case.name}.nii.gz"
    try:
        output_file(target)  # before the work
        source, patient = made_from(case, ensemble), read_case(case)
        labels, probabilities = segment(ensemble.models, patient, ensemble.config, ensemble.tta,
                                        ensemble.device, ensemble.training_ranges, warnings.append,
                                        ensemble.refiner)
        write_mask(target, labels, patient.affine, case)
    except (BratsError, RuntimeError, MemoryError) as error:  # torch out of memory: RuntimeError
        return new_row(case.name, FAILED, [str(error) or "not enough memory"])
    warnings += unnamed(case, np.unique(labels[labels > 0]).tolist())
    guess = expected_dice(probabilities[0], labels > 0)
    if guess < ensemble.least_dice:
        warnings.append(f"patient {case.name}: the network is unsure (it expects a Dice of "
                        f"{guess:.2f}): look at the mask before you use it")
    ml = np.prod(patient.spacing) / 1000
    sizes = (round(float(np.count_nonzero(region) * ml), 3) for region in regions(labels))
    return new_row(case.name, DONE, warnings, **dict(zip(VOLUMES, sizes, strict=True)),
                   expected_dice=round(guess, 3), seconds=round(time.perf_counter() - begin, 2),
                   made_from=source, mask_crc=mask_crc(target))
