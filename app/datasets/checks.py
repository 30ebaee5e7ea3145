"""Whether a canonical row can be trained on: a check for each kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter

from app.datasets.formats.layout import BadRow, Place
from app.datasets.turns import Message, Role, Row

CONTENT, WEIGHT, CALLS, ROLE = map(attrgetter, ("content", "weight", "tool_calls", "role"))


def _turns(messages: list[Message], part: str = "messages", asked: bool = False) -> int | None:
    """Checks turns one by one; raises `BadRow`. Returns the first turn that is a user's right after another user's.
    `asked`: whether a user's turn precedes them."""
    before, calling, called, doubled = "", False, False, None
    for index, message in enumerate(messages):
        role, content = message.role, message.content
        if (not content or content.isspace()) and not message.tool_calls and role != "tool":
            raise BadRow("empty_turn", Place(part, index, True), "is empty", "text")
        if role == "tool":
            if not called:
                raise BadRow(
                    "wrong_order", Place(part, index), "is a tool's answer that no tool call precedes", "a call"
                )
        elif calling:
            raise BadRow("unanswered_tool_call", Place(part, index), "follows a tool call", "the tool's answer")
        else:
            called = False
            if role == "assistant":
                if not asked:
                    place, expected = Place(part, index), "a user's turn before it"
                    raise BadRow("wrong_order", place, "is an assistant's turn before any user's", expected)
            elif role == "user":
                asked = True
                if before == "user" and doubled is None:
                    doubled = index
        calling = bool(message.tool_calls)
        called = called or calling
        before = role
    return doubled


def _learned(messages: list[Message], part: str = "messages") -> None:
    """Raises `BadRow` where no assistant's turn carries loss."""
    if not any(message.role == "assistant" and message.weight for message in messages):
        raise BadRow(
            "no_assistant_turn",
            Place(part, -1),
            "has no assistant's turn that carries loss: there is nothing to learn",
            "one",
        )


@lru_cache(1000)
def _in_order(roles: tuple[Role, ...]) -> bool:
    """Whether turns of these roles, all with text, leave nothing to say. Files have few orders: each is looked at once."""
    turns = [Message(role, "text") for role in roles]
    try:
        _learned(turns)
        return _turns(turns) is None
    except BadRow:
        return False


def _chat(row: Row) -> int | None:
    messages = row.messages or []
    contents = list(map(CONTENT, messages))
    plain = None not in contents and all(map(str.strip, contents)) and all(map(WEIGHT, messages))
    if plain and not any(map(CALLS, messages)) and _in_order(tuple(map(ROLE, messages))):
        return None
    doubled = _turns(messages)
    _learned(messages)
    return doubled


def _labels(row: Row) -> int | None:
    doubled = _chat(row)
    messages = row.messages or []
    if messages[-1].role != "assistant":
        last = Place("messages", len(messages) - 1)
        raise BadRow("no_assistant_turn", last, "is the last turn, and not the assistant's", "an assistant's turn")
    return doubled


def _prompt(messages: list[Message]) -> int | None:
    doubled = _turns(messages)
    if not messages or messages[-1].role not in ("user", "tool"):
        raise BadRow(
            "wrong_order", Place("messages", -1), "must end with a user's turn, or a tool's answer", "a user's turn"
        )
    return doubled


def _preference(row: Row) -> int | None:
    messages = row.messages or []
    doubled = _prompt(messages)
    for part, answer in (("chosen", row.chosen or []), ("rejected", row.rejected or [])):
        _turns(answer, part, asked=True)
        _learned(answer, part)
    if row.chosen == row.rejected:
        raise BadRow("chosen_equals_rejected", "rejected", "equals what was chosen", "another answer")
    return doubled


def _text(row: Row) -> None:
    if not row.text or row.text.isspace():
        raise BadRow("empty_turn", Place("text", 0, True), "is empty", "text")


# Kind → its check. Each raises `BadRow`, and returns the index of a user's turn right after another one, if there is any.
CHECKS: dict[str, Callable[[Row], int | None]] = {
    "chat": _chat,
    "preference": _preference,
    "labels": _labels,
    "prompts": lambda row: _prompt(row.messages or []),
    "text": _text,
}
