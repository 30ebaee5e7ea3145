"""Canonical rows: what every format becomes and what training reads. A Parquet file with one conversation a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

# The form of the rows. A dataset whose rows are of an older form is read again from its file.
ROWS_VERSION = 1
SCHEMA = pa.schema([("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))])

BATCH_ROWS = 10_000
# Bounds what is held of long rows, in characters.
BATCH_CHARACTERS = 8 * 2**20


class Sink(Protocol):
    """Where a file's bytes go."""

    def write(self, data: bytes) -> int: ...


class RowsWriter:
    """Writes conversations, batch by batch; complete when the `with` block has ended without an error."""

    def __init__(self, sink: Sink) -> None:
        # Roles repeat, contents hardly do: a dictionary of them costs time and saves nothing.
        self._file = pq.ParquetWriter(sink, SCHEMA, compression="zstd", use_dictionary=["messages.list.element.role"])
        self._turns: list[tuple[str, str]] = []
        self._offsets, self._characters = [0], 0

    def append(self, conversation: Sequence[tuple[str, str]]) -> None:
        """Adds one row, of (role, content) pairs."""
        self._turns += conversation
        self._offsets.append(len(self._turns))
        for _, content in conversation:
            self._characters += len(content)
        if len(self._offsets) > BATCH_ROWS or self._characters > BATCH_CHARACTERS:
            self._write_batch()

    def _write_batch(self) -> None:
        roles, contents = zip(*self._turns, strict=True) if self._turns else ((), ())
        turns = pa.StructArray.from_arrays(
            [pa.array(roles, pa.string()), pa.array(contents, pa.string())],
            fields=list(SCHEMA.field(0).type.value_type),
        )
        messages = pa.ListArray.from_arrays(pa.array(self._offsets, pa.int32()), turns, type=SCHEMA.field(0).type)
        self._file.write_batch(pa.record_batch([messages], schema=SCHEMA))
        self._turns, self._offsets, self._characters = [], [0], 0

    def __enter__(self) -> RowsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._turns:
            self._write_batch()
        self._file.close()


def read_rows(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of a file in order, each a list of `{"role", "content"}`, in bounded memory."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from batch.column(0).to_pylist()
