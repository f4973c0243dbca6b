"""Files of other programs, and of another shape, are refused in a sentence that names the file."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CPU, small_volumes, write_case

from brats_helpers.basics.config import Config
from brats_helpers.basics.errors import BratsError
from brats_helpers.data.cohort import read_cohort, write_patients, write_source
from brats_helpers.evaluation.checkpoints import (
    RESUMED,
    load_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from brats_helpers.network.unet import UNet

CONFIG = Config(filters=(4, 6), patch=8)


def net() -> dict:
    return UNet(CONFIG.filters).state_dict()


def ours(path: Path, **changes: object) -> None:
    write_checkpoint(path, CONFIG, {"average": net(), **changes})


def old_torch(path: Path) -> None:
    torch.save({"format": 1, "average": {}}, path, _use_new_zipfile_serialization=False)


def script(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def scan(path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    path.write_bytes(gzip.compress(image.to_bytes()))


def nnunet(path: Path) -> None:
    torch.save(
        {"network_weights": net(), "init_args": {"configuration": "3d"}, "current_epoch": 5,
         "trainer_name": "t", "_best_ema": np.float64(0.9), "logging": {}},
        path,
    )


def truncated(path: Path) -> None:
    ours(path)
    path.write_bytes(path.read_bytes()[:2000])


def junk(path: Path) -> None:
    ours(path)
    path.write_bytes(path.read_bytes() + bytes(99))


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "nnU-Net": (nnunet, "not a checkpoint of this project"),
    "MONAI bundle": (lambda p: torch.save({"model": net()}, p),
                     "not a checkpoint of this project .it holds model"),
    "state dict": (lambda p: torch.save(net(), p), "not a checkpoint of this project .it holds"),
    "a tensor": (lambda p: torch.save(torch.zeros(3), p), "not a checkpoint of this project"),
    "old torch": (old_torch, "old torch file.*not a checkpoint of this project"),
    "TorchScript": (script, "not a checkpoint of this project but another kind"),
    "scan": (scan, "gzip file, perhaps a scan.*not a checkpoint of this project"),
    "npz": (lambda p: np.savez(open(p, "wb"), a=np.zeros(3)),
            "another kind of zip file .it holds a.npy"),
    "safetensors": (
        lambda p: p.write_bytes(
            (60).to_bytes(8, "little") + b'{"__metadata__":{"format":"pt"}}' + bytes(30)
        ),
        "safetensors.*not a checkpoint of this project",
    ),
    "ONNX": (lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(50)),
             "ONNX.*not a checkpoint of this project"),
    "JSON": (lambda p: p.write_text('{"format": 1}'), "JSON.*not a checkpoint"),
    "empty": (lambda p: p.write_bytes(b""), "empty.*not a checkpoint"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"format": 1})), "pickle.*not a checkpoint"),
    "HDF5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "HDF5.*not a checkpoint"),
    "LFS": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "LFS pointer"),
    "text": (lambda p: p.write_text("hello"), "not a checkpoint of this project"),
    "objects": (
        lambda p: torch.save(torch.nn.Linear(2, 2), p),
        "holds other objects than tensors and plain values.*not a checkpoint of this project",
    ),
    "junk at its end": (junk, "other bytes follow its end"),
    "cut short": (truncated, "may be cut short or damaged"),
    "average is a list": (lambda p: ours(p, average=[1]),
                          "'average' in the checkpoint is a list, not a dictionary"),
    "average of numbers": (lambda p: ours(p, average={"a": 3}), "'a' in 'average'.*not Tensor"),
    "no average": (lambda p: write_checkpoint(p, CONFIG, {}), "the checkpoint has no average"),
    "names of weights": (lambda p: ours(p, average={3: torch.zeros(2)}), "does not fit"),
    "format is a tensor": (lambda p: ours(p, format=torch.zeros(3)),
                           "not a checkpoint of this project"),
    "format is text": (lambda p: ours(p, format="1"), "not a checkpoint of this project"),
    "no filters": (lambda p: ours(p, config={"preset": "quick"}), "settings.*no list of filters"),
    "filters are text": (lambda p: ours(p, config={"filters": ["a"]}),
                         "settings in it.*filters=.'a',. cannot work"),
    "a huge patch": (lambda p: ours(p, config={"filters": [4, 8], "patch": 1_000_000}),
                     "settings in it.*patch=1000000 cannot work: it must be .* 4 to 512"),
    "huge filters": (lambda p: ours(p, config={"filters": [65_535] * 7}),
                     "settings in it.*filters=.* cannot work: .*from 1 to 1024"),
    "many levels": (lambda p: ours(p, config={"filters": [4] * 20_000}),
                    "settings in it.*filters=.* cannot work: it must list 2 to 9 "),
    "one level": (lambda p: ours(p, config={"filters": [4]}),
                  "settings in it.*filters=.* cannot work: it must list 2 to 9 "),
    "unknown setting": (lambda p: ours(p, config={"filters": [4], "depth": 3}),
                        "settings in it.*unknown setting depth"),
    "config is a list": (lambda p: ours(p, config=[1]), "'config' in the checkpoint is a list"),
    "channels is None": (lambda p: ours(p, channels=None),
                         "'channels' in the checkpoint is nothing"),
    "channels are numbers": (lambda p: ours(p, channels=(0, 1)), "trained with the channels 0, 1"),
    "seen": (lambda p: ours(p, seen={"height": [1, 2]}), "'seen' does not describe patients"),
    "seen is cut": (lambda p: ours(p, seen={"voxel": [1]}), "'seen' does not describe patients"),
    "history": (lambda p: ours(p, history={}),
                "'history' in the checkpoint is a dictionary, not a list"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_checkpoints_are_refused_in_words(kind: str, tmp_path: Path, faults) -> None:
    make, message = FOREIGN[kind]
    make(tmp_path / "c.pt")
    with pytest.raises(BratsError, match=f"(?s)c.pt.*{message}") as caught:
        load_checkpoint(tmp_path / "c.pt", CPU)
    assert "delete" not in str(caught.value)
    faults("foreign checkpoints")


def test_a_folder_and_a_checkpoint_for_prediction_only(tmp_path: Path) -> None:
    ours(tmp_path / "checkpoints" / "best.pt")
    for folder in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(BratsError,
                           match="is a folder: name one of the files in it, .*checkpoints/best.pt"):
            load_checkpoint(folder, CPU)
    load_checkpoint(tmp_path / "checkpoints" / "best.pt", CPU)
    with pytest.raises(BratsError,
                       match="best.pt is not a complete checkpoint .*has no fingerprint, step"):
        read_checkpoint(tmp_path / "checkpoints" / "best.pt", CPU, RESUMED)


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "null", '"text"', '{"filters": 3}', '{"filters": []}', '{"filters": [null]}',
     '{"filters": [-4]}', '{"filters": [4, 8], "patch": null, "seed": "x"}', "{}",
     '{"filters": [4, 8], "batch": [2]}', '{"filters": [1e99]}'],
)
def test_settings_of_another_shape_are_refused_in_words(content: str, tmp_path: Path,
                                                        faults) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BratsError,
                       match="config.json: .* Correct the file, or run notebook 01 again"):
        Config.load(tmp_path / "config.json")
    faults("foreign files of a work folder")


@pytest.mark.parametrize(
    ("name", "change"),
    [("cohort", lambda d: d.pop("tag")), ("cohort", lambda d: d.update(training=None)),
     ("cohort", lambda d: d.update(tag=3)), ("cohort", lambda d: d.update(synthetic="no")),
     ("patients", lambda d: d.pop("rows")), ("patients", lambda d: d["folders"].pop("test")),
     ("patients", lambda d: d.update(rows=[])),
     ("patients", lambda d: d["rows"]["training"].append("P")),
     ("patients", lambda d: d["rows"]["training"][0].pop("problems")),
     ("patients", lambda d: d["rows"]["training"][0].update(problems="none")),
     ("splits", lambda d: d.update(folds=5)), ("splits", lambda d: d.update(training={"a": 1})),
     ("splits", lambda d: d.update(validation=[1])), ("splits", lambda d: d["folds"].append("P")),
     ("splits", lambda d: d.pop("training"))],
)
def test_files_of_another_shape_in_a_work_folder_are_refused_in_words(
    name: str, change: Callable, tmp_path: Path, faults
) -> None:
    raw = tmp_path / "raw"
    write_case(raw, "P", *small_volumes())
    write_source(tmp_path, CONFIG, "raw", raw, None)
    rows = {"training": [{"name": "P", "problems": []}], "test": []}
    write_patients(tmp_path, {"training": raw, "test": None}, rows,
                   {"seed": 0, "training": ["P"], "validation": [], "folds": [["P"]]})
    assert list(read_cohort(tmp_path).by_name) == ["P"]
    path = tmp_path / f"{name}.json"
    content = json.loads(path.read_text())
    change(content)
    for value in (content, [], None):
        path.write_text(json.dumps(value))
        with pytest.raises(
            BratsError, match=rf"{name}.json is not what notebook 0[12] writes \(.*move it away"
        ):
            read_cohort(tmp_path)
    faults("foreign files of a work folder", 3)
