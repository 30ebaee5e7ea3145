"""Each format: what a row becomes, and what is said about one that cannot be trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from app.datasets.formats import FORMATS
from app.datasets.schemas import FormatName
from tests.datasets.helpers import CHAT, ROW, canonical, first_problem, refusal

Upload = Callable[..., httpx.Response]
Rows = list[dict[str, Any]]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def test_wire_names_are_those_of_the_table() -> None:
    assert set(get_args(FormatName)) == set(FORMATS)


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        (ROW, [("user", "Translate.\n你好"), ("assistant", "Hello")]),
        ({"instruction": "Hi", "output": "Hello"}, [("user", "Hi"), ("assistant", "Hello")]),
        ({"instruction": "Hi", "input": "", "output": " Hello\n"}, [("user", "Hi"), ("assistant", " Hello\n")]),
        ({"instruction": "Hi", "input": None, "output": "1", "label": "x"}, [("user", "Hi"), ("assistant", "1")]),
        (
            {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
            [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
        ),
        ({"instruction": "a", "output": "b", "system": "", "history": []}, [("user", "a"), ("assistant", "b")]),
        (CHAT, [("user", "Hi"), ("assistant", "Hello")]),
        (
            {"messages": [{"role": "developer", "content": "s"}, user("a"), assistant("b"), user("c")]},
            [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")],
        ),
        (
            {
                "messages": [
                    user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
                    assistant("c", weight=1),
                ]
            },
            [("user", "ab"), ("assistant", "c")],
        ),
        ({"messages": [user("a"), assistant("b", tool_calls=None)], "tools": []}, [("user", "a"), ("assistant", "b")]),
        ({"messages": [user("\x00"), assistant("\u2028")]}, None),
    ],
)
def test_row_becomes_turns(upload: Upload, row: dict[str, Any], turns: list[tuple[str, str]] | None) -> None:
    response = upload([row])
    if turns is None:
        assert first_problem(response)[1] == "messages[1].content"
    else:
        assert canonical(response) == [turns]


ALPACA_PROBLEMS: list[tuple[Any, str | None, str]] = [
    ({"instruction": "a"}, "output", "is missing"),
    ({"output": "a"}, "instruction", "is missing"),
    ({"instruction": "", "output": "a"}, "instruction", "is empty"),
    ({"instruction": "a", "output": ""}, "output", "is empty"),
    ({"instruction": "a", "output": " \n"}, "output", "is empty"),
    ({"instruction": "a", "output": 1}, "output", "must be a string, is a number"),
    ({"instruction": "a", "output": None}, "output", "must be a string, is null"),
    ({"instruction": ["a"], "output": "b"}, "instruction", "must be a string, is a list"),
    ({"instruction": "a", "input": {}, "output": "b"}, "input", "must be a string, is an object"),
    ({"instruction": "a", "output": "b", "system": True}, "system", "must be a string, is a boolean"),
    ({"instruction": "a", "output": "b", "history": "x"}, "history", "must be a list of pairs"),
    ({"instruction": "a", "output": "b", "history": [["x", "y"], "x"]}, "history[1]", "must be a pair of strings"),
    ({"instruction": "a", "output": "b", "history": [["x"]]}, "history[0]", "has 1 items"),
    ({"instruction": "a", "output": "b", "history": [["x", 2]]}, "history[0][1]", "must be a string, is a number"),
    ({"instruction": "a", "output": "b", "history": [["", "y"]]}, "history[0][0]", "is empty"),
    ([], None, "must be an object, is a list"),
    ("text", None, "must be an object, is a string"),
    (1.5, None, "must be an object, is a number"),
]

OPENAI_PROBLEMS: list[tuple[Any, str | None, str]] = [
    ({"text": "a"}, "messages", "is missing"),
    ({"messages": {}}, "messages", "must be a list, is an object"),
    ({"messages": []}, "messages", "is empty"),
    ({"messages": [user("a")]}, "messages", "no assistant turn"),
    ({"messages": [assistant("a"), user("b")]}, "messages[0]", "before any user turn"),
    ({"messages": ["a"]}, "messages[0]", "must be an object, is a string"),
    ({"messages": [{"content": "a"}]}, "messages[0].role", "is missing"),
    ({"messages": [{"role": 1, "content": "a"}]}, "messages[0].role", "must be a string"),
    ({"messages": [{"role": "human", "content": "a"}]}, "messages[0].role", "is 'human'; must be one of system"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "tool messages are not supported yet"),
    ({"messages": [user("a"), {"role": "assistant"}]}, "messages[1].content", "is missing"),
    ({"messages": [user("a"), assistant(None)]}, "messages[1].content", "must be a string, is null"),
    ({"messages": [user(""), assistant("b")]}, "messages[0].content", "is empty"),
    ({"messages": [user([]), assistant("b")]}, "messages[0].content", "is empty"),
    ({"messages": [user(["a"]), assistant("b")]}, "messages[0].content[0]", "must be an object"),
    ({"messages": [user([{"type": "image_url"}]), assistant("b")]}, "messages[0].content[0].type", "images cannot"),
    ({"messages": [user([{"type": []}]), assistant("b")]}, "messages[0].content[0].type", "must be 'text'"),
    ({"messages": [user([{"type": "text"}]), assistant("b")]}, "messages[0].content[0].text", "must be a string"),
    (
        {"messages": [user("a"), {"role": "assistant", "tool_calls": [{}]}]},
        "messages[1].tool_calls",
        "tool calls cannot",
    ),
    ({"messages": [user("a"), assistant("b", weight=0)]}, "messages[1].weight", "not supported yet"),
    ({"messages": [user("a"), assistant("b")], "tools": [{}]}, "tools", "tools cannot be trained on yet"),
]


@pytest.mark.parametrize(
    ("format", "row", "path", "message"),
    [("alpaca", *problem) for problem in ALPACA_PROBLEMS] + [("openai", *problem) for problem in OPENAI_PROBLEMS],
)
def test_bad_row_is_named(upload: Upload, format: str, row: Any, path: str | None, message: str) -> None:
    good = ROW if format == "alpaca" else CHAT
    line, found, said = first_problem(upload([good, row, good], format=format))
    assert (line, found) == (2, path)
    assert message in said


def test_every_bad_row_is_counted_and_the_first_hundred_named(upload: Upload) -> None:
    error = refusal(upload([ROW, *[{"instruction": "a"}] * 150]), 422, "bad_rows")
    assert error["problem_count"] == 150
    assert [problem["line"] for problem in error["problems"]] == list(range(2, 102))
    assert error["message"] == "150 of 151 rows cannot be trained on; the first: line 2, output: is missing."


def test_unknown_format_says_what_was_found_and_what_is_expected(upload: Upload) -> None:
    error = refusal(upload([{"prompt": "a", "answer": "b"}]), 422, "bad_rows")
    assert "'prompt', 'answer'" in error["message"]
    assert "'instruction' and 'output'" in error["hint"]
    assert "'messages'" in error["hint"]


@pytest.mark.parametrize(
    "row", [CHAT | {"label": False}, ROW | {"chosen": "a", "rejected": "b"}, {"conversations": [{}]}]
)
def test_rows_of_another_kind_are_not_taken_for_chat(upload: Upload, row: dict[str, Any]) -> None:
    assert "not supported yet" in first_problem(upload([row]))[2]


def test_named_format_reads_rows_that_look_like_another(upload: Upload) -> None:
    assert upload([CHAT | {"label": True}], format="openai").json()["format"] == "openai"
    assert first_problem(upload([CHAT], format="alpaca"))[1] == "instruction"


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("llamafactory_demo/alpaca_zh_demo.json", 1000),
        ("llamafactory_demo/alpaca_en_demo.json", 999),
        ("llamafactory_demo/identity.json", 91),
        ("reviews_zh/validation.jsonl", 12108),
    ],
)
def test_real_file_becomes_the_rows_that_it_holds(shared_data: Path, upload: Upload, name: str, rows: int) -> None:
    content = (shared_data / name).read_bytes()
    source = json.loads(content) if name.endswith(".json") else [json.loads(line) for line in content.splitlines()]
    response = upload(content)
    assert response.json()["rows"] == len(source) == rows
    assert canonical(response) == [
        [
            ("user", row["instruction"] + ("\n" + row["input"] if row["input"] else "")),
            ("assistant", row["output"]),
        ]
        for row in source
    ]


@pytest.mark.parametrize(
    "name",
    [
        "llamafactory_demo/dpo_en_demo.json",
        "llamafactory_demo/kto_en_demo.json",
        "llamafactory_demo/glaive_toolcall_en_demo.json",
        "llamafactory_demo/c4_demo.jsonl",
        "llamafactory_demo/wiki_demo.txt",
        "sharegpt/dummy_conversation.json",
    ],
)
def test_real_file_of_a_format_to_come_is_refused(shared_data: Path, upload: Upload, name: str) -> None:
    refusal(upload((shared_data / name).read_bytes()), 422, "bad_rows")
