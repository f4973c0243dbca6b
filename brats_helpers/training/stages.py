"""Learning from phantoms first, where real patients are few (transfer learning; Tajbakhsh et al. 2016,
doi:10.1109/TMI.2016.2535302), and beside them, so that what phantoms taught is not forgotten (rehearsal; Robins 1995,
doi:10.1080/09540099550039318).

What it is worth is measured in benchmarks/real_cohort.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from ..basics.config import Config
from ..basics.config import preset as preset_of
from ..basics.device import Device
from ..data.cohort import read_cohort
from ..data.pipeline import fill_work_folder, prepared_files
from ..phantoms.archive import build_cohort
from . import distributed
from .loop import train
from .resume import InitialWeights


def train_work(config: Config, work: Path, on_epoch: Callable[[list[dict]], None] | None = None,
               device: Device | None = None, everyone: bool = False) -> list[dict]:
    """`train` on the patients that notebooks 01 to 03 have left in a work folder; checkpoints go to `checkpoint_folder`.

    Where the settings say so, on phantoms before (`pretraining`), in a work folder of their own, and beside the patients.
    everyone: on those too that are held out otherwise.
    """
    start = None
    if config.pretrain:
        first, phantoms = on_phantoms(config), distributed.broadcast_from_rank_zero(lambda: make_phantoms(config, work))
        train_work(first, phantoms, None, device)
        seen, _ = distributed.broadcast_from_rank_zero(lambda: training_files(first, phantoms))
        start = InitialWeights(checkpoint_folder(phantoms) / "last.pt", seen)
    files = distributed.broadcast_from_rank_zero(lambda: training_files(config, work, everyone))
    return train(config, *files, checkpoint_folder(work, everyone), on_epoch, device, start)


def checkpoint_folder(work: Path, everyone: bool = False) -> Path:
    """Where `train_work` keeps its checkpoints: a network that has learnt from everyone lies apart from the measured one."""
    return work / ("everyone" if everyone else "checkpoints")


def training_files(config: Config, work: Path, everyone: bool = False) -> tuple[list[Path], list[Path]]:
    """The prepared patients of a work folder to learn from, and those to validate on; all of them and none for everyone."""
    cohort = read_cohort(work)
    learnt, held_out = cohort.training_names(config, everyone), [] if everyone else cohort.held_out(config)
    cases = [cohort.by_name[name] for name in (*learnt, *held_out)]
    files = prepared_files(cases, work / "preprocessed", config.spacing_mm)
    return [files[name] for name in learnt], [files[name] for name in held_out]

FOLDER = "pretraining"                                # in the work folder: a work folder of its own
KIND = "wide"                                         # of phantom: as different from each other as scanners and tumors are
PHANTOMS = 120
FEW = 40                                              # real patients to learn from; with fewer, phantoms come first
GENTLER = 0.5                                         # of the rate on phantoms
MOST_STEPS = 6000                                     # on phantoms, and again on the patients; the GPU presets have more


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


def make_phantoms(config: Config, work: Path) -> Path:
    """What notebooks 01 to 03 would leave of `config.pretrain` phantoms, in `work`/pretraining, which is returned."""
    folder, config = Path(work) / FOLDER, on_phantoms(config)
    archive, _ = build_cohort(folder / "data", config.seed, config.patients, 0, config.spacing_mm, kind=KIND)
    fill_work_folder(folder, config, KIND, archive, synthetic=True)
    return folder
