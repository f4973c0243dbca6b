"""Check that the content of a file has the shape that its reader needs.

A shape is a type, a tuple of shapes that are all allowed, [shape] for a list, {name: shape} for a
dictionary with at least these names, or {...: shape} for one with any names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BratsError
from .files import read_json

NAMES = {dict: "a dictionary", list: "a list", str: "text", int: "a whole number",
         float: "a number", bool: "true or false", type(None): "nothing"}
NUMBER = (int, float)


def mismatch(value: Any, shape: Any, where: str = "it") -> str:
    """Return what is wrong with a value, or "" if it has the shape."""
    if isinstance(shape, tuple) and not all(isinstance(kind, type) for kind in shape):
        found = [mismatch(value, option, where) for option in shape]
        return "" if "" in found else found[-1]
    kinds = shape if isinstance(shape, tuple) else (
        shape if isinstance(shape, type) else type(shape),)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(NAMES.get(kind, kind.__name__) for kind in dict.fromkeys(kinds))
        return f"{where} is {NAMES.get(type(value), type(value).__name__)}, not {wanted}"
    parts: list[tuple[Any, Any, str]] = []
    if isinstance(shape, list):
        parts = [(item, shape[0], f"item {i} of {where}") for i, item in enumerate(value)]
    elif isinstance(shape, dict) and ... in shape:
        parts = [(item, shape[...], f"{key!r} in {where}") for key, item in value.items()]
    elif isinstance(shape, dict):
        if missing := [str(key) for key in shape if key not in value]:
            return f"{where} has no {', '.join(missing)}"
        parts = [(value[key], inner, f"{key!r} in {where}") for key, inner in shape.items()]
    return next(filter(None, (mismatch(*part) for part in parts)), "")


def read_json_as(path: Path, made_by: str, shape: Mapping | list) -> Any:
    """Read a JSON file of a known shape; BratsError names the file and what is wrong with it."""
    try:
        content = read_json(path, made_by)
    except (OSError, RecursionError) as error:
        raise BratsError(f"{path} cannot be read ({error}): run {made_by} in another folder."
                         ) from error
    if problem := mismatch(content, shape):
        raise BratsError(f"{path} is not what {made_by} writes ({problem}): move it away and run "
                         f"{made_by} again.")
    return content
