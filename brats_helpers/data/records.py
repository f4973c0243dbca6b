"""Define a patient's files, the patient in memory, and the unused files on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from ..basics.files import Packed

# Line breaks and other control characters, and bytes that are no text in the disk's encoding.
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shown(text: str) -> str:
    """Escape the characters that would break a line or a table."""
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


@dataclass(frozen=True)
class Case:
    """The places of a patient's files, on disk or in a plain tar."""

    name: str
    images: tuple[Path | Packed, ...]  # one per modality, ordered as MODALITIES; or one 4D file
    reference: Path | Packed | None  # the expert's segmentation, if there is one
    channels: tuple[int, ...] = ()  # of a 4D file: the place of each modality in it
    problem: str = ""  # why it cannot be read, if the names alone tell
    reference_problem: str = ""  # the same of its reference
    labels: tuple[tuple[int, int], ...] = ()  # of dataset.json or dseg.tsv: on disk, here
    missing: tuple[str, ...] = ()  # modalities without a file
    hint: str = ""  # files that may be the missing ones


@dataclass
class Patient:
    """A patient in memory, in the index order (X, Y, Z) and orientation of the files."""

    name: str
    images: np.ndarray  # (4, X, Y, Z) int16, or float32 where int16 would lose something
    reference: np.ndarray | None  # (X, Y, Z) uint8, labels 0 to 3
    affine: np.ndarray  # (4, 4), voxel indices to mm; right, anterior and superior are positive
    notes: tuple[str, ...] = ()  # remarks from reading
    numbering: int = 0  # of the reference, where there is a doubt (`labels.numbering`)
    doubts: tuple[str, ...] = ()  # what had to be guessed in reading

    @property
    def spacing(self) -> tuple[float, ...]:
        """Return the edges of a voxel in mm."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def orientation(self) -> str:
        """Return the directions in which the three indices grow, "LPS" for BraTS."""
        return "".join(nib.aff2axcodes(self.affine))


@dataclass(frozen=True)
class Unused:
    """A file or folder that looks like part of a patient but is not read."""

    path: Path | Packed
    reason: str
    remedy: str = ""  # empty: nothing needs to be done

    def __str__(self) -> str:
        return shown(f"{self.path}: {self.reason}" + (f"; {self.remedy}." if self.remedy else "."))


@dataclass(frozen=True)
class Found:
    """The patients of a place, sorted by name, and everything that is not used."""

    cases: list[Case]
    unused: list[Unused]
