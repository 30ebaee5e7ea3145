"""Rows of every shape and none: reading ends, counts them all, and what it takes can be written and read again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets.canonical import read_rows
from app.datasets.checks import CHECKS
from app.datasets.containers import open_container
from app.datasets.deriving import repaired, write_rows
from app.datasets.examining import Findings, examine
from app.datasets.formats import FORMATS
from app.datasets.reading import Options

TEXTS = st.sampled_from(
    ["a", "b", "", " ", "true", "0", "{}", '{"name": "f", "arguments": {}}', "[", "\x00", "😀", "好"]
)
ROLES = st.sampled_from(
    ["user", "assistant", "system", "tool", "developer", "human", "gpt", "observation", "function_call", "x"]
)
SCALARS = TEXTS | st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
CALLS = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": SCALARS, "arguments": SCALARS})})
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": SCALARS})
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": ROLES,
            "content": SCALARS | st.lists(PARTS, max_size=2),
            "from": ROLES,
            "value": TEXTS,
            "tool_calls": st.none() | st.lists(CALLS, max_size=2),
            "weight": st.sampled_from([0, 1, 2, None]),
        },
    )
    | SCALARS,
    max_size=4,
)
NAMES = [
    "instruction", "input", "output", "system", "history", "chosen", "rejected", "kto_tag", "label", "conversations", "tools",
    "messages",
    "preferred_output", "non_preferred_output", "prompt", "completion", "reference", "text", "images", "functions",
]  # fmt: skip
VALUES = SCALARS | MESSAGES | st.lists(st.lists(TEXTS, max_size=3), max_size=2)
ROWS = st.dictionaries(st.sampled_from(NAMES), VALUES | st.dictionaries(st.sampled_from(NAMES), VALUES), max_size=5)
OPTIONS = st.builds(
    Options,
    format=st.sampled_from(["auto", *FORMATS]),
    kind=st.sampled_from(["auto", *CHECKS]),
    columns=st.sampled_from(
        [{}, {"prompt": "text"}, {"prompt": "input", "response": "output"}, {"messages": "messages"}]
    ),
    tags=st.sampled_from(
        [{}, {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}]
    ),
    on_bad_rows=st.just("drop"),
)


def look(folder: Path, content: bytes, options: Options, filename: str = "rows.jsonl") -> Findings:
    (folder / filename).write_bytes(content)
    with open_container(folder / filename, filename) as container:
        return examine(container, options, folder)


@settings(max_examples=1500, deadline=None)
@given(rows=st.lists(ROWS | SCALARS, max_size=4), options=OPTIONS, array=st.booleans())
def test_reading_ends_and_counts_every_row(rows: list[Any], options: Options, array: bool) -> None:
    # A number beyond 64 bits is written as JSON allows it, which the writer here does not.
    lines = [orjson.dumps(row) for row in rows if _is_writable(row)]
    content = b"[" + b",".join(lines) + b"]" if array else b"\n".join(lines)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = look(folder, content, options)
        unknown = any(problem["code"] == "unknown_format" for problem in found.problems)
        assert found.rows == len(lines) or unknown
        if found.refused:
            assert any(problem["severity"] == "error" for problem in found.problems)
            return
        with (folder / "canonical").open("wb") as sink:
            write_rows(folder / "rows.jsonl", "rows.jsonl", options, sink)
        assert len(list(read_rows(folder / "canonical"))) == found.rows - found.bad_rows > 0


@settings(max_examples=500, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=4), options=OPTIONS)
def test_what_was_repaired_has_as_many_bad_rows_less(rows: list[Any], options: Options) -> None:
    lines = [orjson.dumps(row) for row in rows if _is_writable(row)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = look(folder, b"\n".join(lines), options)
        if not found.repairable_rows:
            return
        mended = b"".join(repaired(folder / "rows.jsonl", "rows.jsonl", options))
        again = look(folder, mended, options, "mended.jsonl")
        assert again.bad_rows == found.bad_rows - found.repairable_rows


@pytest.mark.parametrize("depth", [100, 300, 1000, 1100, 100_000])
@pytest.mark.parametrize("array", [False, True])
def test_rows_that_nest_deeply_raise_nothing(tmp_path: Path, depth: int, array: bool) -> None:
    nest = b"[" * depth + b"]" * depth
    message = b'{"role": "user", "content": %s}'
    call = b'{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": %s}}}]}' % nest
    rows = [
        b'{"instruction": "a", "output": 1, "x": %s}' % nest,
        b'{"messages": [%s, {"role": "assistant", "content": "b"}], "tools": %s}' % (message % b"5", nest),
        b'{"messages": [%s, %s]}' % (message % b'"a"', call),
    ]
    for row in rows:
        options = Options("auto", "auto", {}, {}, "drop")
        found = look(tmp_path, b"[" + row + b"]" if array else row, options)
        assert found.rows == 1
        list(repaired(tmp_path / "rows.jsonl", "rows.jsonl", options))


def _is_writable(row: Any) -> bool:
    try:
        orjson.dumps(row)
    except orjson.JSONEncodeError:
        return False
    return True
