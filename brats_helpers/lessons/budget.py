"""Improve a network on patients that it does not know, with two minutes to spend.

A plan changes some settings. It is scored on practice patients, who may be looked at as often as
time allows, or on test patients; a `Lab` records these looks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..basics.config import Config
from ..basics.constants import ED, ET, NCR, REGION_THRESHOLDS
from ..basics.device import Device
from ..basics.errors import BratsError
from ..data.cases import Patient
from ..data.loaders import PatchDataset, batches
from ..data.preprocessing import (
    largest_component,
    network_input,
    normalize_batch,
    prepare,
    restore,
)
from ..data.storage import save_prepared
from ..evaluation.metrics import dice, regions
from ..evaluation.sliding_window import (
    FLIPS,
    OPPOSITE_FLIPS,
    STRETCH,
    sliding_window_inference,
)
from ..network.losses import labels_to_regions
from ..phantoms.kinds import make_patient
from ..training.state import new_state
from ..training.step import train_step

BUDGET_S = 120.0
# no training, one view, the usual threshold, every component kept
DEFAULT_PLAN = {"steps": 0, "augment": True, "views": 1, "threshold": REGION_THRESHOLDS["WT"],
                "largest": False}
VIEWS = {1: [()], 2: OPPOSITE_FLIPS, 8: FLIPS}
LEARNED, PRACTICE, SEED, FIRST = 3, 3, 9, 4  # phantoms to learn from, to choose on; their numbers
WARMUP = 5  # steps


class Lab:
    """A lab that trains on strangers, scores plans on others, and counts time and test looks."""

    def __init__(self, model: nn.Module, config: Config, device: Device, test: Sequence[Patient],
                 kind: str) -> None:
        self.model, self.config, self.device = model, config, device
        self.kind, self.test = kind, list(test)
        self.spent = 0.0  # seconds of training and of segmenting
        self.tried: list[tuple[str, dict, float]] = []  # "practice" or "test", the plan, its Dice
        self.learned: list[Patient] = []
        self.practice: list[Patient] = []
        self.kept: dict[tuple, object] = {}  # networks and probabilities, which cost nothing again

    def score(self, plan: Mapping[str, object], who: str = "practice") -> float:
        """Return the mean Dice of WT, TC and ET of a plan; NaN if it needs time that is used up."""
        plan = complete(plan)
        if who not in ("practice", "test"):
            raise BratsError(f'who={who!r}: give "practice" or "test".')
        if _key(plan, who) not in self.kept and self.spent >= BUDGET_S:
            print("The two minutes are used up: choose among the plans that you have tried.")
            return float("nan")
        found = self.judge(plan, who)
        self.tried.append((who, plan, found))
        print(f"{describe_plan(plan)}: Dice {found:.3f} on {who} patients; "
              f"{max(0.0, BUDGET_S - self.spent):.0f} s are left")
        return found

    def judge(self, plan: Mapping[str, object], who: str) -> float:
        """Return the score of a plan without recording it."""
        if not self.practice:
            numbers = tqdm(range(FIRST, FIRST + LEARNED + PRACTICE), "strangers", leave=False)
            made = [make_patient(SEED, n, self.config.spacing_mm, self.kind) for n in numbers]
            self.learned, self.practice = made[:LEARNED], made[LEARNED:]
        begin = time.perf_counter()
        patients = self.practice if who == "practice" else self.test
        key = _key(plan, who)
        if key not in self.kept:
            network = self.trained(plan["steps"], plan["augment"])
            self.kept[key] = [self._probabilities(network, p, plan["views"]) for p in patients]
        self.spent += time.perf_counter() - begin
        pairs = zip(self.kept[key], patients, strict=True)
        return float(np.mean([[dice(*pair) for pair in zip(
            regions(labels_of(found, plan)), regions(patient.reference), strict=True)]
            for found, patient in pairs]))

    def trained(self, steps: int, augment: bool) -> nn.Module:
        """Return the network after some more steps on the strangers to learn from.

        Training ends early when the time is used up.
        """
        if not steps:
            return self.model.eval()
        if (steps, augment) not in self.kept:
            self.kept[steps, augment] = self._train(steps, augment)
        return self.kept[steps, augment]

    def _train(self, steps: int, augment: bool) -> nn.Module:
        config = self.config.with_(epochs=1, steps=steps, warmup=min(WARMUP, steps))
        state = new_state(config, self.device)
        state.model.load_state_dict(self.model.state_dict())
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{n}.b2nd" for n in range(len(self.learned))]
            for path, patient in zip(paths, self.learned, strict=True):
                save_prepared(prepare(patient, config.spacing_mm), path)
            stream = PatchDataset(paths, config.patch, config.oversample_foreground, config.seed)
            end = time.perf_counter() + BUDGET_S - self.spent
            for batch in tqdm(batches(stream, config.batch, 0, steps), "learn", steps, leave=False):
                if not augment:
                    batch["prepared"] = _as_it_is(batch, self.device)
                train_step(state, batch, config, self.device)
                if time.perf_counter() > end:
                    break
        return state.model.eval()

    def _probabilities(self, network: nn.Module, patient: Patient, views: int) -> np.ndarray:
        prepared = prepare(patient, self.config.spacing_mm)
        image = network_input(prepared, self.device)
        found = sliding_window_inference(network, image, self.config.patch, self.config.overlap,
                                         VIEWS[views], self.device, STRETCH) * image[4]
        return restore(found.cpu().numpy(), prepared.meta)


def _key(plan: Mapping[str, object], who: str) -> tuple:
    return who, plan["steps"], plan["augment"], plan["views"]


def _as_it_is(batch: Mapping[str, object], device: Device) -> tuple[torch.Tensor, torch.Tensor]:
    """Prepare a batch without augmentation."""
    volume, mean, std = (batch[key].to(device.torch_device) for key in ("volume", "mean", "std"))
    return normalize_batch(volume[:, :4], mean, std), labels_to_regions(volume[:, 4:])


def complete(plan: Mapping[str, object]) -> dict[str, object]:
    """Fill in a plan's other settings with their defaults; BratsError names an unknown one."""
    if unknown := sorted(set(plan) - set(DEFAULT_PLAN)):
        raise BratsError(f"a plan has no {', '.join(unknown)}; it may set: "
                         f"{', '.join(DEFAULT_PLAN)}.")
    plan = DEFAULT_PLAN | dict(plan)
    if plan["views"] not in VIEWS:
        raise BratsError(f"views={plan['views']!r}: give 1, 2 or 8.")
    return plan


def describe_plan(plan: Mapping[str, object]) -> str:
    """Name the settings that differ from the default."""
    changed = {name: value for name, value in plan.items() if value != DEFAULT_PLAN[name]}
    return ", ".join(f"{name} {value}" for name, value in changed.items()) or "nothing changed"


def labels_of(probabilities: np.ndarray, plan: Mapping[str, object]) -> np.ndarray:
    """Turn probabilities (3, X, Y, Z) into labels by a plan's threshold and largest piece."""
    whole, core, enhancing = probabilities
    inner = np.where(enhancing < REGION_THRESHOLDS["ET"], NCR, ET)
    labels = np.where(core < REGION_THRESHOLDS["TC"], ED, inner)
    labels = np.where(whole < plan["threshold"], 0, labels)
    return labels * largest_component(labels > 0) if plan["largest"] and labels.any() else labels
