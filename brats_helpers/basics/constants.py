"""The facts of the domain, each in one place.

Labels and regions are those of BraTS 2021 (Baid et al. 2021, arXiv:2107.02314, section 2.2);
thresholds are those of NVIDIA's Optimized U-Net (Futrega et al. 2021, arXiv:2110.03352, section
3.5). Colors are from Okabe and Ito's palette, which stays legible to color-blind readers.
"""

from __future__ import annotations

MODALITIES = ("flair", "t1", "t1ce", "t2")
CHANNELS = (*MODALITIES, "foreground")  # the network's input; "foreground" is the brain's mask
MODALITY_TITLES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1CE", "t2": "T2"}

# Inside the project labels are 0, 1, 2, 3; on disk the enhancing tumor is 4 (3 since BraTS 2023).
NCR, ED, ET = 1, 2, 3
LABEL_NAMES = {0: "background", NCR: "necrotic and non-enhancing core", ED: "peritumoral edema",
               ET: "enhancing tumor"}
LABEL_SHORT = {NCR: "NCR", ED: "ED", ET: "ET"}
DISK_ET = 4

# The three nested regions that BraTS scores, and their labels.
REGIONS = {"WT": (NCR, ED, ET), "TC": (NCR, ET), "ET": (ET,)}
REGION_TITLES = {"WT": "whole tumor", "TC": "tumor core", "ET": "enhancing tumor"}

BRATS_SHAPE = (240, 240, 155)  # voxels of 1 mm, x y z
SMALLEST_MM, LARGEST_MM = 0.2, 20.0  # plausible edge lengths of a voxel
ORIENTATION = ("L", "P", "S")  # the directions in which BraTS's indices grow

# Post-processing, from probabilities to labels.
REGION_THRESHOLDS = {"WT": 0.45, "TC": 0.40, "ET": 0.40}
SMALL_COMPONENT_MM3 = 16.0  # ET components smaller than this ...
SMALL_TOTAL_MM3 = 73.0  # ... and a whole ET smaller than this ...
SMALL_PROBABILITY = 0.9  # ... become NCR if their mean probability is below this

# If only the reference or the prediction is empty: the diagonal of a 240 x 240 x 155 mm volume.
HD95_EMPTY_MM = 373.1287

LABEL_COLORS = {NCR: "#0072B2", ED: "#009E73", ET: "#E69F00"}
REGION_COLORS = {"WT": "#56B4E9", "TC": "#CC79A7", "ET": "#E69F00"}  # WT is more than edema
# Safe for the color-blind, and distinct from the labels' colors.
ERROR_COLORS = {"missed": "#D81B60", "false": "#FFE03D", "correct": "#9AD7F5"}

ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz", ".zip", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz",
                   ".txz")

PRECISION = "BRATS_PRECISION"  # environment variable that overrides the precision
PRECISIONS = ("float32", "bfloat16", "float16")  # of matrix products

NOT_FOR_DIAGNOSIS = "for research and teaching, not for diagnosis"  # shown with every prediction
