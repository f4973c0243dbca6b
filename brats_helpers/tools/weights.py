"""Train the networks in the box on varied phantoms alone: no patient's scan or label.

`make weights` resumes where it was stopped, and gives the same weights again on the same processor.
It drops the figures and the warning threshold in the refiner's first file until
`benchmarks.zero_shot --store` writes them back. docs/zero_shot.md shows how well they score.
"""

from __future__ import annotations

from pathlib import Path

from ..basics.config import Config, preset
from ..basics.device import describe_device
from ..evaluation.checkpoints import read_checkpoint, write_safetensors
from ..evaluation.pretrained import REFINER_WEIGHTS, WEIGHTS
from ..phantoms.prepared import prepare_varied
from ..training.loop import train

VALIDATION = 12  # phantoms
CONFIG = preset("quick").with_(
    seed=21, filters=(16, 32, 64, 128), patch=64, epochs=90, steps=100, learning_rate=3e-3,
    warmup=100, ema=0.995, oversample_foreground=0.5, modality_dropout=0.4, validate_every=20,
    patients=1000, test_patients=0)
# Networks that are trained differently make different mistakes. The first starts from random
# weights, the second from the network in the box, with more patches that show tumor.
REFINERS = (CONFIG.with_(spacing_mm=1.5, epochs=40, patients=420),
            CONFIG.with_(spacing_mm=1.5, epochs=42, learning_rate=2e-3, oversample_foreground=0.8,
                         validate_every=21))


def make_weights(work: Path) -> list[Path]:
    """Train all networks in `work`, and write their weights into the package."""
    first = _make(CONFIG, work, WEIGHTS)
    return [first, *(_make(config, work, path, start) for config, path, start in
                     zip(REFINERS, REFINER_WEIGHTS, (None, WEIGHTS), strict=True))]


def _make(config: Config, work: Path, target: Path, start: Path | None = None) -> Path:
    """Make the phantoms, train, and write the averaged weights to `target`."""
    files = prepare_varied(work / "preprocessed", config.patients + VALIDATION, config.seed,
                           config.spacing_mm)
    folder = work / target.stem
    train(config, files[:config.patients], files[config.patients:], folder, start=start,
          synthetic=True)
    content = read_checkpoint(folder / "last.pt", describe_device())
    kept = {name: content[name] for name in ("average", "seen", "step")}
    if target in REFINER_WEIGHTS:  # half precision is enough: no training follows
        kept["average"] = {name: value.half() for name, value in kept["average"].items()}
    write_safetensors(target, config, kept)
    return target
