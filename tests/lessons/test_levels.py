"""The levels of a U-Net, counted."""

from __future__ import annotations

from brats_helpers.lessons.levels import level_table


def test_level_table_counts_every_parameter_and_doubles_the_field() -> None:
    rows = level_table((64, 96, 128, 192, 256, 384, 512), 128)
    assert sum(row["parameters"] for row in rows) == 50_838_665
    assert [row["receptive_field"] for row in rows[:7]] == [5, 11, 23, 47, 95, 191, 383]
    assert [row["edge"] for row in rows[:7]] == [128, 64, 32, 16, 8, 4, 2]
