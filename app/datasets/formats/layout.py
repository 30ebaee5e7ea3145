"""What the formats share: where a file keeps a format's fields, how a row is refused, how tools and tool calls are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from app.datasets.turns import Message, Row, ToolCall


class Layout(NamedTuple):
    """Where a file keeps a format's fields: name → key of a row, and ShareGPT's tags: name → key of a turn, or role."""

    keys: Mapping[str, str]
    tags: Mapping[str, str]


class Place(NamedTuple):
    """A turn of a canonical row: in which of its lists, which one (-1: the list as such), and whether its content is
    meant or the turn itself."""

    part: str
    number: int
    content: bool = False


class BadRow(Exception):
    """A row that cannot be trained on: a code of `problems.CODES`, where in it (None: the row itself), what is wrong in
    words, and what is expected there."""

    def __init__(self, code: str, path: str | Place | None, message: str, expected: str | None = None) -> None:
        super().__init__(code, path, message)
        self.code, self.path, self.message, self.expected = code, path, message, expected


class Reader(NamedTuple):
    """How rows of one format and kind are read.

    `columns` are the fields that `columns` of an upload can rename, and their keys; `marks` says by a row's keys whether
    it looks like one of these. `shape(layout)` is the type that a row is decoded into, `read(row, layout)` makes it
    canonical or raises `BadRow`, `place(row, layout, place)` is the path of a canonical turn in such a row. `canonical(layout)`,
    where there is one, is the type of those rows that need no reading, being canonical as they stand.
    """

    format: str
    kind: str
    columns: Mapping[str, str]
    marks: Callable[[Layout, Mapping[str, Any]], bool]
    shape: Callable[[Layout], type[Struct]]
    read: Callable[[Any, Layout], Row]
    place: Callable[[Any, Layout, Place], str]
    expects: str
    canonical: Callable[[Layout], type[Row]] | None = None


Field = tuple[str, Any] | tuple[str, Any, Any]


def struct(name: str, fields: list[Field], layout: Layout) -> type[Struct]:
    """A type with these fields under the keys of the layout. Other keys of a row are ignored."""
    return msgspec.defstruct(name, fields, rename={field[0]: layout.keys.get(field[0], field[0]) for field in fields})


def shape(name: str, fields: list[Field]) -> Callable[[Layout], type[Struct]]:
    """A `Reader.shape` with the same fields in every layout."""
    return lambda layout: struct(name, fields, layout)


def labels(chat: Callable[[Any, Layout], Row]) -> Callable[[Any, Layout], Row]:
    """A `Reader.read` for chat rows that carry a label."""

    def read(row: Any, layout: Layout) -> Row:
        made = chat(row, layout)
        made.label = row.kto_tag
        return made

    return read


def has(layout: Layout, row: Mapping[str, Any], *names: str) -> bool:
    """Whether the row has all of these fields."""
    return all(layout.keys[name] in row for name in names)


def labelled(layout: Layout, row: Mapping[str, Any]) -> bool:
    """Whether the row's label is a boolean, or the text of one."""
    return has(layout, row, "kto_tag") and str(row[layout.keys["kto_tag"]]).lower() in {"true", "false"}


def read_tools(value: Any, path: str) -> str | None:
    """The JSON text of a list of tools in OpenAI's shape; None where there are none. Raises `BadRow`.

    Takes a list or its JSON text; a bare function becomes `{"type": "function", "function": …}`.
    """
    if value is None or value == "" or value == []:
        return None
    expected = "a list of functions, or its JSON text"
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadRow("invalid_tools", path, f"is not valid JSON: {error}", expected) from None
    if not isinstance(value, list):
        raise BadRow("invalid_tools", path, f"must be {expected}", expected)
    tools = [_tool(tool, f"{path}[{number}]") for number, tool in enumerate(value)]
    return msgspec.json.encode(tools).decode() if tools else None


def _tool(tool: Any, path: str) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow("invalid_tools", path, "must be a function with a name", "a function with a name")
    return tool if "function" in tool else {"type": "function", "function": tool}


def read_call(name: str, arguments: Any, path: str, id: str | None = None) -> ToolCall:
    """A tool call; `arguments` is an object or its JSON text. Raises `BadRow`."""
    expected = "a JSON object, or its text"
    if isinstance(arguments, str):
        try:
            parsed = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadRow("invalid_tools", path, f"is not valid JSON: {error}", expected) from None
        if isinstance(parsed, dict):
            return ToolCall(name, arguments, id)
    elif isinstance(arguments, dict):
        return ToolCall(name, msgspec.json.encode(arguments).decode(), id)
    raise BadRow("invalid_tools", path, "must be a JSON object", expected)


def split_answers(chosen: list[Message], rejected: list[Message]) -> int:
    """How many turns both begin with: what two whole conversations have in common is their prompt."""
    both = 0
    while both < min(len(chosen), len(rejected)) - 1 and chosen[both] == rejected[both]:
        both += 1
    return both
