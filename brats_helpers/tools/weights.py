"""Train the network in the box on varied phantoms alone: no patient's data goes into it.

`make weights` takes hours on two cores, resumes where it was stopped, and gives the same weights
again on the same processor. docs/zero_shot.md tells what they are worth.
"""

from __future__ import annotations

from pathlib import Path

from ..basics.config import preset
from ..basics.device import describe_device
from ..evaluation.checkpoints import read_checkpoint, write_safetensors
from ..evaluation.pretrained import WEIGHTS
from ..phantoms.prepared import prepare_varied
from ..training.loop import train

TRAINING, VALIDATION = 420, 12  # phantoms
CONFIG = preset("quick").with_(
    seed=21, filters=(16, 32, 64, 128), patch=64, epochs=40, steps=100, learning_rate=3e-3,
    warmup=100, ema=0.995, oversample_foreground=0.5, modality_dropout=0.4, validate_every=20,
    patients=TRAINING, test_patients=0)


def make_weights(work: Path, target: Path = WEIGHTS) -> Path:
    """Make the phantoms, train, and write the averaged weights as safetensors to `target`."""
    files = prepare_varied(work / "preprocessed", TRAINING + VALIDATION, CONFIG.seed,
                           CONFIG.spacing_mm)
    train(CONFIG, files[:TRAINING], files[TRAINING:], work / "checkpoints", synthetic=True)
    content = read_checkpoint(work / "checkpoints" / "last.pt", describe_device())
    kept = ("average", "seen", "step")
    write_safetensors(target, CONFIG, {name: content[name] for name in kept})
    return target
