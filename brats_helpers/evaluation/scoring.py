"""The last step: every held-out patient segmented, written, scored on the scan's own grid, and summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from torch import nn
from tqdm import tqdm

from ..basics.config import OWN_NETWORK, Config
from ..basics.constants import CHANNELS, DISK_LABELS, NOT_FOR_DIAGNOSIS, REGION_TITLES, REGIONS
from ..basics.device import Device
from ..basics.errors import BratsError
from ..basics.files import atomic_path, read_json, remove_leftovers, write_json
from ..data.cases import Case, Patient, open_scan, read_case, read_reference, write_mask
from ..data.pipeline import fingerprint
from ..network.unet import count_parameters
from ..training.stages import FOLDER as PRETRAINING
from .build import build_network, for_inference
from .checkpoints import load_weights, read_checkpoint, weights_tag
from .metrics import interval_text, score_case, summarize
from .postprocessing import POSTPROCESSING
from .prediction import passes, segment

CARD = """# Model card: brain tumor segmentation, {checkpoint}

**{warning}.** It is no medical device, and nobody has approved it for use on patients.

**Overview.** {network}, with {parameters:,} parameters, which outlines {regions} in a
brain scan.

**Data.** {learnt} {data}; preset {preset}, seed {seed}.

**Preprocessing.** Crop to the brain, voxels of {spacing:g} mm, z-score of each contrast over the brain.

**Hardware.** {device}, {seconds:.0f} s of training; patches of {patch} voxels an edge.

**Input channels.** {channels}. **Output channels.** {regions}, as probabilities.

**Performance** on {cases} {which} patients that it was not trained on:

| region | Dice (95 % interval) | HD95, mm |
|---|---|---|
{results}

**Limits.** {limits}
The interval is over patients, not over trainings. Look at each mask before you count on it.

**Determinism.** The same seed gives the same weights, bit for bit, on the same kind of CPU.

**Use.** `python -m brats_helpers predict PATIENT_FOLDER --checkpoint {checkpoint} --out masks`
"""


def evaluate(cases: Sequence[Case], checkpoint: Path, work: Path, config: Config, which: str, device: Device,
             left_out: Sequence[str] = ()) -> dict:
    """Segment and score patients with a reference; writes predictions/ and metrics.json, and returns the metrics.

    which: "test" or "validation", the set that these patients are; left_out: who had a problem and is not in it, for
    the record. Patients that the same weights have been scored on already, in an evaluation that was stopped, are not
    done again.
    """
    if not cases:
        raise BratsError("there is no patient to evaluate on: see notebook 02's split.")
    content = read_checkpoint(checkpoint, device)
    trained = Config.from_dict(content["config"]).with_(tta=config.tta, overlap=config.overlap)
    trainings = [Path(checkpoint).with_name("last.pt")]
    if trained.pretrain:
        trainings.append(Path(work) / PRETRAINING / "checkpoints" / "last.pt")
    model = build_network(trained, device, from_checkpoint=True)
    load_weights(model, content["average"], checkpoint)
    rows = _score_all(cases, model.eval(), trained, Path(work), device)
    metrics = {
        "cases": len(rows), "left_out": list(left_out), "set": which, "checkpoint": Path(checkpoint).name,
        **summarize(rows), "per_case": rows,
        "preset": trained.preset, "seed": trained.seed, "parameters": count_parameters(model),
        "train_seconds": round(sum(read_checkpoint(path, device)["seconds"] for path in trainings), 1)}
    write_json(Path(work) / "metrics.json", metrics)
    return metrics


def write_model_card(path: Path, metrics: dict, config: Config, learnt: int, synthetic: bool, device: Device) -> str:
    """What a checkpoint is, for whoever finds it: data, input, output, scores, limits, in the order of MONAI's model zoo.

    Returns what is written.
    """
    data = "synthetic patients (MNI152 anatomy, modeled tumors)" if synthetic else "patients of the given source" + (
        f", after and beside {config.pretrain} synthetic ones, of which a fifth only watched" if config.pretrain else "")
    results = "\n".join(f"| {name} | {metrics['dice'][name]:.3f} ({interval_text(metrics['dice_ci95'][name])}) | "
                        f"{metrics['hd95_mm'][name]:.2f} |" for name in REGIONS)
    limits = ("It has never seen a real patient, and what it makes of real scans was not measured. " if synthetic else "") + (
        "It knows adult glioma before treatment, in skull-stripped and co-registered FLAIR, T1, T1CE and T2; "
        "nothing is known of it on other scanners, hospitals, ages or diseases.")
    text = CARD.format(warning=NOT_FOR_DIAGNOSIS.capitalize(), parameters=metrics["parameters"], network=_named(config),
                       learnt=learnt, data=data, spacing=config.spacing_mm, patch=config.patch, device=device.name,
                       seconds=metrics["train_seconds"], channels=", ".join(CHANNELS), results=results, limits=limits,
                       cases=metrics["cases"], which=metrics["set"], checkpoint=metrics["checkpoint"], seed=metrics["seed"],
                       regions=", ".join(REGION_TITLES.values()), preset=metrics["preset"])
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _named(config: Config) -> str:
    if config.network != OWN_NETWORK:
        return f"The network {config.network}"
    return f"A U-Net of {len(config.filters)} levels (Futrega et al. 2021, arXiv:2110.03352)"


def read_prediction(case: Case, work: Path) -> tuple[Patient, np.ndarray]:
    """A patient, and what the network has made of him: labels 0 to 3, (X, Y, Z) uint8, from `evaluate`'s mask."""
    patient = read_case(case)
    path = Path(work) / "predictions" / f"{case.name}.nii.gz"
    mask = replace(case, images=(path,), reference=path, channels=())     # ET is 4 in it, whatever the scans' names
    return patient, read_reference(mask, patient.images.shape[1:], patient.affine)


def verify_masks(cases: Sequence[Case], work: Path) -> None:
    """Assert that each mask has its scan's shape and place, BraTS's labels, and one byte a voxel."""
    for case in cases:
        scan, mask = open_scan(case), nib.load(Path(work) / "predictions" / f"{case.name}.nii.gz")
        assert mask.shape == scan.shape[:3] and np.allclose(mask.affine, scan.affine), case.name
        assert set(np.unique(mask.dataobj)) <= set(DISK_LABELS) and mask.get_data_dtype() == np.uint8, case.name


def _score_all(cases: Sequence[Case], model: nn.Module, config: Config, work: Path, device: Device) -> list[dict]:
    remove_leftovers(work / "predictions")
    notes = work / "predictions" / "scores.json"
    tag = f"{weights_tag(model.state_dict())} {config.tta} {config.overlap} {POSTPROCESSING}"
    before = read_json(notes, "notebook 05") if notes.is_file() else {"rows": {}}
    done = before["rows"] if before.get("tag") == tag else {}
    for name in set(before["rows"]) - {case.name for case in cases}:      # masks of patients who are no longer judged
        (work / "predictions" / f"{name}.nii.gz").unlink(missing_ok=True)
    network = for_inference(model, device, passes(len(cases), config.tta))
    for case in tqdm(cases, desc="evaluate", unit="patient"):
        target = work / "predictions" / f"{case.name}.nii.gz"
        source = fingerprint(case, config.spacing_mm)
        if done.get(case.name, {}).get("source") == source and target.is_file():
            continue
        patient = _with_reference(case)
        labels, _ = segment([network], patient, config, device=device)
        write_mask(target, labels, patient.affine, case)
        done[case.name] = {"source": source, "scores": score_case(labels, patient.reference, patient.spacing)}
        write_json(notes, {"tag": tag, "rows": done})
    return [{"name": case.name, **done[case.name]["scores"]} for case in cases]


def _with_reference(case: Case) -> Patient:
    patient = read_case(case)
    if patient.reference is None:
        raise BratsError(f"patient {case.name} has no reference to be scored against: use `predict` for it.")
    return patient
