"""ShareGPT rows: `conversations` of `from` and `value`, with tools; pairs and labels as LLaMA-Factory writes them."""

from __future__ import annotations

from collections.abc import Mapping
from types import GenericAlias
from typing import Any

import msgspec
from msgspec import Struct

from app.datasets.formats.layout import (
    BadRow,
    Field,
    Layout,
    Place,
    Reader,
    has,
    labelled,
    labels,
    read_call,
    read_tools,
    struct,
)
from app.datasets.turns import Message, Role, Row, ToolCall

# Name of a tag → canonical role.
ROLE_TAGS: dict[str, Role] = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "assistant",
    "system_tag": "system",
}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
COLUMNS = {"messages": "conversations", "system": "system", "tools": "tools"}
ANSWERS = {"chosen": "chosen", "rejected": "rejected"}
MEDIA = ("images", "videos", "audios")


def _turn(tags: Mapping[str, str]) -> type[Struct]:
    rename = {"role": tags["role_tag"], "content": tags["content_tag"]}
    return msgspec.defstruct("Turn", [("role", str), ("content", str)], rename=rename, gc=False)


def _messages(turns: list[Any], path: str, tags: Mapping[str, str]) -> list[Message]:
    roles = {tags[tag]: role for tag, role in ROLE_TAGS.items()}
    function, messages = tags["function_tag"], list[Message]()
    for turn in turns:
        role = roles.get(turn.role)
        if role is None:
            expected = f"one of {', '.join(roles)}"
            where = f"{path}[{len(messages)}].{tags['role_tag']}"
            raise BadRow("unknown_role", where, f"is '{turn.role[:40]}'; must be {expected}", expected)
        if turn.role == function:
            calls = _calls(turn.content, f"{path}[{len(messages)}].{tags['content_tag']}")
            messages.append(Message("assistant", tool_calls=calls))
        else:
            messages.append(Message(role, turn.content))
    return messages


def _calls(text: str, path: str) -> list[ToolCall]:
    """The calls of a `function_call` turn: the JSON text of one `{"name", "arguments"}` or a list of them."""
    expected = 'the JSON text of {"name", "arguments"}'
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRow("invalid_tools", path, f"is not valid JSON: {error}", expected) from None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise BadRow("invalid_tools", path, f"must be {expected}", expected)
    return [read_call(call["name"], call.get("arguments", {}), path) for call in calls]


def _chat(row: Any, layout: Layout) -> Row:
    for name in MEDIA:
        if getattr(row, name):
            raise BadRow("unsupported_content", name, f"{name} cannot be trained on", "text")
    messages = _messages(row.messages, layout.keys["messages"], layout.tags)
    if row.system:
        messages.insert(0, Message("system", row.system))
    return Row(messages, read_tools(row.tools, layout.keys["tools"]))


def _preference(row: Any, layout: Layout) -> Row:
    made = _chat(row, layout)
    made.chosen = _messages([row.chosen], layout.keys["chosen"], layout.tags)
    made.rejected = _messages([row.rejected], layout.keys["rejected"], layout.tags)
    return made


def _place(row: Any, layout: Layout, place: Place) -> str:
    content = f".{layout.tags['content_tag']}" if place.content else ""
    if place.part != "messages":
        return layout.keys[place.part] + content
    index = place.number - bool(row.system)
    return layout.keys["system"] if index < 0 else f"{layout.keys['messages']}[{index}]{content}"


def _shape(kind: str) -> Any:
    def shape(layout: Layout) -> type[Struct]:
        turn = _turn(layout.tags)
        more: dict[str, list[Field]] = {
            "chat": [],
            "preference": [("chosen", turn), ("rejected", turn)],
            "labels": [("kto_tag", bool)],
        }
        optional: list[Field] = [("system", str | None, None), *((name, Any, None) for name in ("tools", *MEDIA))]
        return struct("ShareGPTRow", [("messages", GenericAlias(list, (turn,))), *more[kind], *optional], layout)

    return shape


def _is_chat(layout: Layout, row: Mapping[str, Any]) -> bool:
    """By its default key, or, where turns lie under another, by what the first of them has."""
    key = layout.keys["messages"]
    turns = row.get(key)
    first = turns[0] if isinstance(turns, list) and turns else None
    return key in row and (key == COLUMNS["messages"] or (isinstance(first, dict) and layout.tags["role_tag"] in first))


def _is_preference(layout: Layout, row: Mapping[str, Any]) -> bool:
    return _is_chat(layout, row) and (has(layout, row, "chosen") or has(layout, row, "rejected"))


READERS = (
    Reader(
        "sharegpt",
        "preference",
        COLUMNS | ANSWERS,
        _is_preference,
        _shape("preference"),
        _preference,
        _place,
        "'conversations', 'chosen' and 'rejected'",
    ),
    Reader(
        "sharegpt",
        "labels",
        COLUMNS | {"kto_tag": "label"},
        lambda layout, row: _is_chat(layout, row) and labelled(layout, row),
        _shape("labels"),
        labels(_chat),
        _place,
        "'conversations' and a boolean 'label'",
    ),
    Reader(
        "sharegpt",
        "chat",
        COLUMNS,
        _is_chat,
        _shape("chat"),
        _chat,
        _place,
        "'conversations', a list of 'from' and 'value'",
    ),
)
