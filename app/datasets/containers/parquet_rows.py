"""Prints the rows of a Parquet file as JSON, a line a row: a program of its own.

A small file can decode to any size, and a damaged one can crash its reader. Both end this process, not the service's:
the system holds it to `MEMORY_BYTES`. In place of a row that cannot be read it prints a list: code, message, hint.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

# Address space: far more than the pages take that any usual writer makes.
MEMORY_BYTES = 4 * 2**30
MAX_BATCH_ROWS = 1000
BATCH_BYTES = 4 * 2**20
# Python's times have no nanoseconds.
SHORTER = {pa.time64("ns"): pa.time64("us"), pa.duration("ns"): pa.duration("us")}


def main(path: str) -> None:
    """Writes to standard output; what is wrong with the whole file comes last."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pa.set_memory_pool(pa.system_memory_pool())
    pa.set_cpu_count(1)
    try:
        for batch in _batches(path):
            sys.stdout.buffer.write(b"".join(_printed(batch)))
    except MemoryError:
        _give_up("its rows take too much memory", "Write the file again with smaller pages, or as JSONL.")
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        _give_up(f"it is damaged or unusual ({_in_words(error)})", "Write the file again.")


def _give_up(reason: str, hint: str) -> None:
    sys.stdout.buffer.write(_line(["unreadable_file", f"cannot be read: the file is Parquet, but {reason}", hint]))


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    """Batches of a few megabytes, where rows are about as large as each other."""
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise ValueError("two of its columns have the same name")
        schema = pa.schema([field.with_type(_without_nanoseconds(field.type)) for field in file.schema_arrow])
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            rows = BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1)
            for batch in file.iter_batches(max(1, min(rows, MAX_BATCH_ROWS)), [number], use_threads=False):
                yield batch.cast(schema, safe=False)


def _without_nanoseconds(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) else SHORTER.get(kind, kind)


def _printed(batch: pa.RecordBatch) -> Iterator[bytes]:
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        # One value that Python cannot hold: find its row.
        if batch.num_rows > 1:
            for row in range(batch.num_rows):
                yield from _printed(batch.slice(row, 1))
        elif isinstance(error, UnicodeDecodeError):
            yield _line(["invalid_utf8", "has text that is not UTF-8", None])
        else:
            yield _unreadable(error)
        return
    for value in values:
        try:
            yield _line(value)
        except orjson.JSONEncodeError as error:
            yield _unreadable(error)


def _unreadable(error: Exception) -> bytes:
    return _line(["unreadable_value", f"has a value that cannot be written as JSON ({_in_words(error)})", None])


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _line(value: Any) -> bytes:
    return orjson.dumps(value, default=_plain, option=orjson.OPT_APPEND_NEWLINE)


def _plain(value: Any) -> str:
    """A value that JSON has not, as text: what bytes spell, else what Python writes."""
    return value.decode() if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    main(sys.argv[1])
