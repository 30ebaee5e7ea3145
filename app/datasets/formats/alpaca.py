"""Alpaca rows: `instruction`, `input`, `output`, and where there are any `system` and `history`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.datasets.formats.layout import Field, Layout, Place, Reader, has, labelled, labels, read_tools, shape
from app.datasets.turns import Message, Row

COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "system": "system",
    "history": "history",
    "tools": "tools",
}
ANSWERS = {"chosen": "chosen", "rejected": "rejected"}
QUESTION: list[Field] = [
    ("prompt", str),
    ("query", str | None, None),
    ("system", str | None, None),
    ("history", list[tuple[str, str]] | None, None),
    ("tools", Any, None),
]
FIELDS: dict[str, list[Field]] = {
    "chat": [("response", str), *QUESTION],
    "preference": [("chosen", str), ("rejected", str), *QUESTION],
    "labels": [("response", str), ("kto_tag", bool), *QUESTION],
    "prompts": [*QUESTION, ("response", str | None, None)],
}


def _question(row: Any, layout: Layout) -> list[Message]:
    """The turns before the answer. The user's is `instruction`, then a newline and `input` where there is one."""
    messages = [Message("system", row.system)] if row.system else []
    for asked, answered in row.history or ():
        messages += (Message("user", asked), Message("assistant", answered))
    prompt, query = row.prompt, row.query
    messages.append(Message("user", f"{prompt}\n{query}" if prompt and query else prompt or query))
    return messages


def _chat(row: Any, layout: Layout) -> Row:
    messages = _question(row, layout)
    messages.append(Message("assistant", row.response))
    return Row(messages, read_tools(row.tools, layout.keys["tools"]))


def _preference(row: Any, layout: Layout) -> Row:
    chosen, rejected = [Message("assistant", row.chosen)], [Message("assistant", row.rejected)]
    return Row(_question(row, layout), read_tools(row.tools, layout.keys["tools"]), chosen, rejected)


def _prompts(row: Any, layout: Layout) -> Row:
    return Row(_question(row, layout), read_tools(row.tools, layout.keys["tools"]), reference=row.response)


def _place(row: Any, layout: Layout, place: Place) -> str:
    if place.part != "messages":
        return layout.keys[place.part]
    index = place.number - bool(row.system)
    earlier = len(row.history or ())
    if index < 0:
        return layout.keys["system"]
    if index < 2 * earlier:
        return f"{layout.keys['history']}[{index // 2}][{index % 2}]"
    return layout.keys["prompt"] if index == 2 * earlier else layout.keys["response"]


def _is_preference(layout: Layout, row: Mapping[str, Any]) -> bool:
    return has(layout, row, "prompt") and (has(layout, row, "chosen") or has(layout, row, "rejected"))


def _is_chat(layout: Layout, row: Mapping[str, Any]) -> bool:
    return has(layout, row, "prompt") or has(layout, row, "response")


READERS = (
    Reader(
        "alpaca",
        "preference",
        COLUMNS | ANSWERS,
        _is_preference,
        shape("AlpacaRow", FIELDS["preference"]),
        _preference,
        _place,
        "'instruction', 'chosen' and 'rejected'",
    ),
    Reader(
        "alpaca",
        "labels",
        COLUMNS | {"kto_tag": "label"},
        lambda layout, row: _is_chat(layout, row) and labelled(layout, row),
        shape("AlpacaRow", FIELDS["labels"]),
        labels(_chat),
        _place,
        "'instruction', 'output' and a boolean 'label'",
    ),
    Reader(
        "alpaca",
        "chat",
        COLUMNS,
        _is_chat,
        shape("AlpacaRow", FIELDS["chat"]),
        _chat,
        _place,
        "'instruction' and 'output'",
    ),
    Reader(
        "alpaca",
        "prompts",
        COLUMNS,
        lambda layout, row: has(layout, row, "prompt"),
        shape("AlpacaRow", FIELDS["prompts"]),
        _prompts,
        _place,
        "'instruction'",
    ),
)
