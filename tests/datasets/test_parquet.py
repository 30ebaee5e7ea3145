"""Parquet: told, read row by row in a process of its own, and never trusted."""

from __future__ import annotations

import datetime
import decimal
import gzip
import random
import resource
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from app.datasets.containers import Unreadable, parquet_rows
from tests.datasets.containers import parquet, read, values, zstd
from tests.datasets.helpers import ROW


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_parquet_is_told_by_its_first_bytes(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    rows = [ROW, ROW | {"input": None}] * 3000
    found = read(tmp_path, compress(parquet(pa.Table.from_pylist(rows), row_group_size=1000)), "a.txt")
    assert found == ("parquet", list(enumerate(rows, 1)))


def test_parquet_values_that_json_has_not_become_text(tmp_path: Path) -> None:
    row = {
        "bytes": "你".encode(),
        "time": datetime.datetime(2026, 1, 2, 3, 4, 5),
        "day": datetime.date(2026, 1, 2),
        "price": decimal.Decimal("1.50"),
        "nan": float("nan"),
        "turns": [{"role": "user", "content": "Hi"}],
    }
    [found] = values(tmp_path, parquet(pa.Table.from_pylist([row])))
    assert found == row | {
        "bytes": "你",
        "time": "2026-01-02T03:04:05",
        "day": "2026-01-02",
        "price": "1.50",
        "nan": None,
    }


def test_bad_rows_of_parquet_hide_none_after_them(tmp_path: Path) -> None:
    broken = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    table = pa.table({"a": broken, "b": pa.array([b"a", b"b", b"\xff"])})
    found = values(tmp_path, parquet(table))
    assert found[0] == {"a": "a", "b": "a"}
    assert [(value.code, value.final) for value in found[1:]] == [("invalid_utf8", False), ("unreadable_value", False)]


def test_parquet_values_that_python_cannot_hold_lose_nanoseconds_or_their_row(tmp_path: Path) -> None:
    times, far = pa.array([1_000_000_001, 2], pa.timestamp("ns")), pa.array([0, 2**62], pa.timestamp("us"))
    found = values(tmp_path, parquet(pa.table({"at": times, "far": far})))
    assert found[0] == {"at": "1970-01-01T00:00:01", "far": "1970-01-01T00:00:00"}
    assert (found[1].code, found[1].final) == ("unreadable_value", False)


def test_parquet_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    [problem] = values(tmp_path, parquet(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])))
    assert (problem.code, problem.final) == ("unreadable_file", True)
    assert "same name" in problem.message


def test_damaged_parquet_is_one_more_row_at_most(tmp_path: Path) -> None:
    noise = random.Random(1)
    content = parquet(pa.Table.from_pylist([{"a": noise.randbytes(20).hex(), "b": [1, 2]} for _ in range(3000)]))
    for place in (None, 4, 40, len(content) // 2, len(content) - 300, len(content) - 6):
        damaged = content[:-100] if place is None else content[:place] + noise.randbytes(16) + content[place + 16 :]
        problems = [value for value in values(tmp_path, damaged) if isinstance(value, Unreadable)]
        assert all(problem.code in {"unreadable_file", "invalid_utf8"} for problem in problems), place
        assert sum(problem.final for problem in problems) <= 1


def test_parquet_that_decodes_to_more_than_the_limit_is_cut_there(tmp_path: Path, limit: Callable[[int], None]) -> None:
    limit(3_000_000)
    content = parquet(pa.table({"a": pa.array(["x" * 1000] * 200_000)}))
    assert len(content) < 30_000
    found = values(tmp_path, content)
    assert 1000 < len(found) < 3000
    assert (found[-1].code, found[-1].final) == ("too_large", True)


def test_parquet_that_takes_too_much_memory_ends_its_own_process_only(tmp_path: Path) -> None:
    # A dictionary of one value, and rows that are that value: a few kilobytes that decode to 60 GB.
    values_once = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 60_000_000]))
    content = parquet(pa.table({"a": values_once}), compression="zstd", store_schema=False)
    assert len(content) < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [problem] = values(tmp_path, content)
    assert (problem.code, problem.final) == ("unreadable_file", True)
    assert "memory" in problem.message
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 <= parquet_rows.MEMORY_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
