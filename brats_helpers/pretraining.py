"""Learning from phantoms first, where real patients are few (transfer learning; Tajbakhsh et al. 2016,
doi:10.1109/TMI.2016.2535302), and beside them, so that what phantoms taught is not forgotten (rehearsal; Robins 1995,
doi:10.1080/09540099550039318).

What it is worth is measured in benchmarks/real_cohort.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from . import distributed
from .archive import patients_in
from .cases import check_cohort
from .cohort import write_patients, write_source
from .config import Config
from .config import preset as preset_of
from .phantom import LOOKS, build_cohort, make_patient
from .preprocessing import Prepared, prepare, preprocess_cohort
from .splits import make_splits

FOLDER = "pretraining"                                # in the work folder: a work folder of its own
KIND = "wide"                                         # of phantom: as different from each other as scanners and tumors are
PHANTOMS = 120
FEW = 40                                              # real patients to learn from; with fewer, phantoms come first
GENTLER = 0.5                                         # of the rate on phantoms
MOST_STEPS = 6000                                     # on phantoms, and again on the patients; the GPU presets have more


class Start(NamedTuple):
    """What a training begins with: the averaged weights of another one, and the prepared patients that it learnt from."""

    checkpoint: Path
    patients: Sequence[Path]


def rehearsal(patients: Sequence[Path], phantoms: Sequence[Path]) -> list[Path]:
    """What to draw patches from: few patients so often that half of the patches are theirs, and the phantoms once each."""
    return [*patients] * max(1, round(len(phantoms) / len(patients))) + [*phantoms]


def for_few_patients(config: Config, patients: int, synthetic: bool, asked: Collection[str] = ()) -> Config:
    """The settings for a cohort of this size, and a line on what was chosen and why; what was `asked` for stays.

    patients: to learn from. Synthetic cohorts, and real ones of FEW patients or more, keep the preset's settings.
    """
    if synthetic or patients >= FEW or ("pretrain" in asked and not config.pretrain):
        return config
    preset = preset_of(config.preset)
    chosen = {"pretrain": PHANTOMS, "learning_rate": preset.learning_rate * GENTLER,
              "epochs": max(1, min(preset.epochs, MOST_STEPS // config.steps))}
    chosen = {name: value for name, value in chosen.items() if name not in asked}
    config = config.with_(**chosen)
    if chosen and distributed.rank() == 0:
        print(f"{patients} real patients to learn from are few (fewer than {FEW}): {config.pretrain} synthetic ones "
              "are made, and the network learns from most of them first, and then from yours and these in turn with a "
              f"learning rate of {config.learning_rate:g}, {config.epochs * config.steps} steps each. pretrain=0 leaves that "
              "out; what it is worth: benchmarks/real_cohort.md.")
    return config


def on_phantoms(config: Config) -> Config:
    """The settings of the training that comes first: nothing before it, and the full learning rate, which is no higher than
    the preset's or the patients' own."""
    highest = max(config.learning_rate, preset_of(config.preset).learning_rate)
    return config.with_(pretrain=0, fold=-1, patients=config.pretrain, test_patients=0,
                        learning_rate=min(config.learning_rate / GENTLER, highest))


def some_phantoms(kind: str, number: int, spacing_mm: float, seed: int = 9) -> list[Prepared]:
    """A few phantoms of a kind (of `phantom.LOOKS`), prepared, in memory: to look at beside a cohort."""
    made = (make_patient(seed, n, spacing_mm, LOOKS[kind]) for n in range(number))
    return [prepare(patient, spacing_mm) for patient in tqdm(made, total=number, desc="phantoms", unit="patient")]


def make_phantoms(config: Config, work: Path) -> Path:
    """What notebooks 01 to 03 would leave of `config.pretrain` phantoms, in `work`/pretraining, which is returned."""
    folder, config = Path(work) / FOLDER, on_phantoms(config)
    archive, _ = build_cohort(folder / "data", config.seed, config.patients, 0, config.spacing_mm, kind=KIND)
    fill_work_folder(folder, config, KIND, archive)
    return folder


def fill_work_folder(work: Path, config: Config, source: str, place: Path, jobs: int = -1) -> None:
    """What notebooks 01 to 03 leave, of the labelled patients in a folder or a plain tar, without notebooks."""
    cases = patients_in(place)
    rows = check_cohort(cases, jobs)
    volumes = {row["name"]: sum(row["volumes_ml"].values()) for row in rows}
    splits = make_splits(list(volumes), list(volumes.values()), config.seed, config.validation, config.folds)
    write_source(work, config, source, place, None)
    write_patients(work, {"training": place, "test": None}, {"training": rows, "test": []}, splits)
    preprocess_cohort(cases, work / "preprocessed", config.spacing_mm, jobs)
