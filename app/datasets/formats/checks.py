"""What every format checks alike: the value is there, of the right type, not empty."""

from __future__ import annotations

from typing import Any

# A turn of a conversation: role and content.
Turn = tuple[str, str]

KINDS: dict[type, str] = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


class BadRow(Exception):
    """A row cannot be trained on: `path` says where in it, `message` what is wrong."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(path, message)
        self.path, self.message = path, message


def kind_of(value: Any) -> str:
    """A JSON value's type in words."""
    return KINDS[type(value)]


def shown(value: str) -> str:
    """A string in quotes, cut to what a message can hold."""
    return f"'{value}'" if len(value) <= 40 else f"'{value[:37]}...'"


def text(value: Any, path: str) -> str:
    """A string that says something. Raises `BadRow` for another type, and for one that is empty or only white space."""
    if type(value) is not str:
        raise BadRow(path, f"must be a string, is {kind_of(value)}")
    if not value or value.isspace():
        raise BadRow(path, "is empty")
    return value


def field(row: dict[str, Any], key: str) -> str:
    """The row's required text. Raises `BadRow` where it is missing, of another type or empty."""
    if key not in row:
        raise BadRow(key, "is missing")
    return text(row[key], key)


def optional_field(row: dict[str, Any], key: str) -> str:
    """The row's text or, where it is absent, null or empty, an empty string. Raises `BadRow` for another type."""
    value = row.get(key)
    if value is None or value == "":
        return ""
    if type(value) is not str:
        raise BadRow(key, f"must be a string, is {kind_of(value)}")
    return value
