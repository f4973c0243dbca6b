"""Show what the network computes inside: a slice at every level, and a slice as it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..basics.constants import MODALITIES
from ..basics.device import Device
from ..data.preprocessing import Prepared, network_input, slice_with_most_tumor
from ..network.unet import UNet
from .plots import add_letters, finish, window

SLAB = 32  # slices that the network gets, the shown one in the middle
SHOWN = 2  # channels of a level
FLAIR = MODALITIES.index("flair")


@torch.inference_mode()
def feature_maps(model: UNet, prepared: Prepared, device: Device) -> dict[str, np.ndarray]:
    """Compute a slice of the activations of every level: {"encoder 0": (C, H, W), ...}.

    Also "input" (5, H, W) and "output", the probabilities (3, H, W). The slice is the one with most
    tumor; the network gets the slab around it, padded to sizes that its levels can halve.
    """
    edge = 2 ** (len(model.encoder) - 1)
    at, (height, width) = slice_with_most_tumor(prepared.reference, 0), prepared.volume.shape[2:]
    image = F.pad(network_input(prepared, device), (0, -width % edge, 0, -height % edge,
                                                    SLAB // 2, SLAB // 2))[:, at:at + SLAB]
    found = {"input": image}

    def watch(name: str) -> Callable[..., None]:
        return lambda _, __, output: found.update({name: output[0]})

    stages = {f"encoder {n}": stage for n, stage in enumerate(model.encoder)}
    stages |= {f"decoder {len(model.decoder) - 1 - n}": s for n, s in enumerate(model.decoder)}
    hooks = [stage[-1][-1].register_forward_hook(watch(name)) for name, stage in stages.items()]
    try:
        found["output"] = torch.sigmoid(model.eval()(image[None]))[0]
    finally:
        for hook in hooks:
            hook.remove()
    middle = {name: maps[:, maps.shape[1] // 2] for name, maps in found.items()}
    return {name: maps[:, :ceil(height * maps.shape[1] / image.shape[2]),
                       :ceil(width * maps.shape[2] / image.shape[3])].float().cpu().numpy()
            for name, maps in middle.items()}


def draw_features(maps: Mapping[str, np.ndarray], synthetic: bool = False) -> Figure:
    """Draw `feature_maps` as a U: the encoder on the left, the decoder on the right."""
    levels = sum(name.startswith("encoder") for name in maps)
    figure, axes = plt.subplots(levels, 2 * SHOWN + 2, figsize=(9.6, 2 * levels))
    for ax in axes.flat:
        ax.set_axis_off()
    flair = maps["input"][FLAIR]
    _show(axes[0, 0], np.where(maps["input"][-1] > 0, flair, flair.min()), "input\nFLAIR")
    add_letters(axes[0, 0], "axial")
    _show(axes[0, -1], maps["output"][0], "output\nprobability of WT", (0, 1))
    for level in range(levels):
        bottom = level == levels - 1  # in the middle, where both sides meet
        for side, first in (("encoder", 1 + bottom), ("decoder", 1 + SHOWN))[:2 - bottom]:
            found = maps[f"{side} {level}"]
            size = " x ".join(map(str, found.shape[1:]))
            for column, channel in enumerate(most_varied(found)):
                above = "" if column else f"{side} {level}: {size}"
                _show(axes[level, first + column], found[channel],
                      f"{above}\nchannel {channel} of {len(found)}")
    sizes = ", ".join(f"{name} {'x'.join(map(str, found.shape))}" for name, found in maps.items())
    return finish(figure, synthetic, prediction=True, alt="Feature maps of one slice of the "
                  f"patient at every level of the network; channels x height x width: {sizes}")


def most_varied(maps: np.ndarray) -> np.ndarray:
    """Return the numbers of the channels of (C, H, W) that vary most over the slice."""
    return np.sort(np.argsort(maps.std((1, 2)))[::-1][:SHOWN])


def _show(ax: Axes, image: np.ndarray, title: str, limits: tuple[float, float] | None = None
          ) -> None:
    low, high = limits or np.percentile(image, [1, 99])
    ax.imshow(image, cmap="gray", vmin=low, vmax=high)
    ax.set_title(title, fontsize=8.5)


def draw_forming(prepared: Prepared, found: Mapping[int, np.ndarray],
                 synthetic: bool = False) -> Figure:
    """Draw the probability of the whole tumor after some steps, from `read_forming`."""
    at = slice_with_most_tumor(prepared.reference, axis=0)
    flair, truth = prepared.volume[FLAIR, at], prepared.reference[at] > 0
    figure, axes = plt.subplots(1, len(found) + 1, figsize=(9.6, 2.7), squeeze=False)
    low, high = window(flair)
    axes[0, 0].imshow(np.where(flair == 0, low, flair), cmap="gray", vmin=low, vmax=high)
    axes[0, 0].set_title("FLAIR and reference")
    add_letters(axes[0, 0], "axial")
    for ax, (step, probabilities) in zip(axes[0, 1:], found.items(), strict=True):
        drawn = ax.imshow(probabilities[0] * (flair != 0), cmap="magma", vmin=0, vmax=1)
        ax.set_title(f"after {step} steps")
    for ax in axes[0]:
        ax.contour(truth, [0.5], colors="white", linewidths=0.8)
        ax.set_axis_off()
    if found:
        bar = figure.colorbar(drawn, ax=axes[0].tolist(), shrink=0.7, ticks=(0, 0.5, 1))
        bar.set_label("probability of WT")
    steps = ", ".join(map(str, found))
    then = f", and the probability of the whole tumor after {steps} steps" if found else ""
    return finish(figure, synthetic, prediction=True, alt=f"One slice of {prepared.meta.name}: "
                  f"FLAIR{then}, with the outline of the reference")
