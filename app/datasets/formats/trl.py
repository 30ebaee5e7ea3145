"""TRL's rows: `prompt`, `completion`, `chosen`, `rejected`, each a string or messages; prompts with a reference."""

from __future__ import annotations

from typing import Any

from app.datasets.formats.layout import (
    Field,
    Layout,
    Place,
    Reader,
    has,
    labelled,
    labels,
    read_tools,
    shape,
    split_answers,
)
from app.datasets.formats.openai import WireMessage, read_messages
from app.datasets.turns import Message, Role, Row

Text = str | list[WireMessage]
FIELDS: dict[str, list[Field]] = {
    "chat": [("prompt", Text), ("completion", Text), ("tools", Any, None)],
    "labels": [("prompt", Text), ("completion", Text), ("kto_tag", bool), ("tools", Any, None)],
    "preference": [("chosen", Text), ("rejected", Text), ("prompt", Text | None, None), ("tools", Any, None)],
    "prompts": [("prompt", Text), ("reference", str | None, None), ("tools", Any, None)],
}


def _turns(value: Text | None, role: Role, path: str) -> list[Message]:
    if value is None:
        return []
    return [Message(role, value)] if isinstance(value, str) else read_messages(value, path)


def _chat(row: Any, layout: Layout) -> Row:
    messages = _turns(row.prompt, "user", layout.keys["prompt"]) + _turns(
        row.completion, "assistant", layout.keys["completion"]
    )
    return Row(messages, read_tools(row.tools, layout.keys["tools"]))


def _preference(row: Any, layout: Layout) -> Row:
    prompt = _turns(row.prompt, "user", layout.keys["prompt"])
    chosen, rejected = (_turns(getattr(row, name), "assistant", layout.keys[name]) for name in ("chosen", "rejected"))
    both = 0 if prompt else split_answers(chosen, rejected)
    return Row(prompt + chosen[:both], read_tools(row.tools, layout.keys["tools"]), chosen[both:], rejected[both:])


def _prompts(row: Any, layout: Layout) -> Row:
    return Row(
        _turns(row.prompt, "user", layout.keys["prompt"]),
        read_tools(row.tools, layout.keys["tools"]),
        reference=row.reference,
    )


def _place(row: Any, layout: Layout, place: Place) -> str:
    name, index = ("prompt" if place.part == "messages" else place.part), place.number
    value = getattr(row, name)
    if name == "prompt" and value is None:
        name = "chosen"  # the prompt is what both answers begin with
    elif name == "prompt" and index >= (length := 1 if isinstance(value, str) else len(value)):
        name, index = "completion", index - length
    elif row.__struct_fields__[0] == "chosen" and row.prompt is None:
        index += split_answers(*(_turns(each, "assistant", "") for each in (row.chosen, row.rejected)))
    if isinstance(getattr(row, name), str):
        return layout.keys[name]
    return f"{layout.keys[name]}[{index}]" + (".content" if place.content else "")


TOOLS = {"tools": "tools"}
READERS = (
    Reader(
        "trl",
        "preference",
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"} | TOOLS,
        lambda layout, row: has(layout, row, "chosen", "rejected"),
        shape("TRLRow", FIELDS["preference"]),
        _preference,
        _place,
        "'prompt', 'chosen' and 'rejected'",
    ),
    Reader(
        "trl",
        "labels",
        {"prompt": "prompt", "completion": "completion", "kto_tag": "label"} | TOOLS,
        lambda layout, row: has(layout, row, "prompt", "completion") and labelled(layout, row),
        shape("TRLRow", FIELDS["labels"]),
        labels(_chat),
        _place,
        "'prompt', 'completion' and a boolean 'label'",
    ),
    Reader(
        "trl",
        "chat",
        {"prompt": "prompt", "completion": "completion"} | TOOLS,
        lambda layout, row: has(layout, row, "prompt", "completion"),
        shape("TRLRow", FIELDS["chat"]),
        _chat,
        _place,
        "'prompt' and 'completion'",
    ),
    Reader(
        "trl",
        "prompts",
        {"prompt": "prompt", "reference": "reference"} | TOOLS,
        lambda layout, row: has(layout, row, "prompt"),
        shape("TRLRow", FIELDS["prompts"]),
        _prompts,
        _place,
        "'prompt'",
    ),
)
