"""OpenAI's chat rows: `messages` of `role` and `content`, as text."""

from __future__ import annotations

from typing import Any

from app.datasets.formats.checks import BadRow, Turn, kind_of, shown, text

# Role on the wire → canonical role.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# Parts of the format that change what is trained on. To ignore them would train on something else than was meant.
LATER_ROLES = {"tool": "tool messages", "function": "function messages"}
LATER_ROW_FIELDS = {"tools": "tools", "functions": "functions"}
LATER_FIELDS = {
    "tool_calls": "tool calls",
    "function_call": "function calls",
    "audio": "audio",
    "reasoning_content": "separate reasoning",
}
LATER_PARTS = {"image_url": "images", "input_audio": "audio", "file": "files", "refusal": "refusals"}


def recognise(row: dict[str, Any]) -> bool:
    """Whether the row looks like one of these, complete or not."""
    return "messages" in row


def read(row: dict[str, Any]) -> list[Turn]:
    """The row as a conversation. Raises `BadRow`."""
    _refuse_later(row, LATER_ROW_FIELDS, "")
    if "messages" not in row:
        raise BadRow("messages", "is missing")
    messages = row["messages"]
    if type(messages) is not list:
        raise BadRow("messages", f"must be a list, is {kind_of(messages)}")
    if not messages:
        raise BadRow("messages", "is empty")
    turns: list[Turn] = []
    asked = answered = False
    for number, message in enumerate(messages):
        turn = _turn(message, f"messages[{number}]")
        role = turn[0]
        if role == "user":
            asked = True
        elif role == "assistant":
            if not asked:
                raise BadRow(f"messages[{number}]", "is an assistant turn before any user turn")
            answered = True
        turns.append(turn)
    if not answered:
        raise BadRow("messages", "has no assistant turn: there is nothing to learn")
    return turns


def _turn(message: Any, path: str) -> Turn:
    if type(message) is not dict:
        raise BadRow(path, f"must be an object, is {kind_of(message)}")
    role, content = message.get("role"), message.get("content")
    known = ROLES.get(role) if type(role) is str else None
    if known is None:
        raise _bad_role(message, path)
    if len(message) > 2 or "content" not in message:
        _refuse_later(message, LATER_FIELDS, f"{path}.")
        _check_weight(message, path)
    if type(content) is list:
        return known, _joined(content, f"{path}.content")
    if "content" not in message:
        raise BadRow(f"{path}.content", "is missing")
    return known, text(content, f"{path}.content")


def _bad_role(message: dict[str, Any], path: str) -> BadRow:
    path = f"{path}.role"
    if "role" not in message:
        return BadRow(path, "is missing")
    role = message["role"]
    if type(role) is not str:
        return BadRow(path, f"must be a string, is {kind_of(role)}")
    if role in LATER_ROLES:
        return BadRow(path, f"is {shown(role)}: {LATER_ROLES[role]} are not supported yet")
    return BadRow(path, f"is {shown(role)}; must be one of {', '.join(ROLES)}")


def _refuse_later(value: dict[str, Any], later: dict[str, str], prefix: str) -> None:
    for key, name in later.items():
        if value.get(key):
            raise BadRow(f"{prefix}{key}", f"{name} cannot be trained on yet")


def _check_weight(message: dict[str, Any], path: str) -> None:
    weight = message.get("weight", 1)
    if weight is not None and weight != 1:
        raise BadRow(f"{path}.weight", "must be 1: turns that carry no loss are not supported yet")


def _joined(parts: list[Any], path: str) -> str:
    """The text of a list of content parts."""
    texts: list[str] = []
    for number, part in enumerate(parts):
        where = f"{path}[{number}]"
        if type(part) is not dict:
            raise BadRow(where, f"must be an object, is {kind_of(part)}")
        kind = part.get("type")
        if kind != "text":
            later = LATER_PARTS.get(kind) if type(kind) is str else None
            raise BadRow(f"{where}.type", f"{later} cannot be trained on yet" if later else "must be 'text'")
        if type(part.get("text")) is not str:
            raise BadRow(f"{where}.text", f"must be a string, is {kind_of(part.get('text'))}")
        texts.append(part["text"])
    return text("".join(texts), path)
