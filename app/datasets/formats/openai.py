"""OpenAI's rows: `messages` of `role` and `content`, with tools, tool calls, weights and reasoning; its preference shape."""

from __future__ import annotations

from typing import Any, Literal, cast

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
    shape,
)
from app.datasets.turns import Message, Role, Row, ToolCall

# Role on the wire → canonical role.
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


class TextPart(Struct, tag_field="type", tag="text", gc=False):
    """A part of a content that is a list."""

    text: str


class Function(Struct, gc=False):
    """What a call calls."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class Call(Struct, gc=False):
    """An assistant's tool call."""

    function: Function
    id: str | None = None
    type: Literal["function"] = "function"


class WireMessage(Struct, gc=False):
    """A message as OpenAI writes it; what cannot be trained on must be null."""

    role: str
    content: str | list[TextPart] | None = None
    tool_calls: list[Call] | None = None
    reasoning_content: str | None = None
    weight: Literal[0, 1] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    function_call: Function | None = None
    audio: None = None
    refusal: None = None


class Input(Struct):
    """What both answers of a preference row answer."""

    messages: list[WireMessage]
    tools: Any = None


def read_messages(messages: list[WireMessage], path: str) -> list[Message]:
    """The canonical turns. Raises `BadRow`."""
    turns: list[Message] = []
    for message in messages:
        role, content = ROLES.get(message.role), message.content
        if role is None:
            expected = f"one of {', '.join(ROLES)}"
            where = f"{path}[{len(turns)}].role"
            raise BadRow("unknown_role", where, f"is '{message.role[:40]}'; must be {expected}", expected)
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        turns.append(
            Message(
                role,
                content,
                message.reasoning_content,
                _calls(message, f"{path}[{len(turns)}]") if message.tool_calls or message.function_call else None,
                message.tool_call_id,
                message.name,
                0 if message.weight == 0 else 1,
            )
        )
    return turns


def _calls(message: WireMessage, path: str) -> list[ToolCall]:
    if message.role != "assistant":
        raise BadRow("wrong_order", f"{path}.tool_calls", "only an assistant's turn can call tools", "no tool_calls")
    if message.function_call:
        function = message.function_call
        return [read_call(function.name, function.arguments, f"{path}.function_call.arguments")]
    return [
        read_call(
            call.function.name, call.function.arguments, f"{path}.tool_calls[{number}].function.arguments", call.id
        )
        for number, call in enumerate(message.tool_calls or ())
    ]


def _tools(row: Any, layout: Layout) -> str | None:
    return read_tools(row.tools, layout.keys["tools"]) or read_tools(row.functions, "functions")


def _chat(row: Any, layout: Layout) -> Row:
    return Row(read_messages(row.messages, layout.keys["messages"]), _tools(row, layout))


def _prompts(row: Any, layout: Layout) -> Row:
    made = _chat(row, layout)
    made.reference = row.reference
    return made


def _preference(row: Any, layout: Layout) -> Row:
    return Row(
        read_messages(row.messages.messages, f"{layout.keys['messages']}.messages"),
        read_tools(row.messages.tools, f"{layout.keys['messages']}.tools"),
        read_messages(row.chosen, layout.keys["chosen"]),
        read_messages(row.rejected, layout.keys["rejected"]),
    )


def _place(row: Any, layout: Layout, place: Place) -> str:
    return f"{layout.keys[place.part]}[{place.number}]" + (".content" if place.content else "")


def _preference_place(row: Any, layout: Layout, place: Place) -> str:
    path = _place(row, layout, place)
    return path.replace("[", ".messages[", 1) if place.part == "messages" else path


MESSAGES: list[Field] = [("messages", list[WireMessage]), ("tools", Any, None), ("functions", Any, None)]
FIELDS: dict[str, list[Field]] = {
    "chat": MESSAGES,
    "labels": [("kto_tag", bool), *MESSAGES],
    "prompts": [*MESSAGES, ("reference", str | None, None)],
    "preference": [("messages", Input), ("chosen", list[WireMessage]), ("rejected", list[WireMessage])],
}


def _canonical_shape(layout: Layout) -> type[Row]:
    """Rows that are canonical as they stand, as most are: without tools, in messages of canonical roles and fields."""
    rename = {name: layout.keys[name] for name in ("messages", "tools")}
    fields: list[Field] = [("messages", list[Message]), ("tools", None, None), ("functions", None, None)]
    return cast(type[Row], msgspec.defstruct("CanonicalRow", fields, bases=(Row,), rename=rename))


COLUMNS = {"messages": "messages", "tools": "tools"}
PREFERENCE = {"messages": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"}
READERS = (
    Reader(
        "openai",
        "preference",
        PREFERENCE,
        lambda layout, row: has(layout, row, "chosen") or has(layout, row, "rejected"),
        shape("OpenAIRow", FIELDS["preference"]),
        _preference,
        _preference_place,
        "'input', 'preferred_output' and 'non_preferred_output'",
    ),
    Reader(
        "openai",
        "labels",
        COLUMNS | {"kto_tag": "label"},
        lambda layout, row: has(layout, row, "messages") and labelled(layout, row),
        shape("OpenAIRow", FIELDS["labels"]),
        labels(_chat),
        _place,
        "'messages' and a boolean 'label'",
    ),
    Reader(
        "openai",
        "chat",
        COLUMNS,
        lambda layout, row: has(layout, row, "messages"),
        shape("OpenAIRow", FIELDS["chat"]),
        _chat,
        _place,
        "'messages', a list of 'role' and 'content'",
        _canonical_shape,
    ),
    Reader(
        "openai",
        "prompts",
        COLUMNS | {"reference": "reference"},
        lambda layout, row: has(layout, row, "messages"),
        shape("OpenAIRow", FIELDS["prompts"]),
        _prompts,
        _place,
        "'messages' that end with a user's turn",
    ),
)
