"""What is wrong with a file, and what a person reads of it: the patient, the file, the problem,
what to do.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import small_volumes, write_case

from brats_helpers.__main__ import number_or_text
from brats_helpers.basics.config import PRESETS, Config
from brats_helpers.basics.device import Device
from brats_helpers.basics.errors import BratsError
from brats_helpers.data.cases import check_case, find_cases, read_case
from brats_helpers.data.pipeline import preprocess_cohort
from brats_helpers.data.preprocessing import prepare, restore
from brats_helpers.data.splits import make_splits
from brats_helpers.evaluation.batch import predict_cases
from brats_helpers.evaluation.checkpoints import load_checkpoint, write_checkpoint
from brats_helpers.network.unet import UNet

CPU = Device("cpu", "test", 1.0, torch.float32)


def change(
    kind: str, edit: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> Callable[[Path], None]:
    """A damage that rewrites one file of the patient P: its voxels and its affine."""

    def apply(folder: Path) -> None:
        path = folder / f"P_{kind}.nii.gz"
        image = nib.load(path)
        voxels, affine = edit(np.asarray(image.dataobj), image.affine)
        nib.save(nib.Nifti1Image(voxels, affine), path)

    return apply


def header(kind: str, edit: Callable[[bytearray], None]) -> Callable[[Path], None]:
    """A damage that changes bytes of the decompressed file."""

    def apply(folder: Path) -> None:
        path = folder / f"P_{kind}.nii.gz"
        content = bytearray(gzip.decompress(path.read_bytes()))
        edit(content)
        path.write_bytes(gzip.compress(bytes(content)))

    return apply


def raw(kind: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A damage of the compressed file."""

    def apply(folder: Path) -> None:
        path = folder / f"P_{kind}.nii.gz"
        path.write_bytes(edit(path.read_bytes()))

    return apply


def put(first: int, value: bytes) -> Callable[[bytearray], None]:
    """Overwrite some bytes."""

    def apply(content: bytearray) -> None:
        content[first : first + len(value)] = value

    return apply


def replace_by_folder(folder: Path) -> None:
    """A folder where a file should be."""
    (folder / "P_t2.nii.gz").unlink()
    (folder / "P_t2.nii.gz").mkdir()


def skew(affine: np.ndarray) -> np.ndarray:
    """An affine whose axes are not the body's."""
    turned = affine.copy()
    turned[:3, :3] = affine[:3, :3] @ np.array([[0.9, -0.44, 0], [0.44, 0.9, 0], [0, 0, 1]])
    return turned


def all_skewed(folder: Path) -> None:
    """All files oblique to the body in the same way."""
    for path in folder.glob("*.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), skew(image.affine)), path)


def short(number: int) -> bytes:
    """A number as a header stores it."""
    return np.int16(number).tobytes()


def one_hot(labels: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    """A mask of 0 and 1 for each of these labels, last."""
    return (labels[..., None] == values).astype(np.uint8)


def zeros(shape: tuple[int, ...], edges: tuple[float, ...] = (1, 1, 1)) -> bytes:
    """A compressed header and zeros; of many voxels, only the first and no end."""
    head = nib.Nifti1Header()
    head.set_data_shape(shape)
    head.set_sform(np.diag([*edges, 1]), 1)
    head.set_zooms(edges)
    head["magic"], head["vox_offset"] = b"n+1", 352
    return gzip.compress(head.binaryblock + bytes(4 + min(4 * int(np.prod(shape)), 2**20)))


VALUES = {"half": np.float32(1.5), "NaN": np.float32(np.nan), "minus one": np.float32(-1),
          "seven": np.float32(7), "infinite": np.float32(np.inf), "255": np.float32(255)}

REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no FLAIR": (lambda f: (f / "P_flair.nii.gz").unlink(), "no file for flair"),
    "no T1": (lambda f: (f / "P_t1.nii.gz").unlink(), "no file for t1"),
    "no T1CE": (lambda f: (f / "P_t1ce.nii.gz").unlink(), "no file for t1ce"),
    "no T2": (lambda f: (f / "P_t2.nii.gz").unlink(), "no file for t2"),
    "two T2": (lambda f: shutil.copy(f / "P_t2.nii.gz", f / "P_t2w.nii.gz"), "2 files for t2"),
    "two, gz and not": (lambda f: (f / "P_t1.nii").write_bytes(b""), "2 files for t1"),
    "a folder for a file": (replace_by_folder, "no file for t2"),
    "gzip cut in half": (raw("t2", lambda b: b[: len(b) // 2]), "cannot be opened as NIfTI"),
    "voxels inside the header": (header("t2", put(108, bytes(4))), "begin at byte 0, inside of"),
    "gzip without its end": (raw("t2", lambda b: b[:-4]), "cannot be opened as NIfTI"),
    "gzip with a flipped byte": (
        raw("t2",
            lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 255]) + b[len(b) // 2 + 1 :]),
        "cannot be opened as NIfTI|its voxels cannot be read",
    ),
    "gzip with another checksum": (raw("t2", lambda b: b[:-8] + b"abcd" + b[-4:]),
                                   "cannot be opened as NIfTI"),
    "gzip and garbage after it": (raw("t2", lambda b: b + b"garbage"), "cannot be opened as NIfTI"),
    "only gzip's header": (raw("t2", lambda b: b[:10]), "cannot be opened as NIfTI"),
    "an empty file": (raw("t2", lambda b: b""), "cannot be opened as NIfTI"),
    "gzip of nothing": (raw("t2", lambda b: gzip.compress(b"")), "cannot be opened as NIfTI"),
    "a text": (raw("t2", lambda b: b"see the other folder"), "cannot be opened as NIfTI"),
    "an HTML page": (raw("t2", lambda b: b"<html>404 Not Found</html>" * 40),
                     "cannot be opened as NIfTI"),
    "a Git LFS pointer": (raw("t2", lambda b: b"version https://git-lfs.github.com/spec/v1\noid x"),
                          "git lfs pull"),
    "gzip of a text": (raw("t2", lambda b: gzip.compress(b"x" * 1000)),
                       "cannot be opened as NIfTI"),
    "a header cut short": (raw("t2", lambda b: gzip.compress(gzip.decompress(b)[:200])),
                           "cannot be opened as NIfTI"),
    "a few voxels cut short": (raw("t2", lambda b: gzip.compress(gzip.decompress(b)[:-100])),
                               "cannot be read"),
    "voxels cut short": (raw("t2", lambda b: gzip.compress(gzip.decompress(b)[:-500])),
                         "promises .* bytes|cannot be read"),
    "wrong magic": (header("t2", put(344, b"xyz\0")), "cannot be opened as NIfTI"),
    "absurd dimensions": (header("t2", put(42, short(32767) * 3)), "promises"),
    "absurd in all files": (
        lambda f: [header(k, put(42, short(32767) * 3))(f) for k in ("flair", "t1", "t1ce", "t2")],
        "promises",
    ),
    "too many voxels": (lambda f: (f / "P_t2.nii.gz").write_bytes(zeros((1300, 1300, 1300))),
                        "1300 x 1300 x 1300 voxels, and a scan of a head has at most 268,435,456"),
    "longer than a head": (
        lambda f: [(f / f"P_{k}.nii.gz").write_bytes(zeros((2, 2, 251), (4, 4, 4)))
                   for k in ("flair", "t1", "t1ce", "t2")],
        "its volume measures 8 x 8 x 1004 mm, and a scan of a head at most 1,000 mm"),
    "a negative dimension": (header("t2", put(42, short(-5))), "its shape|cannot be opened"),
    "a dimension of zero": (header("t2", put(42, short(0))), "its shape"),
    **{f"a dimension of {number} in the {kind}": (
        header(kind, put(42, short(number))), f"its shape is .{number}, .* 1 or more.*damaged")
        for kind, number in (("flair", -5), ("t2", 0), ("seg", -1))},
    "more behind its voxels": (lambda f: (f / "P_t2.nii.gz").write_bytes(gzip.compress(
        gzip.decompress((f / "P_t2.nii.gz").read_bytes()) + bytes(2**27), 1)),
        "it unpacks to more than"),
    "a tar inside": (lambda f: (f / "P_t2.nii.gz").write_bytes(
        gzip.compress(bytes(257) + b"ustar" + bytes(250))), "it is a tar archive"),
    "unknown data type": (header("t2", put(70, short(999))), "cannot be opened as NIfTI"),
    "complex numbers": (change("t2", lambda v, a: (v.astype(np.complex64), a)), "complex"),
    "colors": (header("t2", put(70, short(128) + short(24))), "promises|color"),
    "2D": (change("t2", lambda v, a: (v[..., 5], a)), "3 dimensions"),
    "4D": (change("t2", lambda v, a: (np.stack([v, v], -1), a)), "3 dimensions"),
    "5D": (change("t2", lambda v, a: (np.stack([v, v], -1)[..., None], a)), "3 dimensions"),
    "a slice more": (change("t2", lambda v, a: (np.concatenate([v, v[..., :1]], -1), a)),
                     "its shape"),
    "axes swapped": (change("t2", lambda v, a: (v.transpose(1, 0, 2), a)), "its shape"),
    "moved by 2 mm": (
        change("t2", lambda v, a: (v, a + np.array([[0, 0, 0, 2.0], *[[0] * 4] * 3]))),
        "its affine differs",
    ),
    "mirrored affine in one": (change("t2", lambda v, a: (v, a @ np.diag([-1.0, 1, 1, 1]))),
                               "its affine differs"),
    "other voxel size": (change("t2", lambda v, a: (v, a @ np.diag([2.0, 2, 2, 1]))),
                         "its affine differs"),
    "oblique": (all_skewed, "oblique"),
    "zooms against the affine": (header("flair", put(80, np.float32(2.5).tobytes())),
                                 "by the header .* by the affine"),
    "affine of NaN": (header("flair", put(280, np.float32(np.nan).tobytes())), "affine"),
    "affine of NaN in all": (
        lambda f: [
            header(k, put(280, np.float32(np.nan).tobytes()))(f)
            for k in ("flair", "t1", "t1ce", "t2", "seg")
        ],
        "affine|oblique",
    ),
    "NaN": (change("t1", lambda v, a: (np.where(v == 0, np.float32(np.nan), v), a)),
            "NaN or infinite"),
    "infinite": (change("t1", lambda v, a: (np.where(v == v.max(), np.float32(np.inf), v), a)),
                 "NaN or infinite"),
    "all zero": (change("t1", lambda v, a: (v * 0, a)), "t1 is 0 everywhere"),
    "reference of another shape": (change("seg", lambda v, a: (v[:-1], a)), "is not the images'"),
    "reference moved": (
        change("seg", lambda v, a: (v, a + np.array([[0, 0, 0, 2.0], *[[0] * 4] * 3]))),
        "affine differs",
    ),
    "reference 4D": (change("seg", lambda v, a: (np.stack([v, v], -1), a)), "is not the images'"),
    "reference one-hot": (change("seg", lambda v, a: (one_hot(v, (0, 1, 2, 4)), a)),
                          r"looks one-hot, .* each label, .*save np.argmax.masks, 3., its"),
    "reference one-hot, no background": (
        change("seg", lambda v, a: (one_hot(v, (1, 2, 4)), a)),
        r"looks one-hot, .* each label, .*save np.where.masks.any.3., np.argmax.* . 1, 0.,"),
    "reference one-hot, channels first": (
        change("seg", lambda v, a: (np.moveaxis(one_hot(v, (0, 1, 2, 4)), 3, 0), a)),
        r"looks one-hot, .*save np.argmax.masks, 0.,"),
    "reference of regions": (
        change("seg", lambda v, a: (np.stack([v > 0, v == 1], -1).astype(np.uint8), a)),
        "each region, which overlap, .*painted over the larger one"),
    "reference cut short": (raw("seg", lambda b: b[:60]), "cannot be opened as NIfTI"),
    "label 3 and 4": (change("seg", lambda v, a: (np.where(v == 2, 3, v).astype(np.uint8), a)),
                      "both 3 and 4"),
    **{
        f"label {name}": (
            change("seg", lambda v, a, x=value: (np.where(v == 1, x, v).astype(np.float32), a)),
            "NaN or infinite" if not np.isfinite(value) else "are not among",
        )
        for name, value in VALUES.items()
    },
}


@pytest.mark.parametrize("damage", REFUSED)
def test_it_is_refused_with_patient_file_and_problem_and_nothing_is_written(
    tmp_path: Path, damage: str, faults
) -> None:
    folder = write_case(tmp_path / "in", "P", *small_volumes())
    apply, message = REFUSED[damage]
    apply(folder)
    case = find_cases(tmp_path / "in")[0]
    with pytest.raises(BratsError, match=message) as caught:
        preprocess_cohort([case], tmp_path / "out", 1.0, jobs=1)
    assert "patient P" in str(caught.value) and str(folder) in str(caught.value)
    assert not list((tmp_path / "out").iterdir())
    assert check_case(case)["problems"] == [str(caught.value)]
    faults("malformed scans")


def test_a_file_that_vanishes_is_named(small_case, tmp_path: Path, faults) -> None:
    small_case.images[2].unlink()
    with pytest.raises(BratsError, match="patient P1, .*P1_t1ce.nii.gz.*No such file"):
        preprocess_cohort([small_case], tmp_path / "out", 1.0, jobs=1)
    faults("malformed scans")


def test_cohorts_of_none_of_one_and_of_namesakes(tmp_path: Path, faults) -> None:
    with pytest.raises(BratsError, match="none is not there, and is not a folder"):
        find_cases(tmp_path / "none")
    (tmp_path / "P.zip").touch()
    with pytest.raises(BratsError, match="P.zip is not a folder but an archive: unpack it"):
        find_cases(tmp_path / "P.zip")
    (tmp_path / "P.zip").unlink()
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "inner.tar").write_bytes(b"")
    with pytest.raises(BratsError, match="no patient in .*inner.tar: give that as the source"):
        find_cases(tmp_path / "nested")
    with pytest.raises(BratsError, match="(?s)for `predict`, unpack it, .*tar: .* to `check`"):
        predict_cases([tmp_path / "nested"], None, tmp_path / "masks")
    write_case(tmp_path / "a", "P", *small_volumes())
    with pytest.raises(BratsError, match=r"1 patient\(s\).*at least two"):
        make_splits([case.name for case in find_cases(tmp_path / "a")], [1.0], 0)
    write_case(tmp_path / "a" / "b", "P", *small_volumes())
    with pytest.raises(BratsError, match="two patients are called P"):
        read_case(find_cases(tmp_path / "a")[0])
    faults("malformed cohorts", 4)


def scaled(folder: Path) -> None:
    """Half of each T1 intensity in the file, and a header that doubles it."""
    image = nib.load(folder / "P_t1.nii.gz")
    halved = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32) / 2, image.affine)
    halved.header.set_slope_inter(2.0, 0.0)
    halved.header.set_data_dtype(np.float32)
    path = folder / "P_t1.nii"
    nib.save(halved, path)
    content = bytearray(path.read_bytes())
    content[112:116] = np.float32(
        2
    ).tobytes()  # nibabel writes 1 for floating point; scanners do not
    content[352:] = (np.asarray(image.dataobj).T.astype(np.float32) / 2).tobytes()
    path.write_bytes(content)
    (folder / "P_t1.nii.gz").unlink()


ACCEPTED: dict[str, Callable[[Path], None]] = {
    "big-endian": change("t1", lambda v, a: (v.astype(">i2"), a)),
    "int32": change("t1", lambda v, a: (v.astype(np.int32), a)),
    "uint16": change("t1", lambda v, a: (v.astype(np.uint16), a)),
    "float64": change("t1", lambda v, a: (v.astype(np.float64), a)),
    "fractions": change("t1", lambda v, a: (v + np.float32(0.25), a)),
    "negative": change("t1", lambda v, a: ((-v).astype(np.int16), a)),
    "beyond int16": change("t1", lambda v, a: (v.astype(np.int32) * 90, a)),
    "float labels": change("seg", lambda v, a: (v.astype(np.float64), a)),
    "no tumor": change("seg", lambda v, a: (v * 0, a)),
    "label 3 for ET": change("seg", lambda v, a: (np.where(v == 4, 3, v).astype(np.uint8), a)),
    "upper case": lambda f: (f / "P_t1.nii.gz").rename(f / "P_T1.NII.GZ"),
    "a symbolic link": lambda f: [shutil.move(f / "P_t1.nii.gz", f.parent / "elsewhere.gz"),
                                  (f / "P_t1.nii.gz").symlink_to(f.parent / "elsewhere.gz")],
    "scl_slope": scaled,
    "litter of macOS": lambda f: (f / "._P_t1.nii.gz").write_bytes(b"x"),
}


@pytest.mark.parametrize("oddity", ACCEPTED)
def test_odd_but_right_is_read_and_returns_to_its_grid(tmp_path: Path, oddity: str, faults) -> None:
    folder = write_case(tmp_path / "in", "P", *small_volumes(), affine=np.diag([-1.0, -1, 1, 1]))
    before = read_case(find_cases(tmp_path / "in")[0])
    ACCEPTED[oddity](folder)
    cases = find_cases(tmp_path / "in")
    assert len(cases) == 1
    patient = read_case(cases[0])
    prepared = prepare(patient, 1.0)
    assert np.array_equal(restore(prepared.volume, prepared.meta)[:4], patient.images)
    assert np.array_equal(patient.images[0], before.images[0])
    if oddity in ("big-endian", "int32", "uint16", "float64", "upper case", "a symbolic link",
                  "scl_slope"):
        assert np.array_equal(patient.images, before.images) and patient.images.dtype == np.int16
    faults("odd scans")


@pytest.mark.parametrize(
    "name", ["with space", "Ünïcode", "-dash", "--out", "semi;colon", "dollar$HOME", "<script>"]
)
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    write_case(tmp_path, name, *small_volumes())
    assert [case.name for case in find_cases(tmp_path)] == [name]
    assert check_case(find_cases(tmp_path)[0])["problems"] == []


@pytest.mark.parametrize("shape", [(21, 26, 1), (4, 3, 5), (5, 40, 7)])
def test_small_volumes_are_prepared(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    write_case(tmp_path, "P", rng.integers(1, 900, (4, *shape)).astype(np.int16),
               np.zeros(shape, np.uint8))
    for spacing in (1.0, 2.0):
        prepared = prepare(read_case(find_cases(tmp_path)[0]), spacing)
        assert restore(prepared.volume, prepared.meta).shape == (5, *shape)


@pytest.mark.parametrize(
    ("change_of", "message"),
    [({"format": 99}, "format 1, found 99"),
     ({"channels": ("t1", "flair", "t1ce", "t2", "foreground")}, "trained with the"),
     ({"regions": ("ET", "TC", "WT")}, "regions ET, TC, WT"),
     ({"average": {}}, "does not fit the network")],
)
def test_foreign_checkpoints_are_refused(tmp_path: Path, change_of: dict, message: str,
                                         faults) -> None:
    config = Config(filters=(4, 6, 8), patch=16)
    write_checkpoint(tmp_path / "c.pt", config,
                     {"average": UNet(config.filters).state_dict(), **change_of})
    with pytest.raises(BratsError, match=message) as caught:
        load_checkpoint(tmp_path / "c.pt", CPU)
    assert "c.pt" in str(caught.value)
    faults("foreign checkpoints")


class Evil:
    """What a hostile checkpoint would hold: an object that runs something when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_nothing(tmp_path: Path, faults) -> None:
    torch.save({"format": 1, "average": Evil(tmp_path / "pwned")}, tmp_path / "evil.pt")
    with pytest.raises(BratsError, match="evil.pt cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "evil.pt", CPU)
    assert not (tmp_path / "pwned").exists()
    faults("foreign checkpoints")


@pytest.mark.parametrize(
    ("name", "value"),
    [("patch", 60), ("patch", 8), ("validation", 0), ("validation", 1.5), ("folds", 1), ("fold", 5),
     ("oversample_foreground", -0.1), ("overlap", 1), ("ema", 1), ("spacing_mm", 0),
     ("patients", 0), ("batch", 0), ("epochs", -1), ("steps", 0), ("learning_rate", 0),
     ("clip", -1), ("validate_every", 0), ("test_patients", -1), ("warmup", -5),
     ("weight_decay", -1), ("on_nan", "ignore"), ("seed", -1), ("steps", 2.5), ("epochs", "abc"),
     ("batch", True), ("learning_rate", "fast"), ("tta", "yes"), ("network", 3),
     ("patch", 1_000_000), ("spacing_mm", 1e-6), ("spacing_mm", 1e6), ("spacing_mm", float("nan")),
     ("overlap", 0.999999), ("batch", 10**9), ("steps", 10**12), ("epochs", 10**12),
     ("learning_rate", float("inf")), ("seed", 10**30), ("validation", 1e-320)],
)
def test_settings_that_cannot_work_are_refused_by_name(name: str, value: object, faults) -> None:
    with pytest.raises(BratsError, match=f"{name}={value!r} cannot work: it must be"):
        PRESETS["quick"].with_(**{name: value})
    faults("impossible settings")


def test_what_is_typed_is_read_as_it_is_meant_and_odd_words_stay_words() -> None:
    typed = {"1e3": 1000, "3e-4": 3e-4, "2.0": 2, "true": True, "abc": "abc", "{": "{", "-1": -1}
    for text, meant in typed.items():
        assert number_or_text(text) == meant and type(number_or_text(text)) is type(meant)
