"""Why a row is not of its format's type: msgspec's words made into a path, what was found and what is expected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

MAX_SHOWN = 80
WORDS = {
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
    "null": "null",
    "array": "a list",
    "object": "an object",
}
KINDS: dict[type, str] = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


class Mismatch(NamedTuple):
    """Where a value is not what its type asks for."""

    code: str
    path: str | None
    found: str | None
    expected: str | None
    message: str


def kind_of(value: Any) -> str:
    """A JSON value's type in words."""
    return KINDS.get(type(value), "a value")


def shown(value: Any) -> str:
    """A JSON value as text, cut to what a message can hold."""
    try:
        text = orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError:
        return f"{kind_of(value)} that nests deeply"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def explain(error: Exception, row: Any) -> Mismatch:
    """What msgspec's `ValidationError` says of `row`, the same value as plain Python."""
    said, _, where = str(error).rpartition(" - at `")
    said, path = (said, where.rstrip("`").removeprefix("$").removeprefix(".")) if said else (str(error), "")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", said, re.DOTALL):
        return Mismatch("missing_field", f"{path}.{missing[1]}".lstrip("."), None, "a value", "is missing")
    value = find(row, path)
    found = shown(value)
    if (length := re.match(r"Expected `array` of length (\d+)", said)) and isinstance(value, list):
        expected = f"a list of {length[1]} items"
        return Mismatch("wrong_type", path or None, found, expected, f"must be {expected}, has {len(value)}")
    if wrong := re.fullmatch(r"Expected `(.*)`, got `(.*)`", said):
        expected = " or ".join(dict.fromkeys(WORDS.get(word, word) for word in wrong[1].split(" | ")))
        code = "wrong_type" if path else "not_an_object"
        return Mismatch(code, path or None, found, expected, f"must be {expected}, is {kind_of(value)}")
    if said.startswith("Invalid value") and path.endswith("type"):
        return Mismatch("unsupported_content", path, found, '"text"', f"is {found}; only text can be trained on")
    return Mismatch("wrong_value", path or None, found, None, f"is {found}, which is none of the values that it may be")


def find(row: Any, path: str) -> Any:
    """The value at a path like `messages[0].content`; None where there is none."""
    for name, index in re.findall(r"\.?([^.\[\]]+)|\[(\d+)\]", path):
        if name:
            row = row.get(name) if isinstance(row, Mapping) else None
        else:
            row = row[int(index)] if isinstance(row, list) and int(index) < len(row) else None
    return row
