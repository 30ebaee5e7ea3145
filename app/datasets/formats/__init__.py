"""The formats that rows come in: one row of the table each, one module each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from app.datasets.formats import alpaca, openai
from app.datasets.formats.checks import Turn


class Format(NamedTuple):
    """How rows are recognised and read. `read` raises `BadRow`; `expects` says in words what a row is made of."""

    name: str
    kind: str
    recognise: Callable[[dict[str, Any]], bool]
    read: Callable[[dict[str, Any]], list[Turn]]
    expects: str


# In the order in which they are tried: a row that could be two things is the first.
FORMATS: dict[str, Format] = {
    made.name: made
    for made in (
        Format("openai", "chat", openai.recognise, openai.read, "'messages', a list of 'role' and 'content'"),
        Format("alpaca", "chat", alpaca.recognise, alpaca.read, "'instruction' and 'output'"),
    )
}

# What marks a row of a kind that is not there yet: read as a chat row, it would teach the answers that it warns of.
OTHER_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "chosen": (bool, "preference pairs"),
    "rejected": (bool, "preference pairs"),
    "preferred_output": (bool, "preference pairs"),
    "label": (lambda value: type(value) is bool, "rows with a boolean label"),
    "kto_tag": (lambda value: type(value) is bool, "rows with a boolean label"),
    "conversations": (bool, "ShareGPT conversations"),
}


def recognise(row: dict[str, Any]) -> Format | None:
    """The format of a row, or None where it is none of those."""
    if other_kind(row):
        return None
    return next((made for made in FORMATS.values() if made.recognise(row)), None)


def other_kind(row: dict[str, Any]) -> tuple[str, str] | None:
    """The key that marks the row as one of a kind that is not there yet, and that kind's name."""
    found = (key for key, (marks, _) in OTHER_KINDS.items() if key in row and marks(row[key]))
    return next(((key, OTHER_KINDS[key][1]) for key in found), None)
