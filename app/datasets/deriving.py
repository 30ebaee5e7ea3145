"""What is made of a file that was examined: its canonical rows, and the mended file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import orjson

from app.datasets.canonical import RowsWriter, Sink
from app.datasets.containers import Unreadable, open_container
from app.datasets.mending import mend
from app.datasets.problems import Problem
from app.datasets.reading import Options, RowReader
from app.datasets.statistics import texts


def write_rows(path: Path, filename: str | None, options: Options, sink: Sink) -> None:
    """Writes the canonical rows of a file that was examined under these options; bad rows are left out."""
    with open_container(path, filename) as container, ExitStack() as stack:
        rows = RowReader(container, options)
        writer: RowsWriter | None = None
        for read in rows:
            if isinstance(read.row, Problem):
                continue
            if writer is None:
                assert rows.reader is not None
                writer = stack.enter_context(RowsWriter(sink, rows.reader.kind))
            writer.append(read.row, sum(len(text) for text in texts(read.row)))


def repaired(path: Path, filename: str | None, options: Options) -> Iterator[bytes]:
    """Yields a file's rows as lines of JSON, mended where they can be."""
    with open_container(path, filename) as container:
        rows = RowReader(container, options)
        for read in rows:
            mended = rows.mended(read.value, mend) if isinstance(read.row, Problem) else None
            value = read.value if mended is None else mended
            if isinstance(value, bytes):
                yield b" ".join(value.split(b"\n")).strip() + b"\n"  # in JSON text a line end is but white space
            elif not isinstance(value, Unreadable):
                yield orjson.dumps(value, default=str) + b"\n"
