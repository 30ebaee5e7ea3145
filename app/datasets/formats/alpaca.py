"""Alpaca rows: `instruction`, `output`, and where there are any `input`, `system` and `history`."""

from __future__ import annotations

from typing import Any

from app.datasets.formats.checks import BadRow, Turn, field, kind_of, optional_field, text


def recognise(row: dict[str, Any]) -> bool:
    """Whether the row looks like one of these, complete or not."""
    return "instruction" in row or "output" in row


def read(row: dict[str, Any]) -> list[Turn]:
    """The row as a conversation. The user's turn is `instruction`, then a newline and `input` where there is one.

    Raises `BadRow`.
    """
    instruction = field(row, "instruction")
    extra = optional_field(row, "input")
    answer = field(row, "output")
    turns: list[Turn] = []
    if system := optional_field(row, "system"):
        turns.append(("system", system))
    if history := row.get("history"):
        turns += _earlier_turns(history)
    turns.append(("user", f"{instruction}\n{extra}" if extra else instruction))
    turns.append(("assistant", answer))
    return turns


def _earlier_turns(history: Any) -> list[Turn]:
    if type(history) is not list:
        raise BadRow("history", f"must be a list of pairs of strings, is {kind_of(history)}")
    turns: list[Turn] = []
    for number, pair in enumerate(history):
        path = f"history[{number}]"
        if type(pair) is not list:
            raise BadRow(path, f"must be a pair of strings, is {kind_of(pair)}")
        if len(pair) != 2:
            raise BadRow(path, f"must be a pair of strings, has {len(pair)} items")
        turns.append(("user", text(pair[0], f"{path}[0]")))
        turns.append(("assistant", text(pair[1], f"{path}[1]")))
    return turns
