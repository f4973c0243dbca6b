"""The settings of a run: one frozen dataclass and three presets.

`quick` learns from phantoms on a laptop, `kaggle` is sized for a 16 GB GPU, and `full` is
NVIDIA's recipe (Futrega et al. 2021, arXiv:2110.03352). The configuration is written into every
checkpoint, and resuming or predicting rebuilds the network from it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import get_type_hints

from .constants import LARGEST_MM, SMALLEST_MM
from .errors import BratsError
from .files import read_json, write_json

OWN_NETWORK = "unet"
FORMER_NAMES = {"foreground": "oversample_foreground"}  # in files of earlier versions
DROPPED = ("pretrain",)  # settings that only earlier versions had
TYPES = {int: (Integral, "a whole number"), float: (Real, "a number"),
         bool: (bool, "true or false"), str: (str, "text")}
# The least and most of each setting. A file from elsewhere may hold any number, and beyond these
# limits memory runs out, or a run never ends.
LIMITS = {
    "seed": (0, 2**32 - 1), "spacing_mm": (SMALLEST_MM, LARGEST_MM), "patients": (1, 100_000),
    "test_patients": (0, 100_000), "validation": (0.001, 0.5), "folds": (2, 100_000),
    "batch": (1, 1024), "oversample_foreground": (0, 1), "epochs": (1, 1_000_000),
    "steps": (1, 1_000_000), "learning_rate": (1e-15, 10), "warmup": (0, 1_000_000_000),
    "weight_decay": (0, 10), "modality_dropout": (0, 1), "validate_every": (1, 1_000_000),
    "overlap": (0, 0.9)}
LARGEST_PATCH, MOST_FILTERS, MOST_LEVELS = 512, 1024, 9  # the brain of BraTS fits into 240


@dataclass(frozen=True)
class Config:
    """The settings that decide a result. On the CPU, equal settings and data give equal runs."""

    preset: str = "full"
    seed: int = 0
    # data
    spacing_mm: float = 1.0  # voxel size that the network sees; coarser than the scan's saves time
    patients: int = 50  # phantoms for training and validation
    test_patients: int = 12  # phantoms in the second archive, unused before the last evaluation
    validation: float = 0.2  # share of persons held out, rounded to 1/2, 1/3, 1/4 and so on
    folds: int = 5  # of cross-validation
    fold: int = -1  # held out, 0 to folds - 1; -1: the validation set
    pretrained: bool = False  # start from the network in the box; notebook 05 sets it
    # network
    network: str = OWN_NETWORK  # or "module:Class" of another network from 5 to 3 channels
    filters: tuple[int, ...] = (64, 96, 128, 192, 256, 384, 512)  # of each level
    checkpointing: bool = False  # recompute activations: less memory, a third slower
    # training
    patch: int = 128  # voxels per edge
    batch: int = 2  # patches per step
    oversample_foreground: float = 0.4  # share of patches centered on a tumor voxel
    epochs: int = 30
    steps: int = 500  # optimizer steps per epoch
    learning_rate: float = 3e-4  # peak, after the warm-up
    warmup: int = 250  # steps
    weight_decay: float = 1e-4
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # decay of the averaged weights, per step; 0: no averaging
    modality_dropout: float = 0.0  # share of patches that lack one modality or more
    validate_every: int = 1  # epochs
    tensorboard: bool = False  # write event files of the training
    on_nan: str = "stop"  # after a NaN loss: "stop", or "halve" the rate, skip the batch and go on
    # inference
    overlap: float = 0.5  # of neighboring windows
    tta: bool = True  # average over all 8 mirrored views; False: over 2

    def __post_init__(self) -> None:
        """Raise BratsError for a setting that cannot work, naming it and what it may be."""
        for name, annotation in get_type_hints(type(self)).items():
            value, (kind, wanted) = getattr(self, name), TYPES.get(annotation, (object, ""))
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise BratsError(f"{name}={value!r} cannot work: it must be {wanted}.")
        if not 1 < len(self.filters) <= MOST_LEVELS or not all(
                isinstance(n, Integral) and 0 < n <= MOST_FILTERS for n in self.filters):
            raise BratsError(f"filters={self.filters!r} cannot work: it must list 2 to "
                             f"{MOST_LEVELS} whole numbers from 1 to {MOST_FILTERS}, one for each "
                             "level.")
        for name, holds, wanted in self._rules():
            if not holds:
                raise BratsError(
                    f"{name}={getattr(self, name)!r} cannot work: it must be {wanted}.")

    def _rules(self) -> list[tuple[str, bool, str]]:
        """List each field's rule: its name, whether it holds, and what the value must be."""
        ours = self.network == OWN_NETWORK  # another network checks its own rules
        depth = 2 ** (len(self.filters) - 1) if ours else 1
        return [
            ("patch", self.patch % depth == 0 and 2 * depth <= self.patch <= LARGEST_PATCH,
             f"a multiple of {depth}, from {2 * depth} to {LARGEST_PATCH}" + (
                 f": {len(self.filters)} levels halve it {len(self.filters) - 1} times, and "
                 "instance norm needs more than one voxel at the bottom" if ours else "")),
            ("network", ours or bool(re.fullmatch(r"[\w.]+:\w+", self.network)),
             f"'{OWN_NETWORK}', or 'module:Class'"),
            ("fold", -1 <= self.fold < self.folds,
             f"-1 (the validation set) or 0 to {self.folds - 1}"),
            ("on_nan", self.on_nan in ("stop", "halve"), "'stop' or 'halve'"),
            ("ema", 0 <= self.ema < 1, "at least 0 and below 1"),
            ("clip", self.clip > 0, "above 0"),
            *((name, least <= getattr(self, name) <= most, f"{least:,} to {most:,}")
              for name, (least, most) in LIMITS.items()),
        ]

    def with_(self, **changes: object) -> Config:
        """Copy the settings with changes; None keeps a value. BratsError for an unknown name."""
        known = {f.name for f in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise BratsError(f"unknown setting {', '.join(unknown)}; "
                             f"there are: {', '.join(sorted(known))}.")
        return replace(self, **{k: v for k, v in changes.items() if v is not None})

    def save(self, path: Path) -> None:
        """Write the configuration as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read what `save` wrote; BratsError names a file that is missing or malformed."""
        values = read_json(path, "notebook 01")
        try:
            return cls.from_dict(values)
        except BratsError as error:
            advice = "Correct the file, or run notebook 01 again."
            raise BratsError(f"{path}: {error} {advice}") from error

    @classmethod
    def from_dict(cls, values: dict) -> Config:
        """Rebuild a configuration from `asdict` or a checkpoint; BratsError if it is invalid."""
        filters = values.get("filters") if isinstance(values, dict) else None
        named = isinstance(filters, (list, tuple)) and all(isinstance(name, str) for name in values)
        if not named:
            raise BratsError("these are not the settings of a run: there is no list of filters.")
        values = {FORMER_NAMES.get(name, name): value for name, value in values.items()
                  if name not in DROPPED}
        return cls().with_(**{**values, "filters": tuple(filters)})


PRESETS: dict[str, Config] = {
    "quick": Config(
        preset="quick", spacing_mm=2.0, filters=(8, 16, 32, 64), patch=48, batch=2, epochs=5,
        steps=100, learning_rate=4e-3, warmup=60, ema=0.99, validate_every=2, tta=False),
    "kaggle": Config(preset="kaggle", batch=1, epochs=30, steps=1000),
    "full": Config(),
}


def preset(name: str) -> Config:
    """Return the preset of that name; BratsError lists the names if there is none."""
    if name not in PRESETS:
        raise BratsError(f"preset {name!r} is not known; there are: {', '.join(PRESETS)}.")
    return PRESETS[name]
