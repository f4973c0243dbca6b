"""Train on a work folder. For few real patients, start from the network in the box.

Starting from weights that another training left is transfer learning (Tajbakhsh et al. 2016,
doi:10.1109/TMI.2016.2535302). Averaging the weights before and after it forgets less (Wortsman et
al. 2022, arXiv:2109.01903). docs/zero_shot.md measures what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from ..basics.config import Config
from ..basics.device import Device
from ..basics.errors import BratsError
from ..data.cohort import Cohort, read_cohort
from ..data.pipeline import prepared_files
from ..data.preprocessing import FINER
from ..evaluation.pretrained import (
    FINE_TUNING_RATE,
    FINE_TUNING_STEPS,
    WEIGHTS,
    pretrained_config,
)
from . import distributed
from .loop import train

FEW_PATIENTS = 40  # real; with fewer, training starts from the network in the box if it fits
KEPT = 0.5  # share of the network in the box in the averaged weights


def train_work(config: Config, work: Path, on_epoch: Callable[[list[dict]], None] | None = None,
               device: Device | None = None, all_data: bool = False) -> list[dict]:
    """Train on a work folder that notebooks 01 to 03 filled; returns the history.

    Checkpoints go to `checkpoint_folder`.
    """
    work = Path(work)
    if config.pretrained:
        _check_fit(config)
    training, validation, synthetic = distributed.broadcast_from_rank_zero(
        lambda: training_files(config, work, all_data))
    return train(config, training, validation, checkpoint_folder(work, all_data), on_epoch, device,
                 WEIGHTS if config.pretrained else None, synthetic)


def _check_fit(config: Config) -> None:
    """Raise BratsError if the weights in the box do not fit into the network of these settings."""
    known = pretrained_config()
    for name in ("network", "filters"):
        if (mine := getattr(config, name)) != (its := getattr(known, name)):
            raise BratsError(f"pretrained=True starts from the network in the box, whose {name} is "
                             f"{its}, not {mine}. Give both the same, or set pretrained=False.")


def checkpoint_folder(work: Path, all_data: bool = False) -> Path:
    """Name the folder of the checkpoints; a network trained on all data has its own."""
    return Path(work) / ("everyone" if all_data else "checkpoints")


def training_files(config: Config, work: Path,
                   all_data: bool = False) -> tuple[list[Path], list[Path], bool]:
    """Find the prepared patients to learn from and to validate on (all and none with all_data).

    Also tells whether they are synthetic.
    """
    cohort = read_cohort(work)
    learned = cohort.training_names(config, all_data)
    held_out = [] if all_data else cohort.held_out(config)
    cases = [cohort.by_name[name] for name in (*learned, *held_out)]
    files = prepared_files(cases, work / "preprocessed", config.spacing_mm)
    return ([files[name] for name in learned], [files[name] for name in held_out],
            cohort.synthetic)


def settings_for_cohort(config: Config, cohort: Cohort, asked: Collection[str] = ()) -> Config:
    """Choose the settings for the patients of a work folder, as `for_few_patients` describes."""
    return for_few_patients(config, len(cohort.training_names(config)), cohort.synthetic, asked)


def for_few_patients(config: Config, patients: int, synthetic: bool,
                     asked: Collection[str] = ()) -> Config:
    """Choose the settings for the number of patients to learn from; prints what and why.

    Synthetic cohorts and real ones of FEW_PATIENTS or more keep their settings. What was asked for
    stays, but `pretrained` becomes False if network, filters or voxel size do not fit the weights.
    """
    if synthetic or patients >= FEW_PATIENTS or ("pretrained" in asked and not config.pretrained):
        return config
    persons = "patient" if patients == 1 else "patients"
    few = f"{patients} real {persons} to learn from, fewer than {FEW_PATIENTS}"
    known = pretrained_config()
    fixed = [name for name in ("network", "filters")
             if name in asked and getattr(config, name) != getattr(known, name)]
    if not 1 / FINER < config.spacing_mm / known.spacing_mm < FINER:
        fixed.append("spacing_mm")
    if fixed:
        _say(f"{few}. The training would start from the network in the box, but {fixed[0]}="
             f"{getattr(config, fixed[0])} is not its {getattr(known, fixed[0])}, so it starts "
             "from random weights.")
        return config.with_(pretrained=False)
    kept = ("network", "filters", "patch", "modality_dropout")  # works best as it was trained
    chosen = {name: getattr(known, name) for name in kept}
    chosen |= {"pretrained": True} | _fine_tuning_schedule(config, asked)
    config = config.with_(**{name: value for name, value in chosen.items() if name not in asked})
    _say(f"{few}: the training starts from the network in the box, which learned from synthetic "
         f"patients, and takes {config.epochs * config.steps} steps with a learning rate of "
         f"{config.learning_rate:g} (pretrained=False: from random weights). On patients that "
         "neither has seen, compare your network with the network in the box: yours may be worse "
         "(docs/zero_shot.md).")
    return config


def _fine_tuning_schedule(config: Config, asked: Collection[str]) -> dict[str, float]:
    """Choose a low rate, few steps, a short warm-up, and an average that keeps the start."""
    steps = config.steps
    if not {"epochs", "steps"} & set(asked):
        steps = max(1, min(steps, FINE_TUNING_STEPS // config.epochs))
    total = config.epochs * steps
    return {"learning_rate": FINE_TUNING_RATE, "steps": steps,
            "warmup": min(config.warmup, total // 5), "ema": KEPT ** (1 / total)}


def _say(text: str) -> None:
    if distributed.rank() == 0:
        print(text)
