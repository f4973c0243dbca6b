"""Draw the README's pictures: the same slice of a synthetic test patient while the network trains.

`python docs/make_pictures.py --work runs/quick` needs the work folder of `make run` (notebooks
01 to 03). It repeats the quick preset's training of 500 steps, a few minutes on two cores, and
writes docs/forming.gif and docs/forming.png. Real patients are refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from brats_helpers.basics.config import Config  # noqa: E402
from brats_helpers.basics.constants import (  # noqa: E402
    LABEL_COLORS,
    LABEL_SHORT,
    NOT_FOR_DIAGNOSIS,
)
from brats_helpers.basics.device import describe_device, keep_memory  # noqa: E402
from brats_helpers.data.cases import Patient, read_case  # noqa: E402
from brats_helpers.data.cohort import read_cohort  # noqa: E402
from brats_helpers.evaluation.build import build_network  # noqa: E402
from brats_helpers.evaluation.checkpoints import load_checkpoint  # noqa: E402
from brats_helpers.evaluation.metrics import dice  # noqa: E402
from brats_helpers.evaluation.prediction import segment  # noqa: E402
from brats_helpers.training.loop import train  # noqa: E402
from brats_helpers.training.work_folder import training_files  # noqa: E402

EVERY, STEPS = 25, 500
STRIP = (0, 25, 100, 500)
WHO = f"synthetic patient, {NOT_FOR_DIAGNOSIS}"


def snapshots(work: Path, patient: Patient) -> dict[int, np.ndarray]:
    """Train as the quick preset does; return step -> labels (X, Y, Z) of the patient."""
    config, device = Config.load(work / "config.json"), describe_device()

    def labels(model: torch.nn.Module) -> np.ndarray:
        return segment([model], patient, config, tta=False, device=device)[0]

    torch.manual_seed(config.seed)
    masks = {0: labels(build_network(config, device))}
    config = config.with_(steps=EVERY, epochs=STEPS // EVERY)
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "last.pt"

        def segment_previous(history: list[dict]) -> None:
            """Segment with the checkpoint of the epoch before: this one's is written later."""
            if last.is_file():
                masks[history[-1]["step"] - EVERY] = labels(load_checkpoint(last, device)[0])

        training, *_ = training_files(config, work)
        train(config, training, [], last.parent, segment_previous, device)
        masks[STEPS] = labels(load_checkpoint(last, device)[0])
    return masks


def panel(ax: plt.Axes, image: np.ndarray, mask: np.ndarray, title: str) -> None:
    """Draw a slice with its labels in color."""
    low, high = np.percentile(image[image != 0], [0.5, 99.5])
    gray = np.clip((image - low) / (high - low), 0, 1) * (image != 0)
    shown = gray[..., None].repeat(3, -1)
    for label, color in LABEL_COLORS.items():
        rgb = np.array([int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)])
        shown[mask == label] = 0.35 * shown[mask == label] + 0.65 * rgb
    ax.imshow(shown, interpolation="bilinear")
    ax.set_title(title, fontsize=10)
    ax.set_axis_off()


def note(figure: Figure) -> None:
    """Name the colors and say that the patient is synthetic."""
    for i, (label, color) in enumerate(LABEL_COLORS.items()):
        figure.text(0.02 + 0.07 * i, 0.02, LABEL_SHORT[label], color=color, fontsize=9,
                    weight="bold")
    figure.text(0.98, 0.02, WHO, ha="right", fontsize=8, color="#555555")


def rendered(figure: Figure) -> Image.Image:
    """Return a figure as an image of few colors, which makes small files."""
    buffer = BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    return Image.open(buffer).convert("P", palette=Image.Palette.ADAPTIVE, colors=96)


def draw(masks: dict[int, np.ndarray], image: np.ndarray, reference: np.ndarray) -> None:
    """Write the moving picture and the strip."""
    z = int((reference > 0).sum((0, 1)).argmax())
    cut = [slice(a.min(), a.max() + 1) for a in np.nonzero(image[..., z])]
    slices = {step: mask[cut[0], cut[1], z].T for step, mask in masks.items()}
    gray, truth = image[cut[0], cut[1], z].T, reference[cut[0], cut[1], z].T
    scores = {step: dice(mask > 0, reference > 0) for step, mask in masks.items()}
    frames = []
    for step in sorted(masks):
        figure, (ax, right) = plt.subplots(1, 2, figsize=(6.4, 4.1), dpi=100)
        panel(ax, gray, slices[step], f"prediction after {step} steps: Dice {scores[step]:.2f}")
        panel(right, gray, truth, "reference")
        figure.subplots_adjust(0.01, 0.08, 0.99, 0.92, 0.03)
        note(figure)
        frames.append(rendered(figure))
    durations = [1500] + [200] * (len(frames) - 2) + [4000]
    frames[0].save(ROOT / "docs" / "forming.gif", save_all=True, append_images=frames[1:],
                   duration=durations, loop=0, optimize=True)
    figure, axes = plt.subplots(1, len(STRIP) + 1, figsize=(12, 3.3), dpi=150)
    for ax, step in zip(axes, STRIP, strict=False):
        panel(ax, gray, slices[step], f"{step} steps: Dice {scores[step]:.2f}")
    panel(axes[-1], gray, truth, "reference")
    figure.subplots_adjust(0.005, 0.08, 0.995, 0.92, 0.03)
    note(figure)
    rendered(figure).save(ROOT / "docs" / "forming.png", optimize=True)


def main() -> None:
    """Train, segment and draw."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--work", type=Path, default=ROOT / "runs" / "quick")
    options.add_argument("--patient", default="BraTS2021_90002", help="a synthetic test patient")
    chosen = options.parse_args()
    cohort = read_cohort(chosen.work)
    if not cohort.synthetic:
        sys.exit("Pictures of this project show synthetic patients only.")
    keep_memory()
    patient = read_case(cohort.by_name[chosen.patient])
    draw(snapshots(chosen.work, patient), patient.images[2], patient.reference)


if __name__ == "__main__":
    main()
