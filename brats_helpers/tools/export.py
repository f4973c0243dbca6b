"""Export a trained network for other tools as a MONAI bundle and as an ONNX file.

The bundle stores the weights as MONAI's DynUNet, which computes the same function, and runs without
this module: https://docs.monai.io/en/stable/bundle_intro.html.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import monai
import numpy as np
import torch
from monai.networks.nets import DynUNet
from torch import nn

from ..basics.config import OWN_NETWORK, Config
from ..basics.constants import CHANNELS, NOT_FOR_DIAGNOSIS, REGION_THRESHOLDS, REGIONS
from ..basics.device import Device
from ..basics.errors import BratsError
from ..basics.files import atomic_path, write_file, write_json
from ..evaluation.checkpoints import load_checkpoint
from ..network.unet import SLOPE, layers_in_use

CPU = Device("cpu", "cpu", 0, torch.float32)


def dynunet_arguments(config: Config) -> dict:
    """Return the arguments that make MONAI's DynUNet the network of a configuration."""
    levels = len(config.filters)
    return {"spatial_dims": 3, "in_channels": len(CHANNELS), "out_channels": len(REGIONS),
            "filters": list(config.filters), "kernel_size": [3] * levels,
            "strides": [1] + [2] * (levels - 1), "upsample_kernel_size": [2] * (levels - 1),
            "trans_bias": True, "norm_name": ["INSTANCE", {"affine": True}],
            "act_name": ["leakyrelu", {"negative_slope": SLOPE}]}


def as_dynunet(model: nn.Module, config: Config) -> DynUNet:
    """Copy the weights into MONAI's network, without the heads of deep supervision."""
    theirs = DynUNet(**dynunet_arguments(config)).eval()
    x = torch.zeros(1, len(CHANNELS), *[config.patch] * 3)
    for a, b in zip(layers_in_use(model.eval().cpu(), x), layers_in_use(theirs, x), strict=True):
        b.load_state_dict(a.state_dict())
    return theirs


def export_bundle(checkpoint: Path, out: Path) -> Path:
    """Write a MONAI bundle into `out`: weights, metadata, and inference from a patient's files.

    BratsError for a network other than the U-Net.
    """
    model, config = load_checkpoint(checkpoint, CPU)
    if config.network != OWN_NETWORK:
        raise BratsError(f"the network of {checkpoint} is {config.network}, and the bundle "
                         "describes the U-Net, as MONAI's DynUNet: write ONNX alone (--only onnx).")
    out = Path(out)
    write_json(out / "configs" / "metadata.json", _metadata(config))
    write_json(out / "configs" / "inference.json", _inference(config))
    with atomic_path(out / "models" / "model.pt") as temporary:
        torch.save(as_dynunet(model, config).state_dict(), temporary)
    card = Path(checkpoint).with_name("MODEL_CARD.md")
    text = card.read_text(encoding="utf-8") if card.is_file() else f"{NOT_FOR_DIAGNOSIS}\n"
    write_file(out / "docs" / "README.md", text)
    return out


def export_onnx(checkpoint: Path, out: Path) -> Path:
    """Write the network as ONNX, for any batch; BratsError without onnx and onnxscript.

    Input "image" (batch, 5, P, P, P), z-scored; output "logits" (batch, 3, P, P, P): WT, TC, ET.
    """
    model, config = load_checkpoint(checkpoint, CPU)
    example = torch.zeros(2, len(CHANNELS), *[config.patch] * 3)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with atomic_path(Path(out)) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about its own exporter
            torch.onnx.export(model.eval(), (example,), str(temporary), input_names=["image"],
                              output_names=["logits"], dynamo=True, verbose=False,
                              external_data=False,
                              dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    except ModuleNotFoundError as error:
        raise BratsError("ONNX needs two more packages: pip install onnx onnxscript.") from error
    return Path(out)


def _metadata(config: Config) -> dict:
    shape = {"type": "image", "format": "magnitude", "modality": "MR",
             "num_channels": len(CHANNELS), "spatial_shape": [config.patch] * 3,
             "dtype": "float32", "value_range": [], "is_patch_data": True,
             "channel_def": {str(i): name for i, name in enumerate(CHANNELS)}}
    output = {**shape, "format": "segmentation", "num_channels": len(REGIONS),
              "value_range": [0, 1],
              "channel_def": {str(i): name for i, name in enumerate(REGIONS)}}
    size = f"{len(config.filters)} levels, {config.spacing_mm} mm voxels"
    return {"version": "0.1.0", "changelog": {"0.1.0": "exported"},
            "monai_version": monai.__version__,
            "pytorch_version": torch.__version__.split("+")[0], "numpy_version": np.__version__,
            "required_packages_version": {"nibabel": "5.2.0"},
            "name": "Optimized U-Net for BraTS",
            "task": "segmentation of glioma: whole tumor, tumor core, enhancing tumor",
            "authors": "see docs/README.md", "description": f"{size}; {NOT_FOR_DIAGNOSIS}",
            "copyright": "", "intended_use": NOT_FOR_DIAGNOSIS,
            "references": ["Futrega et al. 2021, arXiv:2110.03352"],
            "network_data_format": {"inputs": {"image": shape}, "outputs": {"pred": output}}}


def _inference(config: Config) -> dict:
    """Return the bundle's configuration: our steps, but unmirrored and with small ET kept."""
    return {
        "imports": ["$import glob", "$import monai", "$import torch"],
        "bundle_root": ".", "dataset_dir": "data", "output_dir": "$@bundle_root + '/eval'",
        "device": "cpu",
        "endings": [["flair", "t2f"], ["t1", "t1n"], ["t1ce", "t1c"], ["t2", "t2w"]],
        "patients": "$sorted(glob.glob(@dataset_dir + '/*/'))",
        "datalist": "$[{'image': [next(f for e in names "
                    "for f in glob.glob(p + '*[_-]' + e + '.nii.gz')) "
                    "for names in @endings]} for p in @patients]",
        "network_def": {"_target_": "DynUNet", **dynunet_arguments(config)},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(config)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1,
                       "shuffle": False, "num_workers": 0},
        "windows": {"_target_": "SlidingWindowInferer", "roi_size": [config.patch] * 3,
                    "sw_batch_size": 1, "overlap": config.overlap, "mode": "gaussian"},
        "turn": "$lambda x: x.transpose(-1, -3)",  # NIfTI's order is x, y, z; the network's z, y, x
        "predict": "$torch.no_grad()(lambda d: torch.sigmoid(@turn(@windows(torch.cat("
                   "[@turn(d['image']), @turn(d['brain'])], 1).as_tensor().to(@device), "
                   "@network))).cpu() * d['brain'].as_tensor())",
        "labels": _labels(),
        "postprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing",
             "orig_keys": "image", "nearest_interp": False, "to_tensor": True},
            {"_target_": "Lambdad", "keys": "pred", "func": "@labels"},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir",
             "output_postfix": "seg", "output_dtype": "$'uint8'", "separate_folder": False}]},
        "load": "$@network.load_state_dict("
                "torch.load(@bundle_root + '/models/model.pt', weights_only=True))",
        "segment": "$[@postprocessing(x) for d in @dataloader for x in monai.data.decollate_batch("
                   "{**d, 'pred': monai.data.MetaTensor(@predict(d))})]",
        "run": ["$@load", "$@network.eval()", "$@segment"]}


def _preprocessing(config: Config) -> list[dict]:
    """Return MONAI's transforms that load, orient, resample, crop and z-score as ours do."""
    return [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "LPS", "labels": None},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [config.spacing_mm] * 3,
         "mode": "bilinear"},
        {"_target_": "CropForegroundd", "keys": "image", "source_key": "image",
         "select_fn": "$lambda x: x != 0", "allow_smaller": True},
        {"_target_": "CopyItemsd", "keys": "image", "names": "brain"},
        {"_target_": "Lambdad", "keys": "brain",
         "func": "$lambda x: (x != 0).any(0, keepdim=True).float()"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True,
         "channel_wise": True}]


def _labels() -> str:
    """Return the expression that turns probabilities into BraTS's labels."""
    whole, core, enhancing = (REGION_THRESHOLDS[name] for name in ("WT", "TC", "ET"))
    return (f"$lambda p: torch.where(p[:1] < {whole}, 0, torch.where(p[1:2] < {core}, 2, "
            f"torch.where(p[2:] < {enhancing}, 1, 4)))")
