"""Mends rows where a mend is mechanical: trailing commas, and scalars of another type than the format's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import orjson

from app.datasets.explaining import explain, find

# More than a row that was written by mistake has.
MAX_MENDS = 200
# A string, or a comma that nothing follows.
_COMMA = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")|,(?=\s*+(?:[}\]]|\Z))', re.DOTALL)
BOOLEANS: dict[Any, bool] = {"true": True, "false": False, "1": True, "0": False, 1: True, 0: False}


def mend(value: bytes | dict[str, Any], convert: Callable[[Any], Any]) -> Any | None:
    """The row in plain Python with its scalars as `convert` (which raises msgspec's `ValidationError`) wants them; None
    where that cannot be had by mending. Raises `RecursionError` for a row that nests too deeply."""
    row = _parsed(value) if isinstance(value, bytes) else orjson.loads(orjson.dumps(value, default=str))
    for _ in range(MAX_MENDS):
        try:
            convert(row)
        except msgspec.ValidationError as error:
            wrong = explain(error, row)
            mended = _as(wrong.expected, find(row, wrong.path)) if wrong.code == "wrong_type" and wrong.path else None
            if mended is None or not _put(row, wrong.path or "", mended):
                return None
        else:
            return row
    return None


def _parsed(raw: bytes) -> Any:
    for text in (raw, _COMMA.sub(lambda match: match[1] or b"", raw)):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            continue
    return None


def _as(expected: str | None, value: Any) -> Any | None:
    """A scalar as the expected type writes it; None where it cannot be."""
    if expected is None or not isinstance(value, bool | int | float | str):
        return None
    if "a string" in expected and not isinstance(value, str):
        return orjson.dumps(value).decode()
    if expected == "a boolean":
        return BOOLEANS.get(value.strip().lower() if isinstance(value, str) else value)
    return None


def _put(row: Any, path: str, value: Any) -> bool:
    """Writes a value at a path of a row; False where there is no such place."""
    parent, _, name = path.rpartition(".")
    if index := re.search(r"^(.*)\[(\d+)\]$", path):
        items = find(row, index[1])
        if isinstance(items, list) and int(index[2]) < len(items):
            items[int(index[2])] = value
            return True
        return False
    place = find(row, parent) if parent else row
    if not isinstance(place, dict) or name not in place:
        return False
    place[name] = value
    return True
