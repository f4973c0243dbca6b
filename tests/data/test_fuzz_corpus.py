"""The fuzzer's seeds, and what it once crashed on, stay harmless; `make fuzz` looks for more."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.targets import CORPUS, TARGETS


@pytest.mark.parametrize("path", sorted(CORPUS.rglob("*/*")),
                         ids=lambda path: f"{path.parent.name}-{path.name}")
def test_it_is_read_or_refused_in_our_words(path: Path, faults) -> None:
    TARGETS[path.parent.name](path.read_bytes())
    faults("fuzzer's inputs")
