"""Reading a file through its container, as tests of containers do."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from app.datasets.containers import explain, open_container


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def value_of(raw: Any) -> Any:
    """A row as the formats see it: JSON text parsed, or explained."""
    if not isinstance(raw, bytes):
        return raw
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return explain(raw)


def read(folder: Path, content: bytes, filename: str | None = None) -> tuple[str, list[tuple[int, Any]]]:
    """The name and the rows of a file that holds `content`."""
    path = folder / "upload"
    path.write_bytes(content)
    with open_container(path, filename) as container:
        return container.name, [(line, value_of(raw)) for line, raw in container.rows]


def values(folder: Path, content: bytes, filename: str | None = None) -> list[Any]:
    return [value for _, value in read(folder, content, filename)[1]]


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()
