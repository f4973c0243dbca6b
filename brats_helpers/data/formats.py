"""Write the cohort for other tools: nnU-Net v2's raw dataset and the Decathlon's list.

Images are listed where they lie (nnU-Net's "dataset" key, nnunetv2, dataset_format.md). References
are written again, with 3 for the enhancing tumor, because nnU-Net wants consecutive labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
from tqdm import tqdm

from ..basics.constants import MODALITIES, MODALITY_TITLES, REGION_TITLES, REGIONS
from ..basics.errors import BratsError
from ..basics.files import atomic_path, read_json, write_json
from .cases import Case, read_reference
from .finding import EXPORT
from .nifti import open_image
from .pipeline import content_hash

DATASET = "Dataset021_BraTS"
CHANNEL_NAMES = {str(i): MODALITY_TITLES[m] for i, m in enumerate(MODALITIES)}
PHANTOM_INFO = {
    "name": "BraTS-like phantoms", "licence": "MIT",
    "reference": "synthetic, grown on the ICBM 2009a template",
    "description": "synthetic patients for teaching; not for diagnosis"}
BRATS_INFO = {
    "name": "BraTS", "licence": "as stated by the challenge's organizers",
    "reference": "Baid et al. 2021, arXiv:2107.02314; Menze et al. 2015; Bakas et al. 2017",
    "description": "not for diagnosis"}


def write_nnunet(cases: Sequence[Case], splits: dict, folder: Path, synthetic: bool) -> Path:
    """Write `folder`/Dataset021_BraTS: labelsTr/ and lists for nnU-Net, the Decathlon and MONAI.

    BratsError for a case without a reference or one unpacked file per modality. Returns the path.
    """
    root = Path(folder) / DATASET
    sources = read_json(root / EXPORT, "notebook 03") if (root / EXPORT).is_file() else {}
    rows = {}
    for case in tqdm(cases, desc="export", unit="patient"):
        if not exportable(case):
            raise BratsError(f"patient {case.name}: the export needs a file for each modality, "
                             "unpacked, and a reference; leave this patient out.")
        label, tag = root / "labelsTr" / f"{case.name}.nii.gz", content_hash(case, 0)
        if sources.get(case.name) != tag or not label.is_file():
            _write_label(case, label)
            sources[case.name] = tag
            write_json(root / EXPORT, sources)
        rows[case.name] = {"images": [str(p.resolve()) for p in case.images],
                           "label": str(label.resolve())}
    for label in (root / "labelsTr").glob("*.nii.gz"):  # of patients that an earlier export had
        if label.name.removesuffix(".nii.gz") not in rows:
            label.unlink()
    write_json(root / "dataset.json", _nnunet_description(rows, synthetic))
    write_json(root / "splits_final.json",
               [{"train": sorted(set(rows) - set(fold)), "val": [n for n in fold if n in rows]}
                for fold in splits["folds"]])
    write_json(root / "dataset_msd.json", _msd_description(rows, splits, synthetic))
    return root


def exportable(case: Case) -> bool:
    """Tell whether other tools can read this patient's images where they are."""
    return bool(case.reference and not case.channels and isinstance(case.images[0], Path))


def _write_label(case: Case, path: Path) -> None:
    # nnU-Net compares the label's geometry with the images'
    like = open_image(case, case.images[0])
    labels, _ = read_reference(case, like.shape, like.affine)
    header = like.header.copy()
    header.set_data_dtype(labels.dtype)
    header.set_slope_inter(1, 0)
    with atomic_path(path) as temporary:
        nib.save(nib.Nifti1Image(labels, like.affine, header), temporary)


def _nnunet_description(rows: dict, synthetic: bool) -> dict:
    labels = {REGION_TITLES[name]: list(members) if len(members) > 1 else members[0]
              for name, members in REGIONS.items()}
    return {"channel_names": CHANNEL_NAMES, "labels": {"background": 0, **labels},
            "regions_class_order": [2, 1, 3],  # painted in this order: edema, then NCR, then ET
            "numTraining": len(rows), "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "NibabelIO", "dataset": rows,
            **(PHANTOM_INFO if synthetic else BRATS_INFO)}


def _msd_description(rows: dict, splits: dict, synthetic: bool) -> dict:
    def entries(names: Sequence[str]) -> list[dict]:
        return [{"image": rows[n]["images"], "label": rows[n]["label"]} for n in names if n in rows]

    return {**(PHANTOM_INFO if synthetic else BRATS_INFO), "tensorImageSize": "4D",
            "numTraining": len(entries(splits["training"])), "numTest": 0,
            "modality": CHANNEL_NAMES,
            "labels": {"0": "background", "1": "necrotic and non-enhancing core", "2": "edema",
                       "3": "enhancing tumor"},
            "training": entries(splits["training"]), "validation": entries(splits["validation"]),
            "test": []}
