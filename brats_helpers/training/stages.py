"""The trainings of a work folder, one after another: on phantoms first if real patients are few.

Learning from phantoms first is transfer learning (Tajbakhsh et al. 2016,
doi:10.1109/TMI.2016.2535302). The second training goes on seeing them, so that it does not forget
what they taught (rehearsal; Robins 1995, doi:10.1080/09540099550039318). benchmarks/real_cohort.md
measures the gain.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from ..basics.config import Config
from ..basics.config import preset as preset_of
from ..basics.device import Device
from ..data.cohort import read_cohort
from ..data.pipeline import fill_work_folder, prepared_files
from ..phantoms.archive import build_cohort
from . import distributed
from .loop import train
from .resume import InitialWeights

FOLDER = "pretraining"  # in the work folder: a work folder of its own
KIND = "varied"  # of phantom: as different from each other as scanners and tumors are
PHANTOMS = 120
FEW = 40  # real patients to learn from; with fewer, phantoms come first
GENTLER = 0.5  # of the rate on phantoms
MOST_STEPS = 6000  # on phantoms, and again on the patients; the GPU presets have more


class Stage(NamedTuple):
    """One training: its settings, and the work folder with its patients and checkpoints."""

    config: Config
    work: Path
    all_data: bool = False  # learn from the patients too that are held out otherwise


def plan_training(config: Config, work: Path, all_data: bool = False) -> list[Stage]:
    """List the trainings that the settings ask for: on phantoms if `pretrain`, then on patients."""
    patients = Stage(config, Path(work), all_data)
    if not config.pretrain:
        return [patients]
    return [Stage(on_phantoms(config), patients.work / FOLDER), patients]


def train_work(config: Config, work: Path, on_epoch: Callable[[list[dict]], None] | None = None,
               device: Device | None = None, all_data: bool = False) -> list[dict]:
    """Run the stages of `plan_training` on a work folder that notebooks 01 to 03 filled.

    Checkpoints go to `checkpoint_folder`. Returns the history of the last stage.
    """
    *earlier, last = plan_training(config, work, all_data)
    start = None
    if earlier:
        distributed.broadcast_from_rank_zero(lambda: make_phantoms(config, work))
        start = _train_stage(earlier[0], None, device, None)[1]
    return _train_stage(last, on_epoch, device, start)[0]


def _train_stage(stage: Stage, on_epoch: Callable[[list[dict]], None] | None, device: Device | None,
                 start: InitialWeights | None) -> tuple[list[dict], InitialWeights]:
    """Train one stage; returns its history and what the next stage starts from."""
    training, validation = distributed.broadcast_from_rank_zero(lambda: training_files(*stage))
    synthetic = distributed.broadcast_from_rank_zero(lambda: read_cohort(stage.work).synthetic)
    folder = checkpoint_folder(stage.work, stage.all_data)
    history = train(stage.config, training, validation, folder, on_epoch, device, start, synthetic)
    return history, InitialWeights(folder / "last.pt", training)


def checkpoint_folder(work: Path, all_data: bool = False) -> Path:
    """Name the folder of the checkpoints; a network trained on all data has its own."""
    return Path(work) / ("everyone" if all_data else "checkpoints")


def training_files(config: Config, work: Path,
                   all_data: bool = False) -> tuple[list[Path], list[Path]]:
    """Find the prepared patients to learn from and to validate on; all and none for all_data."""
    cohort = read_cohort(work)
    learnt = cohort.training_names(config, all_data)
    held_out = [] if all_data else cohort.held_out(config)
    cases = [cohort.by_name[name] for name in (*learnt, *held_out)]
    files = prepared_files(cases, work / "preprocessed", config.spacing_mm)
    return [files[name] for name in learnt], [files[name] for name in held_out]


def for_few_patients(config: Config, patients: int, synthetic: bool,
                     asked: Collection[str] = ()) -> Config:
    """Choose the settings for the number of patients to learn from; prints what and why.

    Synthetic cohorts, and real ones of FEW patients or more, keep the preset's settings; settings
    that were asked for stay.
    """
    if synthetic or patients >= FEW or ("pretrain" in asked and not config.pretrain):
        return config
    preset = preset_of(config.preset)
    chosen = {"pretrain": PHANTOMS, "learning_rate": preset.learning_rate * GENTLER,
              "epochs": max(1, min(preset.epochs, MOST_STEPS // config.steps))}
    chosen = {name: value for name, value in chosen.items() if name not in asked}
    config = config.with_(**chosen)
    if chosen and distributed.rank() == 0:
        print(f"{patients} real patients to learn from are few (fewer than {FEW}): "
              f"{config.pretrain} synthetic ones are made, and the network learns from most of "
              "them first, and then from yours and these in turn with a learning rate of "
              f"{config.learning_rate:g}, {config.epochs * config.steps} steps each. pretrain=0 "
              "leaves that out; what it is worth: benchmarks/real_cohort.md.")
    return config


def on_phantoms(config: Config) -> Config:
    """Derive the settings of the training on phantoms: the full learning rate.

    That is no higher than the higher of the preset's rate and the patients' own.
    """
    highest = max(config.learning_rate, preset_of(config.preset).learning_rate)
    return config.with_(pretrain=0, fold=-1, patients=config.pretrain, test_patients=0,
                        learning_rate=min(config.learning_rate / GENTLER, highest))


def make_phantoms(config: Config, work: Path) -> Path:
    """Fill `work`/pretraining with `config.pretrain` phantoms, as notebooks 01 to 03 would."""
    folder = Path(work) / FOLDER
    config = on_phantoms(config)
    archive, _ = build_cohort(folder / "data", config.seed, config.patients, 0, config.spacing_mm,
                              kind=KIND)
    fill_work_folder(folder, config, KIND, archive, synthetic=True)
    return folder
