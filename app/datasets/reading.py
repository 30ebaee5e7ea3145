"""A file read row by row: container → typed rows → canonical rows, each checked, in one pass and bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import orjson

from app.datasets.checks import CHECKS
from app.datasets.containers import Container, Unreadable, Value, explain
from app.datasets.explaining import explain as explain_type
from app.datasets.explaining import find, kind_of, shown
from app.datasets.formats import recognise
from app.datasets.formats.layout import BadRow, Place, Reader
from app.datasets.problems import Problem, problem
from app.datasets.turns import Row

# Containers whose values are all text: "true" and "1" are read as what they say.
UNTYPED = {"csv", "tsv"}


class Options(NamedTuple):
    """How a file is to be read: an upload's fields of these names."""

    format: str
    kind: str
    columns: dict[str, str | None]
    tags: dict[str, str]
    on_bad_rows: str


class Read(NamedTuple):
    """One row: its line, what the container holds there, and what it becomes. `doubled` is the path of a user's turn
    that follows another one, if there is any. `final`: what follows in the file cannot be read, nor counted."""

    line: int
    value: Value
    row: Row | Problem
    doubled: str | None = None
    final: bool = False


class RowReader:
    """Iterates, once, over the rows of a container. `reader` is None until the first object has been seen, and for ever where no
    format knows it; then the last `Read` says so, without a line."""

    def __init__(self, container: Container, options: Options) -> None:
        self.container, self._rows = container
        self._options = options
        self.reader: Reader | None = None
        self._decode_canonical: Callable[[bytes], Row] | None = None

    def __iter__(self) -> Iterator[Read]:
        for line, value in self._rows:
            if self.reader is None and not isinstance(value, Unreadable):
                plain = _plain(value)
                if isinstance(plain, dict) and not self._recognise(plain):
                    yield Read(line, value, _unrecognised(line, plain))
                    return
            yield self._read(line, value)

    def _recognise(self, row: dict[str, Any]) -> bool:
        options = self._options
        found = recognise(row, options.format, options.kind, options.columns, options.tags)
        if found is None:
            return False
        self.reader, self._layout = found
        self._shape = self.reader.shape(self._layout)
        self._decode = msgspec.json.Decoder(self._shape).decode
        self._check = CHECKS[self.reader.kind]
        if self.reader.canonical:
            self._decode_canonical = msgspec.json.Decoder(self.reader.canonical(self._layout)).decode
        return True

    def _read(self, line: int, value: Value) -> Read:
        if isinstance(value, Unreadable):
            return Read(line, value, problem(line, value.code, value.message, hint=value.hint), final=value.final)
        if self.reader is None:
            return Read(line, value, _not_an_object(line, value))
        if self._decode_canonical and isinstance(value, bytes):
            try:
                row = self._decode_canonical(value)
                if self._check(row) is None:
                    return Read(line, value, row)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadRow):
                pass  # read in full, which says what is wrong
        try:
            return self._typed(line, value, self._decode(value) if isinstance(value, bytes) else self.convert(value))
        except msgspec.ValidationError as error:
            return Read(line, value, _mismatch(line, value, error))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            wrong = explain(value) if isinstance(value, bytes) else Unreadable("too_deep", "nests too deeply")
            return Read(line, value, problem(line, wrong.code, wrong.message, hint=wrong.hint))

    def convert(self, row: Any) -> Any:
        """A row in plain Python as its format's type. Raises `msgspec.ValidationError`."""
        return msgspec.convert(row, self._shape, strict=self.container not in UNTYPED)

    def _typed(self, line: int, value: bytes | dict[str, Any], typed: Any) -> Read:
        assert self.reader is not None
        try:
            row = self.reader.read(typed, self._layout)
            doubled = self._check(row)
        except BadRow as bad:
            path = self._path(typed, bad.path) if isinstance(bad.path, Place) else bad.path
            found = shown(find(_plain(value), path)) if path and bad.code != "wrong_order" else None
            return Read(line, value, problem(line, bad.code, bad.message, path, found, bad.expected))
        if doubled is None:
            return Read(line, value, row)
        return Read(line, value, row, self._path(typed, Place("messages", doubled, False)))

    def _path(self, typed: Any, place: Place) -> str | None:
        assert self.reader is not None
        if place.number < 0:
            return self._layout.keys.get(place.part)
        return self.reader.place(typed, self._layout, place)

    def mended(self, value: Value, mend: Callable[..., Any]) -> bytes | None:
        """The row as `mend(value, convert)` makes it, as JSON text, where it can be trained on then."""
        if self.reader is None or isinstance(value, Unreadable):
            return None
        try:
            row = mend(value, self.convert)
            if row is None or isinstance(self._typed(0, row, self.convert(row)).row, Problem):
                return None
            return orjson.dumps(row)
        except (RecursionError, orjson.JSONEncodeError):  # nests too deeply
            return None


def _plain(value: Value) -> Any:
    """A row in plain Python; None where it is none."""
    if not isinstance(value, bytes):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return None


def _not_an_object(line: int, value: bytes | dict[str, Any]) -> Problem:
    plain = _plain(value)
    if plain is None and value != b"null":
        wrong = explain(value) if isinstance(value, bytes) else Unreadable("too_deep", "nests too deeply")
        return problem(line, wrong.code, wrong.message, hint=wrong.hint)
    return problem(line, "not_an_object", f"must be an object, is {kind_of(plain)}", None, shown(plain), "an object")


def _mismatch(line: int, value: bytes | dict[str, Any], error: Exception) -> Problem:
    found = explain_type(error, _plain(value))
    return problem(line, found.code, found.message, found.path, found.found, found.expected)


def _unrecognised(line: int, row: dict[str, Any]) -> Problem:
    keys = ", ".join(shown(key) for key in list(row)[:10]) or "no keys"
    return problem(line, "unknown_format", f"is of no known format; it has {keys}", None, keys)
