"""Receiving a file: multipart/form-data or a raw body, streamed to disk and hashed, never whole in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from app.kit.bodies import duplicate
from app.kit.errors import BadRequest, InvalidValue, TooLarge

MAX_FIELD_BYTES = 64 * 2**10
# What a form may hold beside its file: fields, headers, boundaries.
FORM_OVERHEAD_BYTES = 2**20
# Disk and hash work in a thread, a megabyte at a time: handing each 64 KiB over would cost more than the work.
BATCH_BYTES = 2**20

Decode = Callable[[bytes], list[bytes]]


@dataclass(frozen=True)
class Upload:
    """A received file. `filename` is a label that its sender gave it, never a path."""

    filename: str | None
    fields: dict[str, str]
    bytes: int
    sha256: str


class HashedFile:
    """A file that is written once, front to back, and knows the size and SHA-256 of what it was given."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._hash = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def closed(self) -> bool:
        return self._stream.closed

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.bytes += len(data)
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()

    def sync(self) -> None:
        """Everything that was written is on the disk when this returns."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()


async def receive(
    request: Request, path: Path, known: Collection[str], arrived: Callable[[Upload], None], limit: int
) -> Upload:
    """Writes the request's file to `path`: the part `file` of a form, or the body of any other content type.

    `known` names the text fields that may come with it, in the query or, in any order, as parts of the form.
    `arrived` is called, in a thread, whenever more of the file has been written, with what has come until then. `limit`
    is in bytes.
    Raises `BadRequest` (a broken or cut-off body), `TooLarge`, `InvalidValue` (an unknown, repeated or missing field).
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    fields: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        _check_field(name, fields, known)
        fields[name] = value
    form = None
    if content_type == b"multipart/form-data":
        form = _Form(options.get(b"boundary"), fields, known)
    file = HashedFile(path)

    def sofar() -> Upload:
        return Upload(form.filename if form else None, dict(fields), file.bytes, file.sha256)

    def write(data: bytes) -> None:
        file.write(data)
        file.flush()
        arrived(sofar())

    try:
        decode, overhead = (form.feed, FORM_OVERHEAD_BYTES) if form else (lambda chunk: [chunk], 0)
        rest = await _pump(request, file, write, decode, overhead, limit)
        await run_in_threadpool(file.write, rest)
        if form:
            form.finish()
        await run_in_threadpool(file.sync)
    finally:
        file.close()
    return sofar()


async def _pump(
    request: Request, file: HashedFile, write: Callable[[bytes], None], decode: Decode, overhead: int, limit: int
) -> bytes:
    """Moves the body through `decode` into `file`, in batches, within the limits; returns what is left of it."""
    received, pending, waiting = 0, list[bytes](), 0
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit + overhead:
        raise _too_large(limit)
    try:
        async for chunk in request.stream():
            received += len(chunk)
            pieces = decode(chunk)
            pending += pieces
            waiting += sum(map(len, pieces))
            if received > limit + overhead or file.bytes + waiting > limit:
                raise _too_large(limit)
            if waiting >= BATCH_BYTES:
                await run_in_threadpool(write, b"".join(pending))
                pending, waiting = [], 0
    except ClientDisconnect as error:
        raise _incomplete("the connection closed before it was complete") from error
    if announced.isdecimal() and received < int(announced):
        raise _incomplete(f"{received} of {announced} bytes arrived")
    return b"".join(pending)


@dataclass
class _Part:
    """The part of a form that is being read."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    value: bytearray = field(default_factory=bytearray)


class _Form:
    """A multipart/form-data body: text parts go into `fields`, what belongs to the part `file` comes out of `feed`."""

    def __init__(self, boundary: bytes | None, fields: dict[str, str], known: Collection[str]) -> None:
        if not boundary:
            raise BadRequest("The content type names no boundary.", code="invalid_upload", param="Content-Type")
        self.filename: str | None = None
        self._fields, self._known = fields, known
        self._part, self._header = _Part(), (bytearray(), bytearray())
        self._pieces: list[bytes] = []
        self._has_file = self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from error

    def feed(self, chunk: bytes) -> list[bytes]:
        """Reads on; returns the pieces of the file that `chunk` held."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from error
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> None:
        """The body has ended: raises where the form has not, or where it held no file."""
        if not self._ended:
            raise _incomplete("the form has no closing boundary")
        if not self._has_file:
            raise InvalidValue(
                "The form has no part 'file'.",
                param="file",
                code="missing_field",
                hint="Send it with curl -F file=@rows.jsonl.",
            )

    def _part_begin(self) -> None:
        self._part = _Part()

    def _header_end(self) -> None:
        name, value = self._header
        self._part.headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _headers_finished(self) -> None:
        # The library reads a header as Latin-1 and gives its bytes back: every character comes through unchanged.
        disposition, options = parse_options_header(
            self._part.headers.get(b"content-disposition", b"").decode("latin-1")
        )
        if disposition != b"form-data" or b"name" not in options:
            raise BadRequest("A part of the form has no name.", code="invalid_upload", hint="Send it with curl -F.")
        self._part.name = options[b"name"].decode(errors="replace")
        if self._part.name != "file":
            _check_field(self._part.name, self._fields, self._known)
            return
        if self._has_file:
            raise InvalidValue("The form has more than one part 'file'.", param="file", hint="Send one file a request.")
        self._has_file = True
        self.filename = _label(options.get(b"filename", b"").decode(errors="replace"))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == "file":
            self._pieces.append(data[start:end])
            return
        self._part.value += data[start:end]
        if len(self._part.value) > MAX_FIELD_BYTES:
            name = self._part.name
            raise InvalidValue(f"The field '{name}' is over the limit of {MAX_FIELD_BYTES} bytes.", param=name)

    def _part_end(self) -> None:
        name = self._part.name
        if name == "file":
            return
        try:
            self._fields[name] = self._part.value.decode()
        except UnicodeDecodeError as error:
            raise InvalidValue(f"The field '{name}' is not UTF-8.", param=name) from error

    def _end(self) -> None:
        self._ended = True


def _check_field(name: str, fields: dict[str, str], known: Collection[str]) -> None:
    if name not in known:
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise InvalidValue(
            f"The field '{shown}' is unknown.",
            param=shown,
            code="unknown_field",
            hint=f"Known are: {', '.join(known)}.",
        )
    if name in fields:
        raise duplicate(name, "field")


def _label(filename: str) -> str | None:
    """The last component of what a sender calls the file, without control characters; None where nothing is left."""
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character for character in last if character.isprintable())[:200].strip() or None


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The file is over the limit of {limit} bytes.",
        param="file",
        hint="BURNISH_MAX_UPLOAD_BYTES and the project's 'upload_bytes' set the limit.",
    )


def _incomplete(reason: str) -> BadRequest:
    return BadRequest(f"The upload ended too early: {reason}.", code="upload_incomplete", hint="Send it again.")


def _malformed(error: FormParserError) -> BadRequest:
    return BadRequest(
        f"The form cannot be read: {error}.", code="invalid_upload", hint="Send it with curl -F file=@rows.jsonl."
    )
