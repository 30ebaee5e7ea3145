"""What every reader of a container shares: where bytes come from, and how a place that cannot be read is told."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

MAX_ROW_BYTES = 16 * 2**20
# Lines are cut out of blocks of this size; larger ones leave the processor's cache, and are slower.
READ_BYTES = 256 * 2**10


class Unreadable(NamedTuple):
    """In place of a row that cannot be read at all; `message` is a predicate, the row being its subject.

    `final`: the rows after it, if there are any, cannot be read either, so nobody knows how many are lost.
    """

    code: str
    message: str
    hint: str | None = None
    final: bool = False


# A row: JSON text that is not parsed yet, or what a container of another kind holds there.
Value = bytes | dict[str, Any] | Unreadable

TOO_LARGE_ROW = Unreadable("row_too_large", f"is larger than {MAX_ROW_BYTES} bytes")


class Broken(Exception):
    """Raised by `Source.read` where the bytes end that can be had: there are no rows after this place."""

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.unreadable = Unreadable(code, message, hint, final=True)


class Source(Protocol):
    """A binary file, or anything else that is read front to back."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none only at the end. Raises `Broken`, then and ever after."""
        ...


class Peekable:
    """A source whose beginning can be looked at before it is read."""

    def __init__(self, source: Source) -> None:
        self._source, self._ahead = source, b""

    def peek(self, size: int) -> bytes:
        """The first `size` bytes, or as many as there are. Raises `Broken` where there are none."""
        try:
            while len(self._ahead) < size and (more := self._source.read(size - len(self._ahead))):
                self._ahead += more
        except Broken:
            if not self._ahead:
                raise
        return self._ahead[:size]

    def read(self, size: int, /) -> bytes:
        if not self._ahead:
            return self._source.read(size)
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        return taken


class Limited:
    """A source that breaks once it has given `limit` bytes and there are more."""

    def __init__(self, source: Source, limit: int) -> None:
        self._source, self._limit, self._left = source, limit, limit
        self._more = False

    def read(self, size: int, /) -> bytes:
        data = b"" if self._more else self._source.read(size)
        self._more = self._more or len(data) > self._left
        data = data[: self._left]
        self._left -= len(data)
        if self._more and not data:
            raise Broken(
                "too_large",
                f"cannot be read: the file unpacks to more than {self._limit} bytes",
                "BURNISH_MAX_DECOMPRESSED_BYTES sets the limit.",
            )
        return data


def not_utf8(raw: bytes, subject: str = "") -> Unreadable | None:
    """What is wrong where `raw` is not UTF-8, else None. `subject` goes before the predicate."""
    try:
        raw.decode()
    except UnicodeDecodeError as wrong:
        message = f"{subject}is not UTF-8: byte 0x{raw[wrong.start]:02x} at its byte {wrong.start + 1}"
        return Unreadable("invalid_utf8", message, "Save the file as UTF-8.")
    return None
