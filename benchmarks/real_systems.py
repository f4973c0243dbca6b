"""Trains this project and nnU-Net v2 on a few real patients in a given number of minutes.

Each trains in its own folder, preprocessing included, stores its weights there after each of
`EPOCHS` equal parts of the training, with the minutes passed, and predicts with any of them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from brats_helpers.basics.config import PRESETS, Config
from brats_helpers.basics.device import describe_device
from brats_helpers.basics.files import read_json, write_json
from brats_helpers.data.cases import Case, read_case
from brats_helpers.data.loaders import PatchDataset, batches
from brats_helpers.data.pipeline import preprocess_cohort
from brats_helpers.data.preprocessing import prepare
from brats_helpers.evaluation.checkpoints import load_checkpoint
from brats_helpers.evaluation.postprocessing import postprocess
from brats_helpers.evaluation.pretrained import WEIGHTS
from brats_helpers.evaluation.sliding_window import predict_prepared
from brats_helpers.training.loop import train
from brats_helpers.training.state import new_state
from brats_helpers.training.step import train_step
from brats_helpers.training.work_folder import KEPT, for_few_patients

from .cohort import nnunet_dataset

EPOCHS = 20  # parts of a training; nnU-Net lowers its rate once in each
RESERVE = 0.03  # of the budget, for what comes after the last step
TRIAL_SECONDS, TRIAL_STEPS = 15, 3  # at least, to find out how long a step takes


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Clock:
    """Measures the minutes of a training and stores its weights along the way."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.minutes, self.started, self.notes = folder, minutes, time.monotonic(), []
        (folder / "snapshots").mkdir(parents=True, exist_ok=True)

    @property
    def spent(self) -> float:
        """Return the minutes since the start."""
        return (time.monotonic() - self.started) / 60

    def steps(self, seconds_a_step: float) -> int:
        """Return the steps of each remaining part, so that the last ends in time."""
        left = 60 * (self.minutes * (1 - RESERVE) - self.spent)
        return max(1, int(left / seconds_a_step / (EPOCHS - len(self.notes))))

    def snapshot(self, weights: dict | Path, minutes: float | None = None) -> None:
        """Store weights, of a file or of a model, and the minutes passed."""
        target = self.folder / "snapshots" / f"{len(self.notes):02d}.pt"
        if isinstance(weights, Path):
            shutil.copyfile(weights, target)
        else:
            torch.save(weights, target)
        self.notes.append(self.spent if minutes is None else minutes)

    def finish(self, **said: object) -> None:
        """Write training.json, which marks the training as finished."""
        write_json(self.folder / "training.json",
                   {"minutes": self.spent, "snapshots": self.notes, **said})


def seed_all(seed: int) -> None:
    """Seed the global generators, which nnU-Net uses and does not seed."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def real_settings(spacing_mm: float) -> Config:
    """Return our preset for this resolution, before it is fitted to a few patients."""
    return PRESETS["full" if spacing_mm <= 1 else "quick"].with_(spacing_mm=spacing_mm)


class Ours:
    """Trains this project with the settings that it chooses for a few patients.

    phantoms: False starts from random weights instead of the network in the box.
    """

    labels = staticmethod(postprocess)

    def __init__(self, folder: Path, config: Config, phantoms: bool = True) -> None:
        self.folder, self.config, self.phantoms = folder, config, phantoms

    def train(self, cases: Sequence[Case], minutes: float, seed: int) -> None:
        """Prepare, and learn from the patients, starting from the network in the box."""
        clock = Clock(self.folder, minutes)
        fixed = () if self.phantoms else ("pretrained",)
        config = for_few_patients(self.config.with_(seed=seed), len(cases), False, fixed)
        preprocess_cohort(cases, self.folder / "preprocessed", config.spacing_mm)
        paths = sorted((self.folder / "preprocessed").glob("*.b2nd"))
        config = self._fitted(config, self._trial(config, paths), clock)
        checkpoints, reached = self.folder / "checkpoints", []

        def keep(history: list[dict]) -> None:  # what is on disk is the epoch before
            if reached:
                clock.snapshot(checkpoints / "last.pt", reached[-1])
            reached.append(clock.spent)

        train(config, paths, [], checkpoints, keep, describe_device(),
              WEIGHTS if config.pretrained else None)
        clock.snapshot(checkpoints / "last.pt")
        clock.finish(steps=EPOCHS * config.steps, pretrained=config.pretrained, patch=config.patch,
                     batch=config.batch, learning_rate=config.learning_rate)

    @staticmethod
    def _trial(config: Config, paths: Sequence[Path]) -> float:
        """Return the seconds of a step of a throwaway network, after its first steps."""
        device = describe_device()
        state, taken = new_state(config, device), []
        stream = batches(PatchDataset(paths, config.patch, config.oversample_foreground,
                                      config.seed), config.batch, 0, 10**6)
        while len(taken) < TRIAL_STEPS + 1 or sum(taken) < TRIAL_SECONDS:
            begin = time.monotonic()
            train_step(state, next(stream), config, device)
            taken.append(time.monotonic() - begin)
        return statistics.mean(taken[TRIAL_STEPS:])

    @staticmethod
    def _fitted(config: Config, seconds: float, clock: Clock) -> Config:
        """Fit the number of steps to the time left; validate only at the end."""
        steps = clock.steps(seconds)
        total = EPOCHS * steps
        # over a twentieth of the training, or random weights would count at its end
        ema = min(config.ema, max(0.0, 1 - 20 / total))
        if config.pretrained:  # as `for_few_patients` does for its own number of steps
            ema = KEPT ** (1 / total)
        return config.with_(epochs=EPOCHS, steps=steps, warmup=min(config.warmup, total // 10),
                            ema=ema, validate_every=EPOCHS)

    def probabilities(self, case: Case, snapshot: Path, views: bool) -> np.ndarray:
        """Return (3, X, Y, Z) of WT, TC and ET on the case's grid.

        views: take all eight mirrored ones.
        """
        model, config = load_checkpoint(snapshot, describe_device())
        return predict_prepared([model], prepare(read_case(case), config.spacing_mm), config.patch,
                                config.overlap, views)


class NnUNet:
    """Trains nnU-Net v2 with its own fingerprint, plans, preprocessing, trainer and predictor.

    filters: channels of a smaller network, set in the plans with our patch; None: its own plan.
    """

    def __init__(self, folder: Path, filters: Sequence[int] | None, patch: int, batch: int) -> None:
        self.folder, self.filters, self.patch, self.batch = folder, filters, patch, batch
        self.configuration = "3d_fullres" if filters is None else "3d_small"
        os.environ["nnUNet_n_proc_DA"] = str(max(1, cores() // 2))

    def train(self, cases: Sequence[Case], minutes: float, seed: int) -> None:
        """Run everything from fingerprint to last checkpoint; converting data does not count."""
        raw = nnunet_dataset(cases, self.folder, synthetic=False)
        clock = Clock(self.folder, minutes)
        seed_all(seed)
        self._prepare(raw)
        seconds = self._trial()
        seed_all(seed)
        trainer = self._trainer(raw, clock)
        trainer.num_iterations_per_epoch = clock.steps(seconds)
        trainer.run_training()
        clock.finish(steps=trainer.steps, seconds_a_step=seconds,
                     patch=trainer.configuration_manager.patch_size, batch=trainer.batch_size,
                     parameters=sum(p.numel() for p in trainer.network.parameters()))

    def _prepare(self, raw: Path) -> None:
        from nnunetv2.experiment_planning import plan_and_preprocess_api as api
        number, processes = int(raw.name[7:10]), cores()
        api.extract_fingerprints([number], num_processes=processes, show_progress_bar=False)
        api.plan_experiments([number])
        if self.filters:
            path = Path(os.environ["nnUNet_preprocessed"]) / raw.name / "nnUNetPlans.json"
            plans = json.loads(path.read_text())
            plans["configurations"]["3d_small"] = self._small(plans["configurations"]["3d_fullres"])
            write_json(path, plans)
        api.preprocess([number], configurations=("3d_fullres",), num_processes=(processes,),
                   show_progress_bar=False)

    def _small(self, planned: dict) -> dict:
        """Return a configuration with our number of levels, channels, patch and batch."""
        n = len(self.filters)
        architecture = json.loads(json.dumps(planned["architecture"]))
        architecture[
            "network_class_name"] = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
        architecture["arch_kwargs"] |= {"n_stages": n, "features_per_stage": list(self.filters),
                                        "kernel_sizes": [[3, 3, 3]] * n,
                                        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (n - 1),
                                        "n_conv_per_stage": [2] * n,
                                        "n_conv_per_stage_decoder": [2] * (n - 1)}
        return {**planned, "patch_size": [self.patch] * 3, "batch_size": self.batch,
                "architecture": architecture}

    def _trainer(self, raw: Path, clock: Clock | None):
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        class Trainer(nnUNetTrainer):
            """Stores weights after every epoch, and does not draw the network.

            The time of an epoch, with everything besides its steps, sets the length of the next.
            """

            steps = 0

            def on_epoch_start(self) -> None:
                super().on_epoch_start()
                self.begun = clock.spent

            def on_epoch_end(self) -> None:
                super().on_epoch_end()
                clock.snapshot(self.network.state_dict())
                self.steps += self.num_iterations_per_epoch
                if len(clock.notes) < EPOCHS:
                    seconds = 60 * (clock.spent - self.begun) / self.num_iterations_per_epoch
                    self.num_iterations_per_epoch = clock.steps(seconds)

            def plot_network_architecture(self) -> None:
                """Skip the drawing, which needs a program that may be missing."""

        prepared = Path(os.environ["nnUNet_preprocessed"]) / raw.name
        plans = {**json.loads((prepared / "nnUNetPlans.json").read_text()),
                 "continue_training": False}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        trainer = Trainer(plans, self.configuration, "all",
                          json.loads((raw / "dataset.json").read_text()), device)
        trainer.num_epochs, trainer.num_val_iterations_per_epoch = EPOCHS, 1
        return trainer

    def _trial(self) -> float:
        """Return the seconds of a step of a throwaway trainer, after its first steps."""
        trainer = self._trainer(next(Path(os.environ["nnUNet_raw"]).iterdir()), None)
        trainer.on_train_start()
        trainer.network.train()
        taken, started = [], time.monotonic()
        while len(taken) < TRIAL_STEPS + 1 or time.monotonic() - started < TRIAL_SECONDS:
            begin = time.monotonic()
            trainer.train_step(next(trainer.dataloader_train))
            taken.append(time.monotonic() - begin)
        trainer.on_train_end()
        # the later ones: batches made beforehand are used up
        return statistics.mean(taken[len(taken) // 2:])

    def probabilities(self, case: Case, snapshot: Path, views: bool) -> np.ndarray:
        """Return (3, X, Y, Z) of WT, TC and ET on the case's grid.

        views: take all eight mirrored ones, its default.
        """
        from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        raw = next((self.folder / "nnUNet_raw").iterdir())
        trainer = self._trainer(raw, None)
        trainer.initialize()
        device = trainer.device
        predictor = nnUNetPredictor(tile_step_size=0.5, use_mirroring=views, device=device,
                                    allow_tqdm=False)
        weights = torch.load(snapshot, map_location=device, weights_only=True)
        trainer.set_deep_supervision_enabled(False)
        predictor.manual_initialization(trainer.network, trainer.plans_manager,
                                        trainer.configuration_manager, [weights],
                                        trainer.dataset_json, "nnUNetTrainer", (0, 1, 2))
        image, properties = NibabelIO().read_images([str(path) for path in case.images])
        _, found = predictor.predict_single_npy_array(image, properties,
                                                      save_or_return_probabilities=True)
        return np.asarray(found, np.float32).transpose(0, 3, 2, 1)

    @staticmethod
    def labels(probabilities: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """Return labels 0 to 3 by nnU-Net's rule: paint the regions in order, each above a half."""
        labels = np.zeros(probabilities.shape[1:], np.uint8)
        # edema in WT, necrosis in TC, ET: `regions_class_order`
        for label, region in ((2, 0), (1, 1), (3, 2)):
            labels[probabilities[region] > 0.5] = label
        return labels


def read_training(folder: Path) -> dict | None:
    """Return what `Clock.finish` wrote, or None if the training has not finished."""
    path = folder / "training.json"
    return read_json(path, "the training") if path.is_file() else None
