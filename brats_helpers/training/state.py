"""The state of a training: weights, their average, optimizer, counters."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..basics.config import Config
from ..basics.device import Device
from ..evaluation.build import build_network, compile_for_training
from . import distributed

# Fields of State that a checkpoint stores as they are.
PLAIN_FIELDS = ("step", "best", "seconds", "losses", "history", "rate_factor")


@dataclass
class State:
    """Everything that changes during training, and so everything that a checkpoint holds."""

    model: nn.Module
    ema: AveragedModel  # exponential moving average of the weights
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    rate_factor: float = 1.0  # halved by each batch that was left out (`Config.on_nan`)
    seconds: float = 0.0  # of training, over all sessions
    best: float = -1.0  # mean validation Dice of the best checkpoint
    training_ranges: dict = field(default_factory=dict)  # `domain_shift.ranges` of the patients
    losses: list[float] = field(default_factory=list)  # of the current epoch
    history: list[dict] = field(default_factory=list)  # one record per epoch
    parallel: nn.Module = field(init=False)  # the model; its gradients are shared by all processes

    def __post_init__(self) -> None:
        self.parallel = distributed.parallel(self.model)

    def state_dict(self) -> dict:
        """Return the content of a checkpoint."""
        return {**{name: getattr(self, name) for name in PLAIN_FIELDS},
                "seen": self.training_ranges, "average": self.ema.module.state_dict(),
                "n_averaged": int(self.ema.n_averaged), "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, content: dict) -> None:
        """Load what `state_dict` returned."""
        self.model.load_state_dict(content["model"])
        self.ema.module.load_state_dict(content["average"])
        self.ema.n_averaged.fill_(content["n_averaged"])
        self.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"]:  # empty if the other device needed no loss scaling
            self.scaler.load_state_dict(content["scaler"])
        for name in PLAIN_FIELDS:
            setattr(self, name, content[name])


def new_state(config: Config, device: Device) -> State:
    """Build a network with random weights and its optimizer; the same for the same seed."""
    torch.manual_seed(config.seed)
    model = build_network(config, device)
    compile_for_training(model, device, config.epochs * config.steps)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate,
                                  weight_decay=config.weight_decay, fused=device.kind != "mps")
    scaler = torch.amp.GradScaler(device.kind, enabled=device.loss_scaling)
    return State(model, ema, optimizer, scaler)
