"""Tell what the numbers in a reference mean, by data set and year.

Inside the project 1 is the necrotic or non-enhancing core (NCR), 2 edema (ED), 3 enhancing
tumor (ET). Sources: Menze et al. 2015, doi:10.1109/TMI.2014.2377694 (BraTS 2012 to 2016); Baid et
al. 2021, arXiv:2107.02314 (BraTS 2017 to 2021); Kazerooni et al.
2023, arXiv:2305.17033 (PED); LaBella et al. 2023, arXiv:2305.07642 (MEN); Moawad et al. 2023,
arXiv:2306.00838 (MET); Adewole et al. 2023, arXiv:2305.19369 (SSA); de Verdier et al. 2024,
arXiv:2405.18368 (GLI after treatment); Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..basics.constants import DISK_ET, ED, ET, LABEL_NAMES, LABEL_SHORT, NCR
from .records import Case

ROUNDING = 1e-3  # labels this near to a whole number are that number
NEW_NAME = re.compile(r"t2f\.nii", re.IGNORECASE)  # FLAIR's ending since BraTS 2023
MSD_LABELS = {1: ED, 2: NCR, 3: ET}
NO_CLASS = -1  # of a number that a list names, such as a cavity's: refused where it occurs

# Names of data sets in which 4 is the enhancing tumor and 3 is no label, or was the core.
WITHOUT_3 = re.compile(r"brats(20)?(1\d|2[01])|fets|upenn-gbm|ucsf-pdgm|tcga",
                       re.IGNORECASE)


@dataclass(frozen=True)
class Scheme:
    """The labels of a data set, number on disk -> label here, and the refused ones."""

    title: str
    names: str  # pattern of its patients' names
    table: Mapping[int, int]
    on_disk: tuple[int, int, int, int] = (0, 1, 2, 3)  # as masks are written: background, NCR, ...
    refused: Mapping[int, str] = field(default_factory=dict)


CAVITY = {4: "after treatment (BraTS 2024) label 4 is the resection cavity; up to BraTS 2021 it "
             "was the enhancing tumor"}
IRRADIATED = {1: "the volume that was irradiated, which is no BraTS region"}
OLD = {1: NCR, 2: ED, 3: ET, DISK_ET: ET}
OLDEST = {1: NCR, 2: ED, 3: NCR, DISK_ET: ET}  # 3: the core that does not enhance
NEW = {1: NCR, 2: ED, 3: ET}
PEDIATRIC = Scheme("BraTS-PED since 2024", "BraTS-PED-", {1: ET, 2: NCR, 3: NCR, 4: ED},
                   (0, 2, 4, 1))
SCHEMES = (
    Scheme("BraTS 2012 to 2016", "brats_(2013|tcia|syn|hg|lg)", OLDEST, (0, 1, 2, DISK_ET)),
    PEDIATRIC,
    Scheme("BraTS-MEN-RT", "BraTS-MEN-RT-", {}, refused=IRRADIATED),
    Scheme("BraTS-MEN 2023", "BraTS-MEN-", NEW),
    Scheme("BraTS-MET 2023 to 2025", "BraTS-MET-", NEW, refused=CAVITY),
    Scheme("BraTS-GLI, SSA, GoAT 2023 to 2025", "BraTS-[A-Z]+-|UCSD-PTGBM|MU-Glioma|"
           r"PatientID_\d+_Timepoint", NEW, refused=CAVITY),
    Scheme("BraTS 2017 to 2021, FeTS, UPENN-GBM, UCSF-PDGM, TCGA", "", OLD, (0, 1, 2, DISK_ET)))


def scheme_of(case: Case) -> Scheme:
    """Return the labels of the data set that a patient belongs to, judged by the names."""
    if case.labels:
        first = {here: value for value, here in reversed(case.labels)}
        free = iter(sorted(set(range(1, 256)) - {value for value, _ in case.labels}))
        on_disk = (0, *(first[here] if here in first else next(free) for here in (NCR, ED, ET)))
        table = {value: here for value, here in case.labels if here != NO_CLASS}
        return Scheme("its list of labels", "", table, on_disk)
    for scheme in SCHEMES[:-1]:
        if re.match(scheme.names, case.name, re.IGNORECASE):
            return scheme
    return SCHEMES[-2 if case.images and NEW_NAME.search(case.images[0].name) else -1]


def unnamed(case: Case, present: Iterable[int]) -> list[str]:
    """Return a warning for each label in a mask that the patient's list of labels does not name."""
    known, on_disk = {here for _, here in case.labels}, scheme_of(case).on_disk
    return [f"patient {case.name}: the list of labels names no {LABEL_NAMES[here]}, which the mask "
            f"has as {on_disk[here]}" for here in present if case.labels and here not in known]


def as_written(case: Case) -> dict[int, int]:
    """Return number -> label in our masks of a patient; a free 4 is ET, as in older versions."""
    return {DISK_ET: ET, **dict(zip(scheme_of(case).on_disk[1:], (NCR, ED, ET), strict=True))}


def lookup(table: Mapping[int, int]) -> np.ndarray:
    """Return the label for each number 0 to 255 on disk: (256,) uint8."""
    found = np.zeros(256, np.uint8)
    found[list(table)] = list(table.values())
    return found


def rounded(values: np.ndarray) -> np.ndarray:
    """Round labels that lie within 0.001 of a whole number, and leave the others."""
    if values.dtype.kind != "f":
        return values
    whole = np.rint(values)
    return np.where(np.abs(values - whole) <= ROUNDING, whole, values)


def refusal(case: Case, values: list[float]) -> tuple[str, str] | None:
    """Return what is wrong with the labels found in a reference, and what to do; else None."""
    scheme = scheme_of(case)
    if not scheme.table:
        return (f"its labels are not those of a tumor's regions ({scheme.title}): "
                f"{scheme.refused[1]}", "leave it out")
    if taken := [v for v in values if v in scheme.refused]:
        return (f"it has label {taken[0]:g}, whose meaning is not certain: "
                f"{scheme.refused[taken[0]]}", "if it is the enhancing tumor, write it as 3; if "
                "not, it has no class here: leave this patient out")
    if bad := [v for v in values if v and v not in scheme.table]:
        return (f"labels {[round(v, 4) for v in bad[:5]]} are not among "
                f"{[0, *sorted(scheme.table)]} ({scheme.title})",
                "change them to these labels, or leave this patient out")
    if scheme is SCHEMES[-1] and {3, DISK_ET} <= set(values):
        return ("it has both 3 and 4: in BraTS 2012 to 2016 label 3 is the non-enhancing core and "
                "4 the enhancing tumor; after treatment (BraTS 2024) 3 is the enhancing tumor and "
                "4 the resection cavity", "if the set is of the older kind, change 3 to 1; if of "
                "the later kind, leave this patient out")
    return None


def numbering(case: Case, values: list[float]) -> int:
    """Return the label that tells two numberings of a data set apart; 0 if there is no doubt.

    In BraTS 2017 to 2021 and the like, it is the label of ET, 3 or 4. In BraTS-PED it is 4 if the
    reference has a 4, as numbered since 2024, 1 if it has only others, and 0 if it is empty.
    """
    if scheme_of(case) is PEDIATRIC:
        return DISK_ET if DISK_ET in values else int(any(values))
    return next((v for v in (3, DISK_ET) if v in values and scheme_of(case) is SCHEMES[-1]), 0)


def doubtful(found: Mapping[str, int]) -> list[str]:
    """Return a warning for each data set in which another label may be the enhancing tumor.

    `found` holds the number from `numbering` by patient.
    """
    children = {name: label for name, label in found.items()
                if re.match(PEDIATRIC.names, name, re.IGNORECASE)}
    sets: dict[str, dict[int, list[str]]] = {}
    for name in found.keys() - children:
        match = WITHOUT_3.match(name)
        of = sets.setdefault(match[0].lower() if match else "", {3: [], DISK_ET: []})
        of[found[name]].append(name)
    warnings = []
    for known, of in sorted(sets.items()):
        if of[3] and (known or of[DISK_ET]):
            other = (f"label 4 in {len(of[DISK_ET])}, such as {min(of[DISK_ET])}" if of[DISK_ET]
                     else "their data set has 4 for it")
            warnings.append(
                f"label 3 is read as the enhancing tumor in {len(of[3])} patient(s), such as "
                f"{min(of[3])}, and {other}: nothing is lost if a copy was renumbered; if 3 is the "
                "non-enhancing core (BraTS 2012 to 2016), change it to 1")
    if children and DISK_ET not in children.values():
        warnings.append(f"no pediatric reference has label 4 ({len(children)} patient(s), such as "
                        f"{min(children)}), and they are read as numbered since 2024: 1 ET, 2 and "
                        "3 NCR. If they are from 2023, 1 may be NCR, 2 ED and 3 ET: then change 1 "
                        "to 2, 2 to 4 and 3 to 1")
    return warnings


def label_table() -> str:
    """Return the labels of all known data sets as lines of text."""
    return "\n".join(f"{scheme.title:<56}" + ", ".join(
        [f"{value} {LABEL_SHORT[label]}" for value, label in scheme.table.items()]
        + [f"{value} refused" for value in scheme.refused])
        for scheme in (*SCHEMES, Scheme("Decathlon Task01", "", MSD_LABELS)))
