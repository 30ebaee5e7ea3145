"""JSONL and JSON arrays, read row by row in bounded memory. Rows come out as JSON text; whoever takes them parses them.

An array's rows are cut out by their brackets and quotes alone: a value that is accepted in a line is accepted in an
array, and one bad row does not hide those after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import orjson

from app.datasets.containers.source import MAX_ROW_BYTES, READ_BYTES, TOO_LARGE_ROW, Source, Unreadable, not_utf8

MAX_NESTING = 16


def lines(source: Source) -> Iterator[tuple[int, bytes | Unreadable]]:
    """Yields `(line, text)` for every line that is not blank, `line` counted from 1. Raises what `source` raises."""
    last, carry = 0, b""
    for block in iter(partial(source.read, READ_BYTES), b""):
        *ended, rest = block.split(b"\n")
        if ended:
            ended[0] = carry + ended[0]
            carry = rest
            for number, line in enumerate(ended, last + 1):
                if line and not line.isspace():
                    yield number, line if len(line) <= MAX_ROW_BYTES else TOO_LARGE_ROW
            last += len(ended)
        elif len(carry) <= MAX_ROW_BYTES:  # of a longer one, its length is all that matters
            carry += rest
    if carry and not carry.isspace():
        yield last + 1, carry if len(carry) <= MAX_ROW_BYTES else TOO_LARGE_ROW


def explain(raw: bytes) -> Unreadable:
    """What is wrong with JSON text that a decoder refused as malformed."""
    if wrong := not_utf8(raw):
        return wrong
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if not error.msg.startswith("depth limit"):
            return _invalid(f"{error.msg} (at its character {error.pos + 1})")
    # What this parser takes and another does not is nested too deeply for that one.
    return Unreadable("too_deep", "nests too deeply")


def _nested(depth: int) -> bytes:
    """A pattern for a bracketed value that holds others, to this depth. Every choice is final, so it takes linear time."""
    return rb"[\[{](?:[^\"\[\]{}]++|%s%s)*+[\]}]" % (_STRING, b"|" + _nested(depth - 1) if depth > 1 else b"")


_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_ELEMENT = re.compile(rb"\s*+(%s|%s|[^\s,\"\[\]{}]++)?+\s*+([,\]])" % (_nested(MAX_NESTING), _STRING), re.DOTALL)
# Brackets, strings, and the quote of a string that does not end.
_TOKEN = re.compile(rb'[\[\]{}]|%s|"' % _STRING, re.DOTALL)


def elements(source: Source) -> Iterator[tuple[int, bytes | Unreadable]]:
    """Yields `(number, text)` for every row of an array whose opening bracket has been read. Raises what `source` raises."""
    buffer, position, number = b"", 0, 1
    while True:
        match = _ELEMENT.match(buffer, position)
        if match is None:
            rest = len(buffer) - position
            more = source.read(max(READ_BYTES, rest)) if rest <= MAX_ROW_BYTES else b""
            if not more:
                yield number, _broken_element(buffer[position:])._replace(final=True)
                return
            buffer, position = buffer[position:] + more, 0
            continue
        raw, end = match.groups()
        position = match.end()
        if raw is not None:
            yield number, raw if len(raw) <= MAX_ROW_BYTES else TOO_LARGE_ROW
        elif number > 1 or end == b",":
            yield number, _invalid("there is a comma with no row beside it")
        if end == b"]":
            break
        number += 1
    after = buffer[position:]
    while not after.strip() and (after := source.read(READ_BYTES)):
        pass
    if after:
        yield number + 1, _invalid("something follows the end of the array")


def _broken_element(rest: bytes) -> Unreadable:
    """Why the array cannot be read on at `rest`."""
    depth = 0
    for token in _TOKEN.finditer(rest):
        found = token.group()
        if found == b'"':
            break
        depth += 1 if found in b"[{" else -1 if found in b"]}" else 0
        if depth > MAX_NESTING:
            return Unreadable("too_deep", f"nests deeper than {MAX_NESTING} levels")
        if depth < 0 or (depth == 0 and rest[token.end() :].strip()):
            return _invalid("a comma is missing after it")
    if len(rest) > MAX_ROW_BYTES:
        return Unreadable("row_too_large", f"has no end within {MAX_ROW_BYTES} bytes")
    return _invalid("the file ends before the row and the array are closed")


def _invalid(what: str) -> Unreadable:
    return Unreadable("invalid_json", f"is not valid JSON: {what}")
