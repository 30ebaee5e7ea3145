"""CSV, TSV and plain text, read row by row in bounded memory."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from functools import partial

from app.datasets.containers.json_rows import lines
from app.datasets.containers.source import MAX_ROW_BYTES, READ_BYTES, TOO_LARGE_ROW, Source, Unreadable, not_utf8

# The module knows only one limit for the whole process; its own, of 128 KiB, is less than a long answer takes.
csv.field_size_limit(MAX_ROW_BYTES)

TableRow = tuple[int, dict[str, str] | Unreadable]


def texts(source: Source) -> Iterator[TableRow]:
    """Yields `(line, {"text": line})` for every line that is not blank, `line` counted from 1."""
    for number, raw in lines(source):
        if isinstance(raw, Unreadable):
            yield number, raw
        else:
            yield number, not_utf8(raw) or {"text": raw.removesuffix(b"\r").decode()}


def records(source: Source, delimiter: str) -> Iterator[TableRow]:
    """Yields `(number, {name: value})` for every record after the header, numbers counted from 1."""
    feed = _Feed(source)
    found = (record for record in _read(feed, delimiter) if record)
    header = next(found, None)
    if header is None:
        return
    names = header if isinstance(header, Unreadable) else _names(header)
    if isinstance(names, Unreadable):
        yield 1, names._replace(final=True)
        return
    for number, record in enumerate(found, 1):
        yield number, record if isinstance(record, Unreadable) else _row(names, record)


def _read(feed: _Feed, delimiter: str) -> Iterator[list[str] | Unreadable]:
    """Every record; of blank lines, empty lists."""
    reader = csv.reader(feed.lines(), delimiter=delimiter, strict=True)
    while True:
        feed.record_bytes = 0
        try:
            record = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if feed.too_large:
                break
            yield _invalid(str(error))
            continue
        yield record
    if feed.too_large:
        yield TOO_LARGE_ROW._replace(hint="A quote may be open that should be closed.", final=True)


class _Feed:
    """The lines that a CSV reader asks for. They end where a record takes more bytes than a row may."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.record_bytes = 0
        self.too_large = False

    def lines(self) -> Iterator[str]:
        for line in _ended_lines(self._source):
            self.record_bytes += len(line)
            if self.record_bytes > MAX_ROW_BYTES:
                self.too_large = True
                return
            # What is not UTF-8 goes through the reader, so that it keeps its place in the record.
            yield line.decode(errors="surrogateescape")


def _ended_lines(source: Source) -> Iterator[bytes]:
    """Lines that end in LF, CR LF or CR, with their ends. One longer than a row may be is cut off beyond that."""
    carry = b""
    for block in iter(partial(source.read, READ_BYTES), b""):
        pieces = (carry + block).splitlines(keepends=True)
        # A CR at the end may be the first half of a line's end.
        carry = b"" if pieces[-1].endswith(b"\n") else pieces.pop()
        yield from pieces
        if len(carry) > MAX_ROW_BYTES:
            break
    if carry:
        yield carry


def _names(header: list[str]) -> list[str] | Unreadable:
    hint = "The first line must name every column, each once."
    if "" in header:
        return _invalid(f"the header has no name for column {header.index('') + 1}", hint)
    if len(set(header)) < len(header):
        twice, _ = Counter(header).most_common(1)[0]
        return _invalid(f"the header names column {_shown(twice)} more than once", hint)
    return _wrong_text(header) or header


def _row(names: list[str], record: list[str]) -> dict[str, str] | Unreadable:
    if len(record) != len(names):
        return _invalid(
            f"it has {len(record)} fields, the header {len(names)}",
            "Put a value that holds the delimiter, a quote or a line break between double quotes.",
        )
    return _wrong_text(record) or dict(zip(names, record, strict=True))


def _wrong_text(record: list[str]) -> Unreadable | None:
    """What is wrong with the characters of a record."""
    joined = "".join(record)
    if joined.isascii():
        return _nul() if "\0" in joined else None
    for column, value in enumerate(record, 1):
        if wrong := not_utf8(value.encode(errors="surrogateescape"), f"column {column} "):
            return wrong
    return _nul() if "\0" in joined else None


def _nul() -> Unreadable:
    return _invalid("it holds a NUL character")


def _invalid(what: str, hint: str | None = None) -> Unreadable:
    return Unreadable("invalid_csv", f"cannot be read as CSV: {what}", hint)


def _shown(name: str) -> str:
    return f"'{name}'" if len(name) <= 40 else f"'{name[:37]}...'"
