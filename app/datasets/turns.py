"""Canonical rows in memory: what every format becomes. The same types decode JSON, so a row is checked as it is parsed."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

KINDS = ("chat", "preference", "labels", "text", "prompts")
Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(Struct, gc=False, forbid_unknown_fields=True):
    """A function that the assistant calls; `arguments` is the JSON text of an object."""

    name: str
    arguments: str
    id: str | None = None


class Message(Struct, gc=False, forbid_unknown_fields=True):
    """A turn. `content` is None only beside tool calls; `weight` 0 keeps an assistant's turn out of the loss."""

    role: Role
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    weight: Literal[0, 1] = 1


class Row(Struct):
    """A canonical row of any kind; fields that its kind has not are None. `tools` is the JSON text of a list."""

    messages: list[Message] | None = None
    tools: str | None = None
    chosen: list[Message] | None = None
    rejected: list[Message] | None = None
    label: bool | None = None
    reference: str | None = None
    text: str | None = None
