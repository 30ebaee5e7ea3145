"""Canonical rows on disk: a Parquet file with one row a row, of the schema of its dataset's kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.turns import Row

# The form of the rows. A dataset whose rows are of an older form is read again from its file.
ROWS_VERSION = 2

TEXT = pa.string()
TOOL_CALL = pa.struct([("name", TEXT), ("arguments", TEXT), ("id", TEXT)])
MESSAGE = pa.struct(
    [
        ("role", TEXT),
        ("content", TEXT),
        ("reasoning_content", TEXT),
        ("tool_calls", pa.list_(TOOL_CALL)),
        ("tool_call_id", TEXT),
        ("name", TEXT),
        ("weight", pa.int8()),
    ]
)
MESSAGES = pa.list_(MESSAGE)
# Kind → the columns of its rows.
SCHEMAS: dict[str, pa.Schema] = {
    "chat": pa.schema([("messages", MESSAGES), ("tools", TEXT)]),
    "preference": pa.schema([("messages", MESSAGES), ("chosen", MESSAGES), ("rejected", MESSAGES), ("tools", TEXT)]),
    "labels": pa.schema([("messages", MESSAGES), ("label", pa.bool_()), ("tools", TEXT)]),
    "prompts": pa.schema([("messages", MESSAGES), ("reference", TEXT), ("tools", TEXT)]),
    "text": pa.schema([("text", TEXT)]),
}

BATCH_ROWS = 10_000
# Bounds what is held of long rows, in characters.
BATCH_CHARACTERS = 8 * 2**20


class Sink(Protocol):
    """Where a file's bytes go."""

    def write(self, data: bytes) -> int: ...


class RowsWriter:
    """Writes rows of one kind, batch by batch; complete when the `with` block has ended without an error."""

    def __init__(self, sink: Sink, kind: str) -> None:
        self._schema = SCHEMAS[kind]
        # Dictionaries cost time, and save nothing but where values repeat; roles do.
        self._file = pq.ParquetWriter(sink, self._schema, compression="zstd", use_dictionary=ROLES.get(kind, False))
        self._rows: list[Row] = []
        self._characters = 0

    def append(self, row: Row, characters: int) -> None:
        """Adds one row of this many characters."""
        self._rows.append(row)
        self._characters += characters
        if len(self._rows) >= BATCH_ROWS or self._characters > BATCH_CHARACTERS:
            self._write_batch()

    def _write_batch(self) -> None:
        columns = [
            pa.array(msgspec.to_builtins([getattr(row, field.name) for row in self._rows]), field.type)
            for field in self._schema
        ]
        self._file.write_batch(pa.record_batch(columns, schema=self._schema))
        self._rows, self._characters = [], 0

    def __enter__(self) -> RowsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._rows:
            self._write_batch()
        self._file.close()


ROLES = {
    "chat": ["messages.list.element.role"],
    "labels": ["messages.list.element.role"],
    "prompts": ["messages.list.element.role"],
    "preference": [f"{column}.list.element.role" for column in ("messages", "chosen", "rejected")],
}


def read_rows(path: Path, start: int = 0) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file in order from number `start` (counted from 0), in bounded memory."""
    with pq.ParquetFile(path) as file:
        first, groups = 0, list(range(file.num_row_groups))
        while groups and first + file.metadata.row_group(groups[0]).num_rows <= start:
            first += file.metadata.row_group(groups.pop(0)).num_rows
        for batch in file.iter_batches(batch_size=1000, row_groups=groups) if groups else ():
            # Only what is asked for becomes Python objects, which takes longer than reading it.
            yield from batch.slice(min(max(start - first, 0), len(batch))).to_pylist()
            first += len(batch)
