"""Tell how far a mask can be trusted, by the network's own guess of its Dice.

If a voxel belongs to the tumor with the probability that the network gives, the expected overlap
follows from the probabilities alone. Where a network is unsure, the guess is low. It is a guess:
a network can be sure and wrong (docs/zero_shot.md measures how often).
"""

from __future__ import annotations

import numpy as np


def expected_dice(probability: np.ndarray, mask: np.ndarray) -> float:
    """Estimate the Dice of a mask from the probabilities that it was made of, both (X, Y, Z).

    Returns 0 for an empty mask.
    """
    if not mask.any():
        return 0.0
    return 2 * float(probability[mask].sum()) / float(probability.sum() + mask.sum())
