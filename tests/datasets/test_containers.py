"""Containers: told apart, read row by row, and every place that cannot be read is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets import containers
from app.datasets.containers import Unreadable, json_rows, open_container, tables
from tests.datasets.containers import parquet, read, values, zstd
from tests.datasets.helpers import ROW, jsonl

ONE = json.dumps(ROW).encode()
TEXT_SUFFIXES = ["jsonl", "json", "csv", "tsv", "txt", "md", "parquet", ""]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (ONE + b"\n" + ONE, "jsonl"),
        (ONE + b"\r\n\r\n  \n" + ONE + b"\n", "jsonl"),
        (b"\xef\xbb\xbf" + ONE + b"\n" + ONE, "jsonl"),
        (b"[" + ONE + b"," + ONE + b"]", "json"),
        (b" \n\t[\n " + ONE + b" \n,\n" + ONE + b"\n]\n\n", "json"),
        (b"\xef\xbb\xbf[" + ONE + b"," + ONE + b"]", "json"),
        (b"\xef\xbb\xbf \n[" + ONE + b"," + ONE + b"]", "json"),
        (json.dumps([ROW, ROW], indent=4, ensure_ascii=False).encode(), "json"),
    ],
)
@pytest.mark.parametrize("filename", [None, "rows.json", "rows.jsonl", "rows"])
def test_json_and_jsonl_are_told_by_their_first_character(
    tmp_path: Path, content: bytes, name: str, filename: str | None
) -> None:
    found, rows = read(tmp_path, content, filename)
    assert found == name
    assert [value for _, value in rows] == [ROW, ROW]


@pytest.mark.parametrize(
    ("filename", "name", "rows"),
    [
        ("a.csv", "csv", [{"[a": "1", "b": "2"}]),
        ("a.CSV", "csv", [{"[a": "1", "b": "2"}]),
        ("a.tsv", "tsv", [{"[a,b": "1,2"}]),
        ("a.txt", "text", [{"text": "[a,b"}, {"text": "1,2"}]),
        ("a.md", "text", [{"text": "[a,b"}, {"text": "1,2"}]),
        ("a.text", "text", [{"text": "[a,b"}, {"text": "1,2"}]),
        ("a.v2.csv.gz", "csv", [{"[a": "1", "b": "2"}]),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_the_suffix_of_a_table_or_text_wins_over_the_first_character(
    tmp_path: Path, filename: str, name: str, rows: list[Any], compress: Callable[[bytes], bytes]
) -> None:
    content = compress(b"\xef\xbb\xbf[a,b\n1,2\n")
    assert read(tmp_path, content, filename) == (name, list(enumerate(rows, 1)))


@pytest.mark.parametrize("filename", [f"a.{suffix}" for suffix in TEXT_SUFFIXES])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_a_file_without_rows_has_none(
    tmp_path: Path, filename: str, content: bytes, compress: Callable[[bytes], bytes]
) -> None:
    assert values(tmp_path, compress(content), filename) == []


@pytest.mark.parametrize(
    ("content", "filename"), [(b"[]", None), (b"[ ]\n", None), (b"  \n\n ", None), (b"a,b\r\n", "a.csv")]
)
def test_an_empty_container_has_no_rows(tmp_path: Path, content: bytes, filename: str | None) -> None:
    assert values(tmp_path, content, filename) == []


@pytest.mark.parametrize(
    ("content", "line", "code", "message"),
    [
        (ONE + b'\n{"a"\n' + ONE, 2, "invalid_json", "is not valid JSON"),
        (ONE + b'\n\n{"instruction": NaN}', 3, "invalid_json", "(at its character 17)"),
        (ONE + b'\n{"n": 1e999}', 2, "invalid_json", "is not valid JSON"),
        (ONE + b'\n{"n": ' + b"1" * 5000 + b"}", 2, "invalid_json", "is not valid JSON"),
        (ONE + b'\n{"instruction": "\\ud800", "output": "a"}', 2, "invalid_json", "is not valid JSON"),
        (ONE + b"\n" + b"[" * 100_000, 2, "too_deep", "nests too deeply"),
        (ONE + b'\n{"instruction": "caf\xe9", "output": "a"}', 2, "invalid_utf8", "byte 0xe9 at its byte 21"),
        (ONE + b"\n\x00", 2, "invalid_json", "is not valid JSON"),
        (ONE.replace(b" ", b"\xa0"), 1, "invalid_utf8", "is not UTF-8"),
        ("你好".encode("gb18030"), 1, "invalid_utf8", "is not UTF-8"),
        (ONE.decode().encode("utf-16"), 1, "unreadable_file", "UTF-16"),
        (b"\x1f\x8b\x08\x00", 1, "unreadable_file", "gzip"),
        (b"PK\x03\x04", 1, "unreadable_file", "zip"),
        (b"PAR1....PAR1", 1, "unreadable_file", "Parquet"),
        (b"[" + ONE + b",]", 2, "invalid_json", "comma"),
        (b"[" + ONE + b",," + ONE + b"]", 2, "invalid_json", "comma"),
        (b"[" + ONE + b" " + ONE + b"]", 1, "invalid_json", "a comma is missing"),
        (b"[1 2]", 1, "invalid_json", "a comma is missing"),
        (b"[" + ONE, 1, "invalid_json", "the file ends"),
        (b"[" + ONE + b",", 2, "invalid_json", "the file ends"),
        (b"[", 1, "invalid_json", "the file ends"),
        (b"[" + ONE + b"]]", 2, "invalid_json", "follows the end"),
        (b"[" + ONE + b"]" + b" " * 3_000_000 + ONE, 2, "invalid_json", "follows the end"),
        (b"[" + ONE + b"," + b"[" * 100_000, 2, "too_deep", "nests deeper than 16 levels"),
        (b"[" + ONE + b',{"a":1]]', 2, "invalid_json", "is not valid JSON"),
        (b"[" + ONE + b',{"a":"\xff"},' + ONE + b"]", 2, "invalid_utf8", "is not UTF-8"),
        (b"[" + ONE + b",NaN]", 2, "invalid_json", "is not valid JSON"),
        (b"[" + ONE + b',"' + b"x" * 100_000, 2, "invalid_json", "the file ends"),
    ],
)
def test_a_place_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes, line: int, code: str, message: str
) -> None:
    place, problem = next((at, value) for at, value in read(tmp_path, content)[1] if isinstance(value, Unreadable))
    assert (place, problem.code) == (line, code)
    assert message in problem.message


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_a_bad_row_of_an_array_hides_none_after_it(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    found = values(tmp_path, compress(b"[" + ONE + b',{"a": NaN},' + ONE + b"]"))
    assert [type(value) for value in found] == [dict, Unreadable, dict]


@pytest.mark.parametrize("array", [False, True])
def test_a_row_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: bool) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(json_rows, "READ_BYTES", 300)
    content = b'"' + b"x" * 10_000 + b'"'
    _, found = read(tmp_path, b"[1," + content + b"]" if array else b"1\n" + content + b"\n3\n")
    assert [line for line, _ in found] == ([1, 2] if array else [1, 2, 3])
    assert found[1][1].code == "row_too_large"
    # What follows a row of an array that has no end is not known; a line has one.
    assert found[1][1].final is array


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
        patch.setattr(json_rows, "READ_BYTES", read_bytes)
        found = values(tmp_path_factory.mktemp("array"), content)
    assert found == expected


@given(st.binary(max_size=60) | st.text('[]{},:"\\ 1a', max_size=60).map(str.encode))
def test_array_is_refused_where_a_whole_parse_would_refuse(
    tmp_path_factory: pytest.TempPathFactory, inside: bytes
) -> None:
    content = b"[" + inside + b"]"
    found = values(tmp_path_factory.mktemp("array"), content)
    try:
        expected = orjson.loads(content)
    except orjson.JSONDecodeError:
        assert any(type(value) is Unreadable for value in found)
    else:
        assert found == expected


@given(st.lists(st.sampled_from([b"", b" ", b"\r", b"a", b"bc" * 9, b"d" * 40]), max_size=12), st.integers(1, 64))
def test_lines_are_those_of_a_whole_split(pieces: list[bytes], read_bytes: int) -> None:
    content = b"\n".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "READ_BYTES", read_bytes)
        found = list(json_rows.lines(io.BytesIO(content)))
    assert found == [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]


def test_lines_of_many_reads(tmp_path: Path) -> None:
    rows = [ROW | {"input": "x" * size} for size in range(0, 60_000, 997)]
    assert values(tmp_path, jsonl(rows)) == rows


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(gzip.compress(ONE * 100_000 + b"\n" + (ONE + b"\n") * 900_000, 1))
    tracemalloc.start()
    with open_container(path, "a.jsonl.gz") as container:
        assert sum(1 for _ in container.rows) == 900_001
    assert tracemalloc.get_traced_memory()[1] < 40e6 < 900_000 * len(ONE)
    tracemalloc.stop()


def test_text_is_a_row_a_line(tmp_path: Path) -> None:
    _, rows = read(tmp_path, "你好 \r\n\n  \n{\ncaf\xe9".encode() + b"\nx\xff\n", "a.txt")
    assert rows[:3] == [(1, {"text": "你好 "}), (4, {"text": "{"}), (5, {"text": "café"})]
    assert (rows[3][0], rows[3][1].code) == (6, "invalid_utf8")
    assert "byte 0xff at its byte 2" in rows[3][1].message


@given(
    st.lists(st.tuples(*[st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))] * 2), min_size=1),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([",", "\t"]),
    st.integers(1, 64),
)
def test_a_table_is_read_as_it_was_written(
    rows: list[tuple[str, str]], end: str, delimiter: str, read_bytes: int
) -> None:
    content = io.StringIO()
    csv.writer(content, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "READ_BYTES", read_bytes)
        found = list(tables.records(io.BytesIO(content.getvalue().encode()), delimiter))
    assert found == [(number, {"a": a, "b": b}) for number, (a, b) in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("record", "code", "message"),
    [
        (b"1", "invalid_csv", "it has 1 fields, the header 2"),
        (b"1,2,3", "invalid_csv", "it has 3 fields, the header 2"),
        (b'1,"2"x', "invalid_csv", "expected after"),
        (b"1,\x00", "invalid_csv", "NUL"),
        (b"1,caf\xe9", "invalid_utf8", "column 2 is not UTF-8: byte 0xe9 at its byte 4"),
        (b'1,"\xff\n"', "invalid_utf8", "column 2 is not UTF-8: byte 0xff at its byte 1"),
    ],
)
def test_a_bad_record_hides_none_after_it(tmp_path: Path, record: bytes, code: str, message: str) -> None:
    good = {"a": "1", "b": "2"}
    _, rows = read(tmp_path, b"a,b\n1,2\n\n" + record + b"\n1,2\n", "a.csv")
    assert [line for line, _ in rows] == [1, 2, 3]
    assert (rows[0][1], rows[2][1]) == (good, good)
    assert (rows[1][1].code, rows[1][1].final) == (code, False)
    assert message in rows[1][1].message


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"a,,b", "no name for column 2"),
        (b"a,b,a", "names column 'a' more than once"),
        (b"a,\xff", "column 2 is not UTF-8"),
        (b'"a"b,c', "expected after"),
        (b'"a,c', "unexpected end"),
    ],
)
def test_a_table_needs_a_header_that_names_every_column_once(tmp_path: Path, header: bytes, message: str) -> None:
    [(line, problem)] = read(tmp_path, header + b"\n1,2,3\n", "a.csv")[1]
    assert (line, problem.final) == (1, True)
    assert message in problem.message


@pytest.mark.parametrize("content", [b'a,b\n1,2\n1,"' + b'x","\n' * 1000, b"a,b\n1,2\n" + b"x" * 4000])
def test_a_record_without_end_is_refused_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(tables, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(tables, "READ_BYTES", 300)
    _, rows = read(tmp_path, content, "a.csv")
    assert [(line, type(value)) for line, value in rows] == [(1, dict), (2, Unreadable)]
    assert (rows[1][1].code, rows[1][1].final) == ("row_too_large", True)


def test_several_members_and_frames_are_one_file(tmp_path: Path) -> None:
    for compress, between in ((gzip.compress, b"\0" * 5000), (zstd, b"\x50\x2a\x4d\x18\x04\0\0\0abcd")):
        content = compress(ONE[:9]) + compress(b"") + between + compress(ONE[9:] + b"\n" + ONE)
        assert values(tmp_path, content) == [ROW, ROW]


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-6], lambda data: data[:-40] + bytes(40), lambda data: data + b"<html>Not found</html>"],
)
def test_damaged_compression_is_told_after_the_rows_before_it(
    tmp_path: Path, compress: Callable[[bytes], bytes], damage: Callable[[bytes], bytes]
) -> None:
    noise = random.Random(1)
    rows = [{"text": noise.randbytes(500).hex()} for _ in range(2000)]
    found = values(tmp_path, damage(compress(jsonl(rows))))
    assert len(found) > 1000
    assert found[:-1] == rows[: len(found) - 1]
    assert (found[-1].code, found[-1].final) == ("unreadable_file", True)
    assert "cannot be decompressed beyond" in found[-1].message


@pytest.mark.parametrize("outer", [gzip.compress, zstd])
@pytest.mark.parametrize("inner", [gzip.compress, zstd])
def test_what_is_compressed_twice_is_refused(
    tmp_path: Path, outer: Callable[[bytes], bytes], inner: Callable[[bytes], bytes]
) -> None:
    [problem] = values(tmp_path, outer(inner(ONE)), "a.jsonl.gz")
    assert problem.code == "unreadable_file"
    assert "compressed twice" in problem.message


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_a_file_that_unpacks_to_more_than_the_limit_is_cut_there(
    tmp_path: Path, limit: Callable[[int], None], compress: Callable[[bytes], bytes]
) -> None:
    limit(300_000)
    content = compress(b"x" * 99_999 + b"\n" + b"x" * 99_999 + b"\n" + bytes(10**8))
    found = values(tmp_path, content, "a.txt")
    assert [type(value) for value in found[:-1]] == [dict, dict]
    assert (found[-1].code, found[-1].final) == ("too_large", True)
    assert "300000 bytes" in found[-1].message


def test_leaving_a_container_early_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(parquet(pa.table({"a": pa.array(["x" * 1000] * 200_000)})))
    with open_container(path, None) as container:
        assert next(container.rows)[0] == 1


def fragments() -> st.SearchStrategy[bytes]:
    pieces = [
        b'"',
        b",",
        b"\n",
        b"\r",
        b"\t",
        b"[",
        b"]",
        b"{",
        b"}",
        b"\0",
        b"\xff",
        b"a",
        b'{"a":1}',
        b"\xef\xbb\xbf",
    ]
    magic = [b"", *containers.OTHER_FILES, b"\x1f\x8b", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", b"PAR"]
    joined = st.lists(st.sampled_from(pieces) | st.binary(max_size=8), max_size=20).map(b"".join)
    return st.tuples(st.sampled_from(magic), joined).map(b"".join)


@settings(max_examples=500, deadline=None)
@given(
    fragments(),
    st.sampled_from([bytes, gzip.compress, zstd]),
    st.sampled_from(TEXT_SUFFIXES),
    st.integers(0, 8),
    st.integers(1, 64),
)
def test_no_bytes_raise_anything(
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    compress: Callable[[bytes], bytes],
    suffix: str,
    cut: int,
    read_bytes: int,
) -> None:
    data = compress(content)
    with pytest.MonkeyPatch.context() as patch:
        for module in (json_rows, tables):
            patch.setattr(module, "READ_BYTES", read_bytes)
        _, rows = read(tmp_path_factory.mktemp("any"), data[: len(data) - cut], f"a.{suffix}")
    assert [line for line, _ in rows] == sorted(line for line, _ in rows)
    assert not any(isinstance(value, Unreadable) and value.final for _, value in rows[:-1])
