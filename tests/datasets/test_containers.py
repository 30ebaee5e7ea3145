"""JSONL and JSON arrays: told apart, read alike, and every place that cannot be read is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.datasets import containers
from tests.datasets.helpers import ROW, canonical, first_problem, jsonl

Upload = Callable[..., httpx.Response]
ONE = json.dumps(ROW).encode()


def values(tmp_path: Path, content: bytes) -> list[tuple[int, Any]]:
    path = tmp_path / "file"
    path.write_bytes(content)
    return list(containers.rows(path))


@pytest.mark.parametrize(
    "content",
    [
        ONE + b"\n" + ONE,
        ONE + b"\r\n\r\n  \n" + ONE + b"\n",
        b"\xef\xbb\xbf" + ONE + b"\n" + ONE,
        b"[" + ONE + b"," + ONE + b"]",
        b" \n\t[\n " + ONE + b" \n,\n" + ONE + b"\n]\n\n",
        b"\xef\xbb\xbf[" + ONE + b"," + ONE + b"]",
        json.dumps([ROW, ROW], indent=4, ensure_ascii=False).encode(),
    ],
)
def test_container_is_recognised(upload: Upload, content: bytes) -> None:
    assert canonical(upload(content)) == [[("user", "Translate.\n你好"), ("assistant", "Hello")]] * 2


@pytest.mark.parametrize("content", [b"", b"  \n\n ", b"[]", b"\xef\xbb\xbf", b"[ ]\n"])
def test_file_without_rows_is_refused(upload: Upload, content: bytes) -> None:
    assert first_problem(upload(content))[2] in {"The file is empty.", "The file has no rows."}


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (ONE + b'\n{"a"\n' + ONE, 2, "is not valid JSON"),
        (ONE + b'\n\n{"instruction": NaN}', 3, "is not valid JSON"),
        (ONE + b'\n{"n": 1e999}', 2, "is not valid JSON"),
        (ONE + b'\n{"n": ' + b"1" * 5000 + b"}", 2, "is not valid JSON"),
        (ONE + b'\n{"instruction": "\\ud800", "output": "a"}', 2, "is not valid JSON"),
        (ONE + b"\n" + b"[" * 100_000, 2, "is not valid JSON"),
        (ONE + b'\n{"instruction": "caf\xe9", "output": "a"}', 2, "is not UTF-8: byte 0xe9 at its byte 21"),
        (ONE + b"\n\x00", 2, "is not valid JSON"),
        (ONE.replace(b" ", b"\xa0"), 1, "is not UTF-8"),
        ("你好".encode("gb18030"), 1, "is not UTF-8"),
        (ONE.decode().encode("utf-16"), 1, "UTF-16"),
        (b"\x1f\x8b\x08\x00", 1, "gzip"),
        (b"PK\x03\x04", 1, "zip"),
        (b"PAR1....PAR1", 1, "Parquet"),
        (b"[" + ONE + b",]", 2, "comma"),
        (b"[" + ONE + b",," + ONE + b"]", 2, "comma"),
        (b"[" + ONE + b" " + ONE + b"]", 1, "a comma is missing"),
        (b"[" + ONE, 1, "the file ends"),
        (b"[" + ONE + b",", 2, "the file ends"),
        (b"[", 1, "the file ends"),
        (b"[" + ONE + b"]]", 2, "follows the end"),
        (b"[" + ONE + b"]" + b" " * 3_000_000 + ONE, 2, "follows the end"),
        (b"[" + ONE + b"," + b"[" * 100_000, 2, "the file ends"),
        (b"[" + ONE + b',{"a":1]]', 2, "is not valid JSON"),
        (b"[" + ONE + b',{"a":"\xff"},' + ONE + b"]", 2, "is not UTF-8"),
        (b"[" + ONE + b",NaN]", 2, "is not valid JSON"),
        (b"[" + ONE + b',"' + b"x" * 100_000, 2, "the file ends"),
    ],
)
def test_unreadable_place_is_named(upload: Upload, content: bytes, line: int, message: str) -> None:
    found, path, said = first_problem(upload(content))
    assert (found, path) == (line, None)
    assert message in said


def test_bad_row_of_an_array_hides_none_after_it(upload: Upload) -> None:
    content = b"[" + ONE + b',{"a": NaN},' + ONE + b',{"instruction":"x"}]'
    problems = upload(content).json()["error"]["problems"]
    assert [(problem["line"], problem["path"]) for problem in problems] == [(2, None), (4, "output")]


@pytest.mark.parametrize("array", [False, True])
def test_row_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: bool) -> None:
    monkeypatch.setattr(containers, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(containers, "READ_BYTES", 300)
    content = b'"' + b"x" * 10_000 + b'"'
    found = values(tmp_path, b"[1," + content + b"]" if array else b"1\n" + content + b"\n3\n")
    assert [line for line, _ in found] == ([1, 2] if array else [1, 2, 3])
    assert "1000 bytes" in found[1][1]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(json_values, max_size=8), st.sampled_from([None, 2]), st.integers(1, 64))
def test_array_is_read_as_a_whole_parse_would(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None, read_bytes: int
) -> None:
    content = json.dumps(rows, indent=indent).encode(errors="surrogatepass")
    try:
        expected = orjson.loads(content)
    except orjson.JSONDecodeError:  # a lone surrogate, which JSON text cannot carry
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containers, "READ_BYTES", read_bytes)
        found = values(tmp_path_factory.mktemp("array"), content)
    assert found == list(enumerate(expected, 1))


@given(st.binary(max_size=60) | st.text('[]{},:"\\ 1a', max_size=60).map(str.encode))
def test_array_is_refused_where_a_whole_parse_would_refuse(
    tmp_path_factory: pytest.TempPathFactory, inside: bytes
) -> None:
    content = b"[" + inside + b"]"
    found = [value for _, value in values(tmp_path_factory.mktemp("array"), content)]
    try:
        expected = orjson.loads(content)
    except orjson.JSONDecodeError:
        assert any(type(value) is containers.Unreadable for value in found)
    else:
        assert found == expected


def test_lines_of_many_reads(tmp_path: Path) -> None:
    rows = [ROW | {"input": "x" * size} for size in range(0, 60_000, 997)]
    assert [value for _, value in values(tmp_path, jsonl(rows))] == rows
