"""From a trained network to a segmentation: windows, flips, post-processing, files.

Windows overlap and are weighted by a Gaussian (Isensee et al. 2021), eight flips are averaged as
probabilities, and thresholds and small components follow Futrega et al. 2021 (arXiv:2110.03352,
section 3.5).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn
from tqdm import tqdm

from .augment import normalise_batch
from .cases import Patient, find_cases, read_case, write_mask
from .checkpoints import network_of, read_checkpoint
from .config import Config
from .constants import ED, ET, NCR, REGION_THRESHOLDS, SMALL_COMPONENT_MM3, SMALL_PROBABILITY, SMALL_TOTAL_MM3
from .device import Device, describe_device
from .errors import BratsError
from .networks import first, for_inference
from .preprocessing import Prepared, brain_box, brain_mask, prepare, restore
from .shift import unlike, widest

FLIPS = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)]      # all 8, none first
EVEN_FLIPS = [axes for axes in FLIPS if len(axes) % 2 == 0]      # half of them, in which each axis is mirrored half the time
POSTPROCESSING = (REGION_THRESHOLDS, SMALL_COMPONENT_MM3, SMALL_TOTAL_MM3, SMALL_PROBABILITY)
WINDOWS = 8                                           # of a patient at 1 mm
VIEWS_AT_ONCE = 2                                     # that a GPU is given as one batch (benchmarks/README.md)
SIGMA = 1 / 8                                         # of the Gaussian weight, in window edges


def window_starts(length: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis: evenly spread, overlapping by at least that share."""
    if length <= patch:
        return [0]
    count = int(np.ceil((length - patch) / max(1, patch * (1 - overlap)))) + 1
    return [round(i * (length - patch) / (count - 1)) for i in range(count)]


def gaussian_weight(patch: int) -> Tensor:
    """The weight of each voxel of a window, (P, P, P): 1 at the centre, and never below 0.001, as MONAI's."""
    axis = torch.exp(-0.5 * ((torch.arange(patch) - (patch - 1) / 2) / (patch * SIGMA)) ** 2)
    return torch.einsum("i,j,k->ijk", axis, axis, axis).clamp_min(1e-3)


@torch.inference_mode()
def sliding_window(model: nn.Module, image: Tensor, patch: int, overlap: float, flips: Sequence[tuple] = ((),),
                   device: Device | None = None) -> Tensor:
    """Probabilities of the three regions, (3, D, H, W) float32, averaged over windows and flips.

    image (5, D, H, W), z-scored; smaller volumes are padded with background to one window. The result lies where image does.
    """
    device = device or describe_device()
    shape, home = image.shape[1:], image.device
    image = F.pad(image, [p for s in reversed(shape) for p in (0, max(0, patch - s))]).to(device.torch_device)
    weight = gaussian_weight(patch).to(image.device)
    total = torch.zeros(3, *image.shape[1:], device=image.device)
    norm = torch.zeros(image.shape[1:], device=image.device)
    for corner in itertools.product(*(window_starts(s, patch, overlap) for s in image.shape[1:])):
        place = (slice(None), *(slice(c, c + patch) for c in corner))
        total[place] += weight * flip_average(model, image[place][None], flips, device)[0]
        norm[place[1:]] += weight
    return (total / norm)[:, :shape[0], :shape[1], :shape[2]].to(home)


def flip_average(model: nn.Module, x: Tensor, flips: Sequence[tuple], device: Device) -> Tensor:
    """Probabilities (1, 3, D, H, W), the mean over mirrored views of x (1, 5, D, H, W), each mirrored back."""
    views, at_once = [], VIEWS_AT_ONCE if device.kind == "cuda" else 1
    for some in (flips[i:i + at_once] for i in range(0, len(flips), at_once)):
        with device.autocast():
            logits = first(model(torch.cat([x.flip(axes) if axes else x for axes in some])))
        views += [view.flip(axes) for view, axes in zip(torch.sigmoid(logits.float()).split(1), some, strict=True)]
    return torch.stack(views).mean(0)


def predict_prepared(models: Sequence[nn.Module], prepared: Prepared, patch: int, overlap: float, tta: bool,
                     device: Device | None = None) -> np.ndarray:
    """Probabilities (3, X, Y, Z) float32 on the scan's own grid, averaged over the models (the folds).

    tta: all 8 mirrored views instead of 4, which take half of the time (benchmarks/README.md has what that costs).
    """
    device = device or describe_device()
    images, mean, std = (torch.from_numpy(np.ascontiguousarray(a))[None].to(device.torch_device) for a in (
        prepared.volume[:4], np.float32(prepared.meta.mean), np.float32(prepared.meta.std)))
    image = normalise_batch(images, mean, std)[0]
    flips = FLIPS if tta else EVEN_FLIPS
    total = sum(sliding_window(model.eval(), image, patch, overlap, flips, device) for model in models)
    inside = total / len(models) * image[4]           # what is not brain is not tumor
    return np.asarray(restore(inside.cpu().numpy(), prepared.meta))


def postprocess(probabilities: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Labels 0 to 3, (X, Y, Z) uint8, from probabilities (3, X, Y, Z) of WT, TC and ET.

    A chain of thresholds: not WT, background; else not TC, edema; else not ET, necrosis; else ET.
    Then ET that is too small and too unsure becomes necrosis, by component and as a whole.
    """
    found = np.zeros(probabilities.shape[1:], np.uint8)
    tumor = probabilities[0] >= REGION_THRESHOLDS["WT"]
    if not tumor.any():
        return found
    box = tuple(slice(*edge) for edge in brain_box(tumor))                # all that follows happens inside
    labels, (whole, core, enhancing) = found[box], probabilities[:, *box]
    labels[:] = np.where(enhancing < REGION_THRESHOLDS["ET"], NCR, ET)
    labels[core < REGION_THRESHOLDS["TC"]] = ED
    labels[whole < REGION_THRESHOLDS["WT"]] = 0
    voxel = float(np.prod(spacing_mm))                # mm3
    components, count = ndimage.label(labels == ET, structure=np.ones((3, 3, 3)))
    if count:
        sizes = np.bincount(components.ravel())[1:] * voxel
        means = ndimage.mean(enhancing, components, np.arange(1, count + 1))
        doubtful = np.flatnonzero((sizes < SMALL_COMPONENT_MM3) & (means < SMALL_PROBABILITY)) + 1
        labels[np.isin(components, doubtful)] = NCR
    rest = labels == ET
    if 0 < rest.sum() * voxel < SMALL_TOTAL_MM3 and enhancing[rest].mean() < SMALL_PROBABILITY:
        labels[rest] = NCR
    return found


def passes(patients: int, tta: bool) -> int:
    """About how often a network runs to segment so many patients."""
    return patients * WINDOWS * len(FLIPS if tta else EVEN_FLIPS)


def segment(models: Sequence[nn.Module], patient: Patient, config: Config, tta: bool | None = None,
            device: Device | None = None, seen: Mapping[str, Sequence[float]] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels (X, Y, Z) and probabilities (3, X, Y, Z) of a patient, on the scan's own grid.

    seen: what the patients of the training looked like (`shift.ranges`); a patient who is unlike them brings a warning.
    """
    prepared = prepare(patient, config.spacing_mm)
    if strange := unlike(prepared.meta.figures, seen or {}):
        tqdm.write(f"WARNING: patient {patient.name} is unlike those that the network learnt from, and the mask may be "
                   f"wrong: {'; '.join(strange[:3])}. Look at the scans, then at the mask.")
    probabilities = predict_prepared(models, prepared, config.patch, config.overlap,
                                     config.tta if tta is None else tta, device)
    labels = postprocess(probabilities, patient.spacing)
    return labels * brain_mask(patient.images), probabilities     # interpolation may reach a voxel out of the brain


def predict_cases(folders: Sequence[Path], checkpoints: Sequence[Path], out: Path, tta: bool = False) -> Iterator[Path]:
    """Segment every patient in these folders into `out`/<case>.nii.gz, labels 0, 1, 2, 4, the input's geometry.

    Several checkpoints are averaged. Yields each file when it is complete.
    """
    device = describe_device()
    contents = [read_checkpoint(path, device) for path in checkpoints]
    loaded = [network_of(content, path, device) for content, path in zip(contents, checkpoints, strict=True)]
    seen = widest([content.get("seen", {}) for content in contents])
    if not seen:
        tqdm.write("What the patients of this training looked like was not stored, or they were too few: whether yours are "
                   "like them is not checked.")
    config = loaded[0][1]
    if any((other.spacing_mm, other.patch) != (config.spacing_mm, config.patch) for _, other in loaded):
        raise BratsError("these checkpoints work at different voxel sizes or patches and cannot be averaged: give those "
                         "of one cross-validation.")
    cases = [case for folder in folders for case in find_cases(Path(folder))]
    if twice := sorted({case.name for case in cases if sum(other.name == case.name for other in cases) > 1}):
        raise BratsError(f"two patients are called {', '.join(twice)}: their masks would overwrite each other.")
    models = [for_inference(model, device, passes(len(cases), tta)) for model, _ in loaded]
    for case in tqdm(cases, desc="predict", unit="patient"):
        patient = read_case(case)
        labels, _ = segment(models, patient, config, tta, device, seen)
        target = Path(out) / f"{case.name}.nii.gz"
        write_mask(target, labels, patient.affine, case)
        yield target
