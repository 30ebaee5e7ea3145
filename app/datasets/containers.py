"""JSONL and JSON arrays, told apart by their first character and read row by row in bounded memory.

An array's rows are cut out first and then parsed one by one, by the same parser that reads lines: a value that one of
them accepts is accepted in the other, and one bad row does not hide those after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import orjson

MAX_ROW_BYTES = 16 * 2**20
MAX_NESTING = 16
READ_BYTES = 2**20

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# First bytes → what such a file is.
OTHER_FILES = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"PK\x03\x04": "a zip archive or an office document",
    b"PAR1": "Parquet",
}


class Unreadable(str):
    """In place of a row's value where there is none: what is wrong, in words."""


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields `(line, value)` for every row: the value that JSON holds there, or an `Unreadable`.

    `line` counts from 1; in a JSON array it is the row's number. Blank lines are not rows.
    """
    with path.open("rb") as stream:
        start = stream.peek(READ_BYTES)
        if other := next((kind for magic, kind in OTHER_FILES.items() if start.startswith(magic)), None):
            yield 1, Unreadable(f"the file is {other}; JSON or JSONL in UTF-8 is expected")
            return
        if start.startswith(BYTE_ORDER_MARK):
            stream.seek(len(BYTE_ORDER_MARK))
        content = stream.tell()
        # One pass over leading white space, however long, decides the container.
        is_array = _skip_space(stream) == b"["
        if not is_array:
            stream.seek(content)
        yield from _elements(stream) if is_array else _lines(stream)


def parse(raw: bytes) -> Any:
    """One JSON value, or an `Unreadable`."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        try:
            raw.decode()
        except UnicodeDecodeError as wrong:
            return Unreadable(f"is not UTF-8: byte 0x{raw[wrong.start]:02x} at its byte {wrong.start + 1}")
        return Unreadable(f"is not valid JSON: {error.msg} (at its character {error.pos + 1})")


def _skip_space(stream: BinaryIO) -> bytes:
    """Reads on to the first character that is no white space, and returns it; empty at the end."""
    while chunk := stream.read(READ_BYTES):
        if rest := chunk.lstrip():
            stream.seek(1 - len(rest), 1)
            return rest[:1]
    return b""


def _lines(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    read_line = partial(stream.readline, MAX_ROW_BYTES)
    for number, line in enumerate(iter(read_line, b""), 1):
        if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := read_line()) and not rest.endswith(b"\n"):
                pass
            yield number, Unreadable(f"is larger than {MAX_ROW_BYTES} bytes")
            continue
        value = parse(line)
        if type(value) is not Unreadable or not line.isspace():
            yield number, value


def _nested(depth: int) -> bytes:
    """A pattern for a bracketed value that holds others, to this depth. Every choice is final, so it takes linear time."""
    return rb"[\[{](?:[^\"\[\]{}]++|%s%s)*+[\]}]" % (_STRING, b"|" + _nested(depth - 1) if depth > 1 else b"")


_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_ELEMENT = re.compile(rb"\s*+(%s|%s|[^\s,\"\[\]{}]++)?+\s*+([,\]])" % (_nested(MAX_NESTING), _STRING), re.DOTALL)


def _elements(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    """The rows of an array whose opening bracket has been read."""
    buffer, position, number = b"", 0, 1
    while True:
        match = _ELEMENT.match(buffer, position)
        if match is None:
            rest = len(buffer) - position
            more = stream.read(max(READ_BYTES, rest)) if rest <= MAX_ROW_BYTES else b""
            if not more:
                yield number, _broken_element(rest)
                return
            buffer, position = buffer[position:] + more, 0
            continue
        raw, end = match.groups()
        position = match.end()
        if raw is not None:
            yield number, parse(raw)
        elif number > 1 or end == b",":
            yield number, Unreadable("is not valid JSON: there is a comma with no row beside it")
        if end == b"]":
            break
        number += 1
    if buffer[position:].strip() or _skip_space(stream):
        yield number + 1, Unreadable("is not valid JSON: something follows the end of the array")


def _broken_element(size: int) -> Unreadable:
    if size > MAX_ROW_BYTES:
        return Unreadable(
            f"has no end within {MAX_ROW_BYTES} bytes, or no comma after it, or nests deeper than {MAX_NESTING}"
        )
    return Unreadable("is not valid JSON: the file ends before the row and the array are closed, or a comma is missing")
