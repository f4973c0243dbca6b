"""Pictures from inside the network, and of a prediction that forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CPU

from brats_helpers.data.preprocessing import Prepared, prepare
from brats_helpers.lessons.features import draw_features, draw_forming, feature_maps, most_varied
from brats_helpers.network.unet import UNet
from brats_helpers.phantoms.kinds import make_patient


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(make_patient(0, 0, 6.0), 6.0)


def test_every_level_shows_the_same_slice_at_its_own_size(prepared: Prepared) -> None:
    torch.manual_seed(0)
    model = UNet((4, 6, 8))
    maps = feature_maps(model, prepared, CPU)
    height, width = prepared.volume.shape[2:]
    half, quarter = ((-(-height // n), -(-width // n)) for n in (2, 4))
    assert {name: found.shape for name, found in maps.items()} == {
        "input": (5, height, width), "encoder 0": (4, height, width), "encoder 1": (6, *half),
        "encoder 2": (8, *quarter), "decoder 1": (6, *half), "decoder 0": (4, height, width),
        "output": (3, height, width)}
    at = int((prepared.reference > 0).sum((1, 2)).argmax())
    assert np.array_equal(maps["input"][4] > 0, prepared.volume[:4, at].any(0))
    assert not model.encoder[0]._forward_hooks  # nothing is left behind
    figure = draw_features(maps, True)
    figure.canvas.draw()
    assert sum(bool(ax.images) for ax in figure.axes) == 2 + 2 * 5
    assert "encoder 2 8x" in figure._repr_mimebundle_()[1]["image/png"]["alt"]


def test_the_channels_that_vary_most_are_shown_in_order() -> None:
    maps = np.random.default_rng(0).standard_normal((4, 9, 9)) * np.array([1, 9, 2, 8])[:, None,
                                                                                       None]
    assert list(most_varied(maps)) == [1, 3]


def test_a_forming_prediction_is_drawn_with_its_steps_or_without_any(prepared: Prepared) -> None:
    found = {step: np.full((3, *prepared.volume.shape[2:]), step / 100) for step in (0, 25, 100)}
    figure = draw_forming(prepared, found, True)
    figure.canvas.draw()
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:4] == ["FLAIR and reference", "after 0 steps", "after 25 steps",
                          "after 100 steps"]
    assert "0, 25, 100 steps" in figure._repr_mimebundle_()[1]["image/png"]["alt"]
    assert "not for diagnosis" in " ".join(text.get_text() for text in figure.texts)
    assert len(draw_forming(prepared, {}).axes) == 1
