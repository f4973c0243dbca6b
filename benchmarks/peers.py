"""Calls the peers as their documentation does: nnU-Net v2, MONAI, NVIDIA's BraTS21 notebook."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai import transforms as mt

from brats_helpers.data.cases import Case
from brats_helpers.network.unet import layers_in_use

os.environ.setdefault("nnUNet_n_proc_DA", "2")  # also the threads that its planner uses


class NnUNet:
    """Runs nnU-Net v2's plans, preprocessor, store, loader and augmentation with its defaults."""

    def __init__(self, raw: Path, processes: int = 2) -> None:
        from nnunetv2.experiment_planning import plan_and_preprocess_api as api
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
        self.raw, number = raw, int(raw.name[7:10])
        self.description = json.loads((raw / "dataset.json").read_text())
        prepared = Path(os.environ["nnUNet_preprocessed"]) / raw.name
        if not (prepared / "nnUNetPlans.json").is_file():
            api.extract_fingerprints([number], num_processes=processes, show_progress_bar=False)
            api.plan_experiments([number])
        self.plans = PlansManager(str(prepared / "nnUNetPlans.json"))
        self.configuration = self.plans.get_configuration("3d_fullres")
        self.store = prepared / self.configuration.data_identifier
        self.store.mkdir(parents=True, exist_ok=True)

    def preprocess(self, name: str) -> None:
        """Preprocess a patient from .nii.gz to its Blosc2 files."""
        for old in self.store.glob(f"{name}*"):  # Blosc2 does not write over a file
            old.unlink()
        row = self.description["dataset"][name]
        preprocessor = self.configuration.preprocessor_class(verbose=False)
        preprocessor.run_case_save(str(self.store / name), row["images"], row["label"], self.plans,
                                   self.configuration, self.description)

    def loader(self, patch: int) -> object:
        """Return its loader of random patches, batch 1, a third of them centered on tumor."""
        from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
        labels = self.plans.get_label_manager(self.description)
        return nnUNetDataLoader(nnUNetDatasetBlosc2(str(self.store)), 1, (patch,) * 3, (patch,) * 3,
                                labels, 0.33)

    def augmentation(self, patch: int) -> object:
        """Return its default training transforms, without deep supervision's targets."""
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        angle = (-30 / 360 * 2 * np.pi, 30 / 360 * 2 * np.pi)
        return nnUNetTrainer.get_training_transforms((patch,) * 3, angle, None, (0, 1, 2), False,
                                                     [True] * 4)


def monai_preprocessing() -> mt.Compose:
    """Return MONAI's transforms for a patient: load, crop, z-score of non-zero voxels."""
    return mt.Compose([
        mt.LoadImaged(["image", "label"]), mt.EnsureChannelFirstd("label"),
        mt.CropForegroundd(["image", "label"], source_key="image", allow_smaller=True),
        mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True)])


def monai_entry(case: Case) -> dict:
    """Return the dictionary that MONAI's transforms start from."""
    return {"image": [str(p) for p in case.images], "label": str(case.reference)}


def nvidia_preprocess(case: Case, folder: Path) -> None:
    """Run NVIDIA's two steps with the library calls of its BraTS21 notebook and its preprocessor.

    First a 4D .nii.gz a patient; then MONAI's crop, its z-score of non-zero voxels twice, a mask of
    what is above 0 in every channel, and float32 .npy files.
    """
    scans = [nib.load(p) for p in case.images]
    stack = np.stack([np.abs(scan.get_fdata().astype(np.int16)) for scan in scans], axis=-1)
    label = nib.load(case.reference).get_fdata().astype(np.uint8)
    label[label == 4] = 3
    nib.save(nib.Nifti1Image(stack, scans[0].affine, scans[0].header), folder / "image.nii.gz")
    nib.save(nib.Nifti1Image(label, scans[0].affine), folder / "label.nii.gz")

    score = mt.NormalizeIntensity(nonzero=True, channel_wise=True)
    image = nib.load(folder / "image.nii.gz").get_fdata().astype(np.float32).transpose(3, 2, 1, 0)
    label = nib.load(folder / "label.nii.gz").get_fdata().astype(np.uint8)
    label = label[..., None].transpose(3, 2, 1, 0)
    both = mt.CropForegroundd(["image", "label"], source_key="image",
                              allow_smaller=True)({"image": image, "label": label})
    image, label = np.asarray(score(both["image"])), np.asarray(both["label"])
    mask = np.ones(image.shape[1:], np.float32)
    for channel in image:
        mask[np.where(channel <= 0)] = 0
    image = np.concatenate([np.asarray(score(image), np.float32), mask[None]])
    image.mean((1, 2, 3)), image.std((1, 2, 3))  # which it computes for its log
    np.save(folder / "x.npy", image)
    np.save(folder / "y.npy", label)


def monai_augmentation(patch: int) -> mt.Compose:
    """Return the recipe in MONAI's transforms, as often as nnU-Net's or ours."""
    both, ways = ["image", "label"], ("bilinear", "nearest")
    turn = np.pi / 6
    return mt.Compose([
        mt.RandAffined(both, prob=0.2, rotate_range=(turn,) * 3, scale_range=((-0.3, 0.4),) * 3,
                       mode=ways, padding_mode="zeros"),
        mt.Rand3DElasticd(both, sigma_range=(8, 12), magnitude_range=(100, 400), prob=0.2,
                          mode=ways, padding_mode="zeros"),
        *[mt.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)],
        mt.RandGaussianNoised("image", prob=0.1, std=0.33),
        mt.RandGaussianSmoothd("image", prob=0.2, **dict.fromkeys(
            ("sigma_x", "sigma_y", "sigma_z"), (0.5, 1.5))),
        mt.RandScaleIntensityd("image", factors=0.3, prob=0.3, channel_wise=True),
        mt.RandScaleIntensityFixedMeand("image", factors=(-0.35, 0.5), prob=0.3,
                                        preserve_range=True),
        mt.RandAdjustContrastd("image", gamma=(0.7, 1.5), prob=0.3),
        mt.RandShiftIntensityd("image", offsets=0.5, prob=0.3, channel_wise=True)])


def dynunet(filters: Sequence[int]) -> torch.nn.Module:
    """Return MONAI's network of the same topology, deep supervision as in NVIDIA's recipe."""
    from monai.networks.nets import DynUNet
    n = len(filters)
    return DynUNet(3, 5, 3, [3] * n, [1] + [2] * (n - 1), [2] * (n - 1), filters=list(filters),
                   trans_bias=True, norm_name=("INSTANCE", {"affine": True}),
                   act_name=("leakyrelu", {"negative_slope": 0.01}), deep_supervision=True,
                   deep_supr_num=min(2, n - 2))


def copy_weights(ours: torch.nn.Module, theirs: torch.nn.Module, edge: int = 64) -> None:
    """Copy our weights to MONAI's network: both run their layers in the same order."""
    patch = torch.zeros(1, 5, *[edge] * 3, device=next(ours.parameters()).device)
    auxiliary = {m for head in theirs.deep_supervision_heads for m in head.modules()}
    met = [[layer for layer in layers_in_use(model.eval(), patch) if layer not in auxiliary]
           for model in (ours, theirs)]
    for a, b in zip(*met, strict=True):
        b.load_state_dict(a.state_dict())
    # 1/2, then 1/4
    for head, block in zip(ours.heads[-2::-1], theirs.deep_supervision_heads, strict=True):
        block.conv.conv.load_state_dict(head.state_dict())


def monai_loss(target: torch.Tensor):
    """Return MONAI's Dice + cross-entropy by region, weighted by level as NVIDIA does."""
    from monai.losses import DiceLoss
    dice, bce = DiceLoss(sigmoid=True, batch=True), torch.nn.BCEWithLogitsLoss()

    def loss(outputs: torch.Tensor) -> torch.Tensor:
        levels = torch.unbind(outputs.float(), dim=1)  # DynUNet stacks its heads at full resolution
        weights = [0.5**i for i in range(len(levels))]
        each = [w * (dice(x, target) + bce(x, target))
                for w, x in zip(weights, levels, strict=True)]
        return sum(each) / sum(weights)

    return loss


@torch.inference_mode()
def monai_probabilities(network: torch.nn.Module, image: torch.Tensor,
                        flips: Sequence[Sequence[int]]) -> torch.Tensor:
    """Average MONAI's sliding window, 64^3 with half overlap, over mirrored views."""
    from monai.inferers import sliding_window_inference
    total = 0
    for axes in flips:
        out = sliding_window_inference(image[None].flip(axes), (64,) * 3, 1, network, overlap=0.5,
                                       mode="gaussian")
        total = total + torch.sigmoid(out.flip(axes))
    return total[0] / len(flips)


def nnunet_predictor(network: torch.nn.Module, nnunet: NnUNet, patch: int) -> object:
    """Return nnU-Net's predictor for a network: its sliding window, weights and mirroring."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    predictor = nnUNetPredictor(tile_step_size=0.5, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(network, nnunet.plans, nnunet.configuration, None,
                                    nnunet.description, "nnUNetTrainer", (0, 1, 2))
    predictor.configuration_manager.configuration["patch_size"] = [patch] * 3
    return predictor


def monai_scores(predicted: np.ndarray, reference: np.ndarray) -> dict[str, dict[str, float]]:
    """Return MONAI's Dice and HD95 of the three regions."""
    from monai.metrics import compute_dice, compute_hausdorff_distance

    from brats_helpers.evaluation.metrics import regions
    a, b = (torch.from_numpy(regions(mask))[None] for mask in (predicted, reference))
    dice = compute_dice(a, b)[0]
    distance = compute_hausdorff_distance(a, b, include_background=True, percentile=95)[0]
    return {name: {"dice": float(dice[i]), "hd95_mm": float(distance[i])}
            for i, name in enumerate(("WT", "TC", "ET"))}


def surface_distance_scores(predicted: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return Dice and HD95 of the three regions by DeepMind's package."""
    import surface_distance as sd

    from brats_helpers.evaluation.metrics import regions
    found = {}
    for name, a, b in zip(("WT", "TC", "ET"), regions(predicted), regions(reference), strict=True):
        distances = sd.compute_surface_distances(b, a, (1.0, 1.0, 1.0))
        found[name] = {"dice": sd.compute_dice_coefficient(b, a),
                       "hd95_mm": sd.compute_robust_hausdorff(distances, 95)}
    return found


def plain_conv_unet(filters: Sequence[int]) -> torch.nn.Module:
    """Return nnU-Net v2's network with these channels and deep supervision."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    n = len(filters)
    return PlainConvUNet(5, n, list(filters), torch.nn.Conv3d, 3, [1] + [2] * (n - 1), 2, 3, 2,
                         conv_bias=False, norm_op=torch.nn.InstanceNorm3d,
                         norm_op_kwargs={"affine": True}, nonlin=torch.nn.LeakyReLU,
                         nonlin_kwargs={"inplace": True}, deep_supervision=True)


def monai_tutorial_epoch(cases: Sequence[Case], network: torch.nn.Module, patch: int) -> None:
    """Train one epoch as MONAI's tutorial brats_segmentation_3d, on files and without a cache."""
    from monai.data import DataLoader, Dataset
    from monai.losses import DiceLoss
    both = ["image", "label"]
    steps = mt.Compose([mt.LoadImaged(both), mt.EnsureChannelFirstd("label"), mt.EnsureTyped(both),
                        mt.ConvertToMultiChannelBasedOnBratsClassesd("label"),
                        mt.Orientationd(both, axcodes="RAS"),
                        mt.Spacingd(both, pixdim=(1.0, 1.0, 1.0), mode=("bilinear", "nearest")),
                        mt.RandSpatialCropd(both, roi_size=[patch] * 3, random_size=False),
                        *[mt.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)],
                        mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
                        mt.RandScaleIntensityd("image", factors=0.1, prob=1.0),
                        mt.RandShiftIntensityd("image", offsets=0.1, prob=1.0)])
    network.train()
    loss_of = DiceLoss(smooth_nr=0, smooth_dr=1e-5, squared_pred=True, to_onehot_y=False,
                       sigmoid=True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, weight_decay=1e-5)
    for batch in DataLoader(Dataset([monai_entry(case) for case in cases], steps), batch_size=1,
                            shuffle=True):
        image = torch.as_tensor(batch["image"])
        # the fifth channel of our network
        image = torch.cat((image, (image != 0).any(1, keepdim=True).float()), 1)
        optimizer.zero_grad()
        loss = sum(loss_of(out, torch.as_tensor(batch["label"]))
                   for out in torch.unbind(network(image), 1))
        loss.backward()
        optimizer.step()
