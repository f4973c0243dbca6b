"""Measures each item: compares the results of all ways first, then times them."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import torch
from monai import transforms as mt

from brats_helpers.basics.config import PRESETS, Config
from brats_helpers.basics.constants import REGIONS
from brats_helpers.basics.device import describe_device
from brats_helpers.data import pipeline, preprocessing, storage
from brats_helpers.data.archive import extract as extract_archive
from brats_helpers.data.cases import Case, check_cohort, find_cases, read_case
from brats_helpers.data.loaders import PatchDataset, batches
from brats_helpers.evaluation import metrics, sliding_window
from brats_helpers.evaluation import prediction as inference
from brats_helpers.evaluation.checkpoints import load_checkpoint
from brats_helpers.network import losses, norm
from brats_helpers.network.unet import UNet
from brats_helpers.training import augmentation as ours_augment
from brats_helpers.training import step
from brats_helpers.training.state import new_state

from . import cohort, peers
from .timing import Result, one_core, race

PATCH = 128


def megabytes(paths: Sequence[Path]) -> float:
    """Return the size of files in MB."""
    return sum(path.stat().st_size for path in paths) / 1e6


class Bench:
    """Holds the cohort, the peers' preparations of it, and a folder to write to."""

    def __init__(self, cases: list[Case], archive: Path | None, nnunet: peers.NnUNet, folder: Path,
                 rounds: int) -> None:
        self.cases, self.archive, self.nnunet = cases, archive, nnunet
        self.folder, self.rounds = folder, rounds
        self.case, self.device = cases[0], describe_device()
        self.prepared = folder / "prepared"

    def our_files(self) -> list[Path]:
        """Return all patients in our format; prepares them if needed."""
        pipeline.preprocess_cohort(self.cases, self.prepared, 1.0, jobs=1)
        return [self.prepared / f"{case.name}.b2nd" for case in self.cases]

    def preprocess(self) -> Result:
        """Time a raw patient, four modalities and reference, to its training file, on one core."""
        case, out = self.case, self.folder / "preprocess"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        load = peers.monai_preprocessing()

        def ours() -> None:
            storage.save_prepared(preprocessing.prepare(read_case(case), 1.0), out / "ours.b2nd")

        def monai() -> None:
            done = load(peers.monai_entry(case))
            np.save(out / "monai_x.npy", np.asarray(done["image"]))
            np.save(out / "monai_y.npy", np.asarray(done["label"]).astype(np.uint8))

        ways = {"nnU-Net": lambda: self.nnunet.preprocess(case.name), "MONAI": monai,
                "NVIDIA": lambda: peers.nvidia_preprocess(case, out)}
        ours(), ways["NVIDIA"]()
        prepared = storage.load_prepared(out / "ours.b2nd")
        scored = preprocessing.normalize(prepared.images, prepared.meta.mean, prepared.meta.std)
        brain = scored[4] == 1
        difference = np.abs(scored[:4] - np.load(out / "x.npy")[:4])[:, brain]
        equal = ("z-scores in the brain against NVIDIA's: median difference "
                 f"{np.median(difference):.4f} (its mean is over "
                 "each modality's own non-zero voxels, ours over the brain); our voxels: bit by "
                 "bit the scan's")
        assert not pipeline.verify_prepared(case, out / "ours.b2nd")
        assert np.median(difference) < 0.05
        with one_core():
            times = race(ours, ways, self.rounds)
        return Result("preprocess", *times, equal, goals={"nnU-Net": 5, "MONAI": 4, "NVIDIA": 7})

    def storage(self) -> Result:
        """Compare MB a patient, the mean over the patients."""
        files, out = self.our_files(), self.folder / "storage"
        sizes: dict[str, list[float]] = {"nnU-Net": [], "MONAI": [], "NVIDIA": []}
        for case in self.cases:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            self.nnunet.preprocess(case.name)
            sizes["nnU-Net"].append(megabytes(list(self.nnunet.store.glob(f"{case.name}*"))))
            done = peers.monai_preprocessing()(peers.monai_entry(case))
            sizes["MONAI"].append((done["image"].numel() * 4 + done["label"].numel()) / 1e6)
            peers.nvidia_preprocess(case, out)
            sizes["NVIDIA"].append(megabytes([out / "x.npy", out / "y.npy"]))
        ours = megabytes(files) / len(files)
        equal = ("all are lossless but for float32's rounding; ours restored and compared with the "
                 "scan, voxel by voxel")
        assert not any(pipeline.verify_prepared(*pair)
                       for pair in zip(self.cases, files, strict=True))
        return Result("storage", ours, {k: float(np.mean(v)) for k, v in sizes.items()}, equal,
                      "MB", goals={"nnU-Net": 2, "NVIDIA": 1 / 0.15})

    def patch(self) -> Result:
        """Time a batch of one random 128^3 patch, four channels and label, from a warm page cache.

        Sixteen in a row, as a loader's process reads them, four from each patient.
        """
        from monai.data import CacheDataset, PersistentDataset, list_data_collate
        files = self.our_files()
        for case in self.cases:
            self.nnunet.preprocess(case.name)
        stream, counter = PatchDataset(files, PATCH, 0.4, 0), iter(range(10**9))
        loader = self.nnunet.loader(PATCH)
        entries = [peers.monai_entry(case) for case in self.cases]
        crop = mt.RandCropByPosNegLabeld(["image", "label"], label_key="label",
                                         spatial_size=(PATCH,) * 3, pos=1, neg=1,
                                         allow_smaller=True)
        pad = mt.SpatialPadd(["image", "label"], (PATCH,) * 3)
        steps = mt.Compose([*peers.monai_preprocessing().transforms, pad, crop])
        cached = CacheDataset(entries, steps, progress=False)
        persistent = PersistentDataset(entries, steps, cache_dir=self.folder / "persistent")
        turn = iter(i % len(entries) for i in range(10**9))
        for index in range(len(entries)):
            persistent[index]
        volume, meta = storage.open_volume(files[0])
        patch = np.empty((5, 99, 99, 99), volume.dtype)
        storage.read_patch(volume, meta, (9, 9, 9), patch)
        assert np.array_equal(storage.load_prepared(files[0]).volume, volume[:])
        assert np.array_equal(patch, volume[:, 9:108, 9:108, 9:108])
        equal = ("a patch is bit by bit the stored volume's; ours is int16 and is z-scored on the "
                 "device (see train-step)")
        ways = {"nnU-Net": loader.generate_train_batch,
                "MONAI CacheDataset": lambda: list_data_collate([cached[next(turn)]]),
                "MONAI PersistentDataset": lambda: list_data_collate([persistent[next(turn)]])}
        times = race(lambda: stream[[next(counter)]], ways, self.rounds, in_a_row=16)
        return Result("patch", *times, equal, goals={"nnU-Net": 4, "MONAI CacheDataset": 2})

    def augment(self) -> Result:
        """Time the recipe on one 128^3 patch: a mean over many draws, as most draw few transforms.

        Where the recipe has a probability of 0.15, ours is 0.2 here: nnU-Net has 0.2 for rotation,
        scaling and blur and 0.1 for noise, and MONAI gets these. Brightness, contrast, gamma and
        shift have the recipe's 0.3 in ours and MONAI's.
        """
        stream = PatchDataset(self.our_files(), PATCH, 1.0, 0)
        item = stream[[0]]
        label = item["volume"][:, 4:]
        image = preprocessing.normalize_batch(item["volume"][:, :4], item["mean"], item["std"])
        generator = torch.Generator().manual_seed(0)
        grid = ours_augment.sampling_grid((PATCH,) * 3, 1.0, None, 0.0, generator)
        same = ours_augment.resample(image[0], label[0], grid)
        assert torch.allclose(same[0], image[0], atol=1e-3) and torch.equal(same[1], label[0])
        nnunet, monai = self.nnunet.augmentation(PATCH), peers.monai_augmentation(PATCH)

        def often(generator: torch.Generator, probability: float = 0.2) -> bool:
            return chance(generator, probability)

        chance = ours_augment.chance
        ways = {"nnU-Net": lambda: nnunet(image=image[0, :4].clone(),
                                          segmentation=label[0].clone()),
                "MONAI": lambda: monai({"image": image[0, :4], "label": label[0]})}
        with mock.patch.object(ours_augment, "chance", often):
            times = race(lambda: ours_augment.augment(image, label, [generator]), ways, 1,
                         in_a_row=12 * self.rounds)
        equal = ("random, so not equal; at no rotation, zoom and deformation the resampling is the "
                 "identity")
        return Result("augment", *times, equal, goals={"nnU-Net": 2, "MONAI": 5})

    def train_step(self) -> Result:
        """Time forward, loss, backward, optimizer: the quick network, batch 2 of 64^3."""
        filters = PRESETS["quick"].filters
        torch.manual_seed(0)
        x = torch.randn(2, 5, 64, 64, 64)
        target = (torch.rand(2, 3, 64, 64, 64) > 0.9).float()
        ours, theirs = UNet(filters).train(), peers.dynunet(filters).train()
        peers.copy_weights(ours, theirs)
        step = _stepper(ours, lambda outputs: losses.deep_supervision_loss(outputs, target), x,
                        self.device.dtype)
        loss = peers.monai_loss(target)
        ways = {"MONAI fp32": _stepper(theirs, loss, x, torch.float32),
                "MONAI equal precision": _stepper(theirs, loss, x, self.device.dtype),
                "ours, torch's batch norm": mock.patch.object(norm, "NARROW", 0)(step)}
        with torch.inference_mode():
            a, b = ours.eval()(x), theirs.eval()(x)
        ours.train(), theirs.train()
        assert torch.allclose(a, b, atol=1e-3)
        difference = (a - b).abs().max()
        equal = f"the same weights give the same logits: largest difference {difference:.0e}"
        return Result("train-step", *race(step, ways, self.rounds), equal,
                      goals={"MONAI fp32": 2.5, "MONAI equal precision": 1.1})

    def infer(self) -> list[Result]:
        """Time a patient at 2 mm: windows of 64^3, half overlap, Gaussian weights, 8 views."""
        filters = PRESETS["quick"].filters
        torch.manual_seed(0)
        model, theirs = UNet(filters).eval(), peers.dynunet(filters).eval()
        peers.copy_weights(model, theirs)
        prepared = preprocessing.prepare(read_case(self.case), 2.0)
        meta = prepared.meta
        image = torch.from_numpy(
            preprocessing.normalize(prepared.images, meta.mean, meta.std))
        short = [p for s in reversed(image.shape[1:]) for p in (0, max(0, 64 - s))]
        # MONAI would pad at both ends, and we at one.
        image = torch.nn.functional.pad(image, short)

        def monai() -> torch.Tensor:
            return peers.monai_probabilities(theirs, image, sliding_window.FLIPS)

        def ours(views: Sequence = sliding_window.FLIPS, stretch: float = 1.0) -> torch.Tensor:
            return sliding_window.sliding_window_inference(
                model, image, 64, 0.5, views, self.device, stretch)

        def two_views() -> torch.Tensor:
            return ours(sliding_window.OPPOSITE_FLIPS, sliding_window.STRETCH)

        predictor = peers.nnunet_predictor(theirs, self.nnunet, 64)
        difference = (monai() - ours()).abs()
        equal = ("probabilities of the same random weights: mean difference "
                 f"{difference.mean():.4f}, largest "
                 f"{difference.max():.3f} (ours in {self.device.dtype}, MONAI's in fp32)")
        assert difference.mean() < 0.02
        ways = {"MONAI": monai,
                "nnU-Net": lambda: predictor.predict_sliding_window_return_logits(image)}
        eight = Result("infer, 8 views", *race(ours, ways, self.rounds), equal,
                       goals={"MONAI": 2.3})
        two = Result("infer, 2 views", *race(two_views, {"MONAI, 8 views": monai}, self.rounds),
                     self.dice_of_two_views(), goals={"MONAI, 8 views": 5})
        return [eight, two]

    def dice_of_two_views(self) -> str:
        """Compare Dice of two and eight views on the test patients of the quick preset's run."""
        run = Path("runs/quick")
        if not (run / "metrics.json").is_file():
            return "its Dice was not compared: that takes a trained network, `make run` before"
        model, config = load_checkpoint(run / "checkpoints" / "best.pt", self.device)
        rows = {views: [] for views in (True, False)}
        for case in find_cases(run / "cases" / "test"):
            patient = read_case(case)
            for tta, scores in rows.items():
                labels, _ = inference.segment([model], patient, config, tta, self.device)
                scores.append(metrics.score_case(labels, patient.reference, patient.spacing))
        change = {name: np.mean([b[name]["dice"] - a[name]["dice"]
                                 for a, b in zip(*rows.values(), strict=True)]) for name in REGIONS}
        return (f"Dice of 2 views less Dice of 8, means over {len(rows[True])} unseen phantoms: "
                + ", ".join(f"{name} {value:+.4f}" for name, value in change.items()))

    def metrics(self) -> Result:
        """Time Dice and HD95 of three regions at 240 x 240 x 155."""
        reference = read_case(self.case).reference
        predicted = np.roll(reference, (3, -2, 1), (0, 1, 2))
        ways = {"MONAI": lambda: peers.monai_scores(predicted, reference),
                "surface-distance": lambda: peers.surface_distance_scores(predicted, reference)}
        ours, monai = metrics.score_case(predicted, reference, (1.0,) * 3), ways["MONAI"]()
        difference = max(abs(ours[name][key] - monai[name][key]) for name in ours
                         for key in ("dice", "hd95_mm"))
        assert difference < 1e-6
        equal = (f"MONAI's values, largest difference {difference:.0e}; surface-distance defines "
                 "surfaces a little differently")
        times = race(lambda: metrics.score_case(predicted, reference, (1.0,) * 3), ways,
                     self.rounds)
        return Result("metrics", *times, equal, goals={"MONAI": 20, "surface-distance": 3})

    def extract(self) -> Result | None:
        """Time an archive to checked patients; needs the phantoms' archive."""
        if not self.archive:
            return None
        out = self.folder / "extract"

        def ours() -> list[dict]:
            shutil.rmtree(out, ignore_errors=True)
            extract_archive(self.archive, out)
            return check_cohort(find_cases(out), jobs=2)

        def usual() -> dict[str, set]:
            shutil.rmtree(out, ignore_errors=True)
            with tarfile.open(self.archive) as tar:
                tar.extractall(out, filter="data")
            found = {}
            for path in sorted(out.rglob("*.nii.gz")):
                voxels = nib.load(path).get_fdata()
                found[path.name] = (set(np.unique(np.rint(voxels)).astype(int))
                                    if "_seg" in path.name else {voxels.shape})
            return found

        rows, seen = ours(), usual()
        assert not any(row["problems"] for row in rows) and len(seen) == 5 * len(rows)
        return Result("extract", *race(ours, {"tarfile + nibabel": usual}, self.rounds),
                      "the same files; every voxel of all of them was read by both",
                      goals={"tarfile + nibabel": 2})


    def end_to_end(self) -> Result | None:
        """Time an archive of 16 patients to one epoch of the quick network on 128^3 patches."""
        if not self.archive:
            return None
        many = cohort.sixteen(self.archive, self.folder / "sixteen.tar")
        filters, out = PRESETS["quick"].filters, self.folder / "end_to_end"

        def ours() -> None:
            shutil.rmtree(out, ignore_errors=True)
            extract_archive(many, out / "cases")
            cases = find_cases(out / "cases")
            pipeline.preprocess_cohort(cases, out / "prepared", 1.0, jobs=2)
            config = Config(filters=filters, patch=PATCH, batch=1, epochs=1, steps=len(cases),
                            warmup=1, oversample_foreground=0.4)
            state = new_state(config, self.device)
            files = sorted((out / "prepared").glob("*.b2nd"))
            for batch in batches(PatchDataset(files, PATCH, config.oversample_foreground, 0), 1, 0,
                                 len(cases)):
                step.train_step(state, batch, config, self.device)

        def tutorial() -> None:
            shutil.rmtree(out, ignore_errors=True)
            with tarfile.open(many) as tar:
                tar.extractall(out / "cases", filter="data")
            peers.monai_tutorial_epoch(find_cases(out / "cases"), peers.dynunet(filters), PATCH)

        times = race(ours, {"MONAI tutorial": tutorial}, 1)
        equal = ("the same network, patients, crop size and number of steps; augmentation is each "
                 "one's own (ours does more)")
        return Result("end-to-end", *times, equal, goals={"MONAI tutorial": 3})


def _stepper(model: torch.nn.Module, loss_of, x: torch.Tensor, dtype: torch.dtype):
    """Return a function that takes one optimizer step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs = model(x)
        loss_of(outputs).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


ITEMS = ("preprocess", "storage", "patch", "augment", "train_step", "infer", "metrics", "extract",
         "end_to_end")
