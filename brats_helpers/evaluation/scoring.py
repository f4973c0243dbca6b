"""Evaluate a checkpoint: segment held-out patients, write masks and scores, and a model card."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from torch import nn
from tqdm import tqdm

from ..basics.config import OWN_NETWORK, Config
from ..basics.constants import CHANNELS, NOT_FOR_DIAGNOSIS, REGION_TITLES, REGIONS
from ..basics.device import Device
from ..basics.errors import BratsError
from ..basics.files import remove_leftovers, write_file, write_json
from ..basics.shapes import read_json_as
from ..data.cases import Case, Patient, read_case, write_mask
from ..data.labels import as_written, lookup
from ..data.nifti import open_image
from ..data.pipeline import content_hash
from ..network.unet import count_parameters
from .build import for_inference
from .checkpoints import USUAL, hash_weights, network_of, read_checkpoint
from .metrics import SCORES, average_scores, interval_text, score_case
from .postprocessing import POSTPROCESSING
from .prediction import passes, segment
from .pretrained import fine_tuned, load_refiner, refiner_settings

# The shape of predictions/scores.json.
STORED = {"tag": str, "rows": {...: {"source": str, "scores": dict}}}
CARD = """# Model card: brain tumor segmentation, {checkpoint}

**{warning}.** This is not a medical device and is not approved for clinical use.

**Overview.** {network} with {parameters:,} parameters. In a brain scan, it outlines
three regions: {regions}.

**Data.** Trained on {training_cases} {data}; preset {preset}, seed {seed}.

**Preprocessing.** Crop to the brain, voxels of {spacing:g} mm, z-score of each modality over the
brain.

**Hardware.** {device}, {seconds:.0f} s of training; patches of {patch} voxels per edge.

**Input channels.** {channels}. **Output channels.** {regions}, as probabilities.

**Performance** on {cases} {which} patients that were not used for training:

| region | Dice (95% interval) | HD95, mm |
|---|---|---|
{results}

**Limits.** {limits}
The interval covers variation between patients, not between training runs. Check every mask before
you rely on it.

**Determinism.** The same seed gives the same weights, bit for bit, on the same kind of CPU.

**Use.** `python -m brats_helpers predict PATIENT_FOLDER --checkpoint {checkpoint} --out masks`
"""


def evaluate(cases: Sequence[Case], checkpoint: Path, work: Path, config: Config, which: str,
             device: Device, left_out: Sequence[str] = ()) -> dict:
    """Segment and score patients with a reference; write predictions/ and metrics.json.

    `which` names their set, "test" or "validation"; `left_out` lists patients with problems, for
    the record. Patients that the same weights scored before a stop are not scored again. Returns
    the metrics. BratsError without patients, or if one has no reference.
    """
    if not cases:
        raise BratsError("there is no patient to evaluate on: see notebook 02's split.")
    model, trained = network_of(read_checkpoint(checkpoint, device), checkpoint, device)
    trained = trained.with_(tta=config.tta, overlap=config.overlap)
    last = read_checkpoint(Path(checkpoint).with_name("last.pt"), device, (*USUAL, "seconds"))
    rows = _score_all(cases, model, trained, Path(work), device)
    metrics = {
        "cases": len(rows), "left_out": list(left_out), "set": which,
        "checkpoint": Path(checkpoint).name,
        **average_scores(rows), "per_case": rows,
        "preset": trained.preset, "seed": trained.seed, "parameters": count_parameters(model),
        "train_seconds": round(last["seconds"], 1)}
    write_json(Path(work) / "metrics.json", metrics)
    return metrics


def write_model_card(path: Path, metrics: dict, config: Config, training_cases: int,
                     synthetic: bool, device: Device) -> str:
    """Write and return a description of a checkpoint, in the order of MONAI's model zoo."""
    data, limits = "patients of the given source", ""
    if config.pretrained:
        data += ", starting from the network in the box, which learned from synthetic patients"
    if synthetic:
        data = "synthetic patients (MNI152 anatomy, modeled tumors)"
        limits = "It has never seen a real patient, and it was not tested on one. "
    limits += (("Its phantoms imitate" if synthetic else "It is meant for")
               + " adult glioma before treatment, in skull-stripped and "
               "co-registered FLAIR, T1, T1CE and T2. Its quality on other scanners, hospitals, "
               "ages or diseases is unknown.")
    results = "\n".join(
        f"| {name} | {metrics['dice'][name]:.3f} ({interval_text(metrics['dice_ci95'][name])}) | "
        f"{metrics['hd95_mm'][name]:.2f} |" for name in REGIONS)
    text = CARD.format(
        warning=NOT_FOR_DIAGNOSIS.capitalize(), network=_network_title(config), data=data,
        limits=limits, results=results, training_cases=training_cases, device=device.name,
        regions=", ".join(REGION_TITLES.values()), channels=", ".join(CHANNELS),
        preset=metrics["preset"], seed=metrics["seed"], parameters=metrics["parameters"],
        checkpoint=metrics["checkpoint"], cases=metrics["cases"], which=metrics["set"],
        seconds=metrics["train_seconds"], spacing=config.spacing_mm, patch=config.patch)
    write_file(path, text)
    return text


def _network_title(config: Config) -> str:
    if config.network != OWN_NETWORK:
        return f"The network {config.network}"
    return f"A U-Net of {len(config.filters)} levels (Futrega et al. 2021, arXiv:2110.03352)"


def read_prediction(case: Case, work: Path) -> tuple[Patient, np.ndarray]:
    """Read a patient and the mask that `evaluate` wrote: labels 0 to 3, (X, Y, Z) uint8.

    BratsError if the mask cannot be read or does not have the scan's shape.
    """
    patient, path = read_case(case), _mask_path(work, case.name)
    labels = read_mask(path, case)
    if labels.shape != patient.images.shape[1:]:
        raise BratsError(f"{path} has the shape {labels.shape}, and patient {case.name}'s scan "
                         f"{patient.images.shape[1:]}: evaluate this patient again.")
    return patient, labels


def read_mask(path: Path, case: Case) -> np.ndarray:
    """Read a mask that `write_mask` wrote for a case: labels 0 to 3, (X, Y, Z) uint8."""
    try:
        labels = np.asanyarray(nib.load(path).dataobj).astype(np.uint8)
    except (OSError, EOFError, zlib.error, ImageFileError) as error:
        raise BratsError(f"{path} cannot be read ({error}): move it away, and evaluate this "
                         "patient again.") from error
    return lookup(as_written(case))[labels]


def _mask_path(work: Path, name: str) -> Path:
    return Path(work) / "predictions" / f"{name}.nii.gz"


def verify_masks(cases: Sequence[Case], work: Path) -> None:
    """Assert that each mask has its scan's geometry, BraTS's labels, and one byte per voxel."""
    for case in cases:
        scan, mask = open_image(case, case.images[0]), nib.load(_mask_path(work, case.name))
        assert mask.shape == scan.shape[:3] and np.allclose(mask.affine, scan.affine), case.name
        assert set(np.unique(mask.dataobj)) <= {0, *as_written(case)}, case.name
        assert mask.get_data_dtype() == np.uint8, case.name


def _score_all(cases: Sequence[Case], model: nn.Module, config: Config, work: Path,
               device: Device) -> list[dict]:
    remove_leftovers(work / "predictions")
    notes = work / "predictions" / "scores.json"
    refiner = load_refiner(device) if fine_tuned(config) else None  # as in `predict`
    tag = " ".join(map(str, (hash_weights(model.state_dict()), config.tta, config.overlap,
                             POSTPROCESSING, *SCORES, *refiner_settings(refiner))))
    before = read_json_as(notes, "notebook 05", STORED) if notes.is_file() else {"rows": {}}
    done = before["rows"] if before.get("tag") == tag else {}
    for name in set(before["rows"]) - {case.name for case in cases}:
        _mask_path(work, name).unlink(missing_ok=True)  # this patient is no longer evaluated
    network = for_inference(model, device, passes(len(cases), config.tta))
    for case in tqdm(cases, desc="evaluate", unit="patient"):
        target, source = _mask_path(work, case.name), content_hash(case, config.spacing_mm)
        if done.get(case.name, {}).get("source") == source and target.is_file():
            continue
        patient = read_case(case)
        if patient.reference is None:
            raise BratsError(f"patient {case.name} has no reference to be scored against: use "
                             "`predict` for it.")
        labels, _ = segment([network], patient, config, device=device, refiner=refiner)
        write_mask(target, labels, patient.affine, case)
        scores = score_case(labels, patient.reference, patient.spacing)
        done[case.name] = {"source": source, "scores": scores}
        write_json(notes, {"tag": tag, "rows": done})
    return [{"name": case.name, **done[case.name]["scores"]} for case in cases]
