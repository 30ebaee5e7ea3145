"""The containers that rows come in, told apart by first bytes and by name, and read row by row in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import NamedTuple

from app.datasets.containers import json_rows, parquet, tables
from app.datasets.containers.compression import COMPRESSIONS, Decompressed, compression_of
from app.datasets.containers.json_rows import explain
from app.datasets.containers.source import READ_BYTES, Broken, Limited, Peekable, Source, Unreadable, Value
from app.settings import get_settings

__all__ = ["Container", "Unreadable", "Value", "container_of", "explain", "open_container"]

# How much of a file is looked at to tell what it is.
HEAD_BYTES = 64 * 2**10
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET = b"PAR1"
# First bytes → what such a file is.
OTHER_FILES = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"PK\x03\x04": "a zip archive or an office document",
    b"\xd0\xcf\x11\xe0": "an office document",
    b"BZh91AY&SY": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"%PDF-": "a PDF",
    b"ARROW1\x00\x00": "an Arrow file",
}
SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".txt": "text", ".text": "text", ".md": "text"}
COMPRESSED_SUFFIXES = {".gz", ".zst"}


class Container(NamedTuple):
    """What a file is, and its rows: `(line, value)`, once.

    `name`: `json`, `jsonl`, `csv`, `tsv`, `parquet`, `text`, or `unknown`, whose only row is an `Unreadable`.
    `line` counts from 1, in JSONL and text the lines, else the rows. JSON, JSONL and Parquet rows are JSON text that
    is not checked yet, the others objects.
    """

    name: str
    rows: Iterator[tuple[int, Value]]


@contextmanager
def open_container(path: Path, filename: str | None) -> Iterator[Container]:
    """`container_of` a file that is complete, within the limit of the settings."""
    with (
        path.open("rb") as file,
        container_of(file, path, filename, get_settings().max_decompressed_bytes) as container,
    ):
        yield container


@contextmanager
def container_of(source: Source, path: Path, filename: str | None, limit: int) -> Iterator[Container]:
    """Opens an upload for as long as the `with` block lasts. Whatever its bytes are, they raise nothing.

    `source` gives what is at `path`, which may be incomplete until `source` ends; `filename` is what its sender calls it. It may
    unpack to `limit` bytes. Beside `path` a second file may be left, for a compressed Parquet.
    """
    with ExitStack() as opened:
        try:
            name, rows = _recognise(Peekable(source), path, filename, limit, opened)
        except Broken as broken:
            name, rows = "unknown", iter([(1, broken.unreadable)])
        yield Container(name, _until_broken(rows))


def _recognise(
    file: Peekable, path: Path, filename: str | None, limit: int, opened: ExitStack
) -> tuple[str, Iterator[tuple[int, Value]]]:
    """The container's name and rows. Raises `Broken`, as the rows do."""
    content = file
    if compression := compression_of(file.peek(4)):
        content = Peekable(Limited(Decompressed(file, compression), limit))
    head = content.peek(HEAD_BYTES)
    _refuse_others(head)
    if head.startswith(PARQUET):  # which is read from its end
        if compression:
            path = _stored(content, path.with_name(path.name + ".parquet"))
        else:
            while content.read(READ_BYTES):
                pass
        return "parquet", opened.enter_context(parquet.rows(path, limit))
    if head.startswith(BYTE_ORDER_MARK):
        content.read(len(BYTE_ORDER_MARK))
        head = head.removeprefix(BYTE_ORDER_MARK)
    if name := SUFFIXES.get(_suffix(filename)):
        if name == "text":
            return name, tables.texts(content)
        return name, tables.records(content, "," if name == "csv" else "\t")
    text = head.lstrip()
    if text.startswith(b"["):
        content.read(len(head) - len(text) + 1)
        return "json", json_rows.elements(content)
    return "jsonl", json_rows.lines(content)


def _refuse_others(head: bytes) -> None:
    """Raises `Broken` for what is no container, and for what is compressed (still)."""
    kinds = OTHER_FILES | {twice.magic: f"compressed twice, the inner time with {twice.name}" for twice in COMPRESSIONS}
    if other := next((kind for magic, kind in kinds.items() if head.startswith(magic)), None):
        raise Broken(
            "unreadable_file",
            f"cannot be read: the file is {other}",
            "Send JSONL, a JSON array, CSV, TSV or text in UTF-8, or Parquet, compressed with gzip or zstd or not at all.",
        )


def _suffix(filename: str | None) -> str:
    """The suffix that tells what is inside: of `rows.csv.gz` that is `.csv`."""
    suffixes = [suffix.lower() for suffix in PurePath(filename or "").suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _stored(source: Source, path: Path) -> Path:
    """Writes all of `source` to `path`."""
    with path.open("wb") as file:
        while block := source.read(READ_BYTES):
            file.write(block)
    return path


def _until_broken(rows: Iterator[tuple[int, Value]]) -> Iterator[tuple[int, Value]]:
    """The rows, and in place of the first one that the source cannot give whole, why."""
    line = 0
    try:
        for line, value in rows:
            yield line, value
    except Broken as broken:
        yield line + 1, broken.unreadable
