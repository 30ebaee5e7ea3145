"""Each format: what a row becomes, and what is said about one that cannot be trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from app.datasets.canonical import SCHEMAS
from app.datasets.formats import FORMATS, READERS
from app.datasets.schemas import FormatName, KindName
from tests.datasets.helpers import CHAT, ROW, canonical, first_problem, plain, refusal

Upload = Callable[..., httpx.Response]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
CALLED = {
    "role": "assistant",
    "tool_calls": [{"name": "weather", "arguments": '{"city": "Oslo"}', "id": "c1"}],
    "weight": 1,
}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def turns(*said: str) -> list[dict[str, str]]:
    """ShareGPT turns, human and gpt in turn."""
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(said)]


def test_wire_names_are_those_of_the_table() -> None:
    assert set(get_args(FormatName)) == set(FORMATS)
    assert set(get_args(KindName)) == {reader.kind for reader in READERS} == set(SCHEMAS)


HI = [("user", "Hi"), ("assistant", "Hello")]
ASKED = [("user", "Hi")]
CHOICE = {"messages": ASKED, "chosen": [("assistant", "a")], "rejected": [("assistant", "b")]}
SHAPES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("alpaca", "chat", ROW, {"messages": [("user", "Translate.\n你好"), ("assistant", "Hello")]}),
    ("alpaca", "chat", {"instruction": "Hi", "input": "", "output": " Hello\n"}, {"messages": [*ASKED, ("assistant",
     " Hello\n")]}),
    ("alpaca", "chat", {"instruction": "", "input": "Hi", "output": "Hello", "label": "x"}, {"messages": HI}),
    (
        "alpaca",
        "chat",
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
        {"messages": [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]},
    ),
    ("alpaca", "preference", {"instruction": "Hi", "chosen": "a", "rejected": "b"}, CHOICE),
    ("alpaca", "labels", {"instruction": "Hi", "output": "Hello", "kto_tag": True}, {"messages": HI, "label": True}),
    ("sharegpt", "chat", {"conversations": turns("Hi", "Hello"), "system": ""}, {"messages": HI}),
    ("sharegpt", "chat", {"conversations": turns("Hi", "Hello"), "system": "s"}, {"messages": [("system", "s"), *HI]}),
    (
        "sharegpt",
        "chat",
        {
            "conversations": [
                *turns("Hi"),
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                {"from": "observation", "value": "rain"},
                {"from": "gpt", "value": "Rain."},
            ],
            "tools": '[{"name": "weather", "parameters": {}}]',
        },
        {
            "messages": [
                ("user", "Hi"),
                {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": '{"city":"Oslo"}', "id": None}],
                 "weight": 1},
                ("tool", "rain"),
                ("assistant", "Rain."),
            ],
            "tools": json.dumps([WEATHER], separators=(",", ":")),
        },
    ),
    ("sharegpt", "preference", {"conversations": turns("Hi"), "chosen": turns("", "a")[1], "rejected": turns("", "b")[1]},
     CHOICE),
    ("sharegpt", "labels", {"conversations": turns("Hi", "Hello"), "label": False}, {"messages": HI, "label": False}),
    ("openai", "chat", CHAT, {"messages": HI}),
    (
        "openai",
        "chat",
        {"messages": [{"role": "developer", "content": "s"}, user([{"type": "text", "text": "a"}, {"type": "text",
         "text": "b"}]),
                      assistant("c", weight=0), user("d"), assistant("e", weight=1, reasoning_content="r")]},
        {"messages": [("system", "s"), ("user", "ab"), assistant("c", weight=0), ("user", "d"),
                      assistant("e", weight=1, reasoning_content="r")]},
    ),
    (
        "openai",
        "chat",
        {"messages": [user("a"), {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "rain",
         "tool_call_id": "c1"},
                      assistant("Rain.")], "tools": [WEATHER]},
        {"messages": [("user", "a"), CALLED, {"role": "tool", "content": "rain", "tool_call_id": "c1", "weight": 1},
         ("assistant", "Rain.")],
         "tools": json.dumps([WEATHER], separators=(",", ":"))},
    ),
    ("openai", "chat", {"messages": [user("a"), assistant(None, tool_calls=[CALL])]}, {"messages": [("user", "a"), CALLED]}),
    ("openai", "chat", {"messages": [user("Hi"), assistant("Hello", tool_calls=None)], "tools": []}, {"messages": HI}),
    ("openai", "preference", {"input": {"messages": [user("Hi")]}, "preferred_output": [assistant("a")],
                              "non_preferred_output": [assistant("b")]}, CHOICE),
    ("openai", "labels", CHAT | {"label": False}, {"messages": HI, "label": False}),
    ("trl", "chat", {"prompt": "Hi", "completion": [assistant("Hello")]}, {"messages": HI}),
    ("trl", "preference", {"prompt": "Hi", "chosen": "a", "rejected": "b"}, CHOICE),
    ("trl", "preference", {"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]}, CHOICE),
    ("trl", "preference", {"chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("b")]}, CHOICE),
    ("trl", "labels", {"prompt": "Hi", "completion": "Hello", "label": True}, {"messages": HI, "label": True}),
    ("trl", "prompts", {"prompt": "Hi", "reference": "Hello"}, {"messages": ASKED, "reference": "Hello"}),
    ("trl", "prompts", {"prompt": [{"role": "system", "content": "s"}, user("Hi")]}, {"messages": [("system", "s"), *ASKED]}),
    ("text", "text", {"text": "Once"}, {"text": "Once"}),
]  # fmt: skip


@pytest.mark.parametrize(("format", "kind", "row", "expected"), SHAPES)
def test_a_row_is_recognised_and_becomes_canonical(
    upload: Upload, format: str, kind: str, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    other = row | {"label": not row["label"]} if "label" in row else row | {"kto_tag": not row["kto_tag"]}\
        if "kto_tag" in row else row  # fmt: skip
    response = upload([row, other] if kind == "labels" else [row])
    assert (response.json().get("format"), response.json().get("kind")) == (format, kind), response.text
    assert plain(canonical(response)[0]) == expected


@pytest.mark.parametrize(
    ("row", "fields", "expected"),
    [
        ({"q": "Hi", "a": "Hello"}, {"columns": {"prompt": "q", "response": "a"}}, {"messages": HI}),
        ({"text": "Hi", "category": "Hello"}, {"columns": {"prompt": "text", "response": "category"}}, {"messages": HI}),
        (
            {"q": "Hi", "a": "Hello", "input": "unread", "system": "unread"},
            {"columns": {"prompt": "q", "response": "a", "query": None, "system": None}},
            {"messages": HI},
        ),
        ({"content": "Once"}, {"columns": {"prompt": "content"}}, {"text": "Once"}),
        ({"content": "Once", "text": "No"}, {"columns": {"prompt": "content", "text": None}}, {"text": "Once"}),
        ({"content": "Once"}, {"columns": {"text": "content"}}, {"text": "Once"}),
        (CHAT | {"label": True}, {"kind": "chat"}, {"messages": HI}),
        ({"instruction": "Hi", "output": "Hello"}, {"kind": "prompts", "format": "alpaca"}, {"messages": ASKED,
         "reference": "Hello"}),
        ({"messages": [user("Hi")]}, {"kind": "prompts"}, {"messages": ASKED}),
        ({"turns": turns("Hi", "Hello")}, {"columns": {"messages": "turns"}}, {"messages": HI}),
        (
            {"messages": [{"who": "me", "said": "Hi"}, {"who": "it", "said": "Hello"}]},
            {"columns": {"messages": "messages"},
             "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "me", "assistant_tag": "it"}},
            {"messages": HI},
        ),
    ],
)  # fmt: skip
def test_options_say_where_the_fields_are(
    upload: Upload, row: dict[str, Any], fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    sent = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    response = upload([row], **sent)
    assert plain(canonical(response)[0]) == expected
    assert response.json()["columns"] == fields.get("columns", {})


BAD_ROWS: list[tuple[dict[str, Any], Any, str, str | None, str]] = [
    (ROW, {"instruction": "a"}, "missing_field", "output", "is missing"),
    (ROW, {"output": "a"}, "missing_field", "instruction", "is missing"),
    (ROW, {"instruction": "", "output": "a"}, "empty_turn", "instruction", "is empty"),
    (ROW, {"instruction": "a", "output": " \n"}, "empty_turn", "output", "is empty"),
    (ROW, {"instruction": "a", "output": 1}, "wrong_type", "output", "must be a string, is a number"),
    (ROW, {"instruction": "a", "output": None}, "wrong_type", "output", "must be a string, is null"),
    (ROW, {"instruction": ["a"], "output": "b"}, "wrong_type", "instruction", "must be a string, is a list"),
    (ROW, {"instruction": "a", "input": {}, "output": "b"}, "wrong_type", "input", "must be a string or null, is an object"),
    (ROW, {"instruction": "a", "output": "b", "history": "x"}, "wrong_type", "history", "must be a list or null"),
    (ROW, {"instruction": "a", "output": "b", "history": [["x", "y"], "x"]}, "wrong_type", "history[1]", "must be a list"),
    (ROW, {"instruction": "a", "output": "b", "history": [["x"]]}, "wrong_type", "history[0]", "must be a list of 2 items, has 1"),
    (ROW, {"instruction": "a", "output": "b", "history": [["x", 2]]}, "wrong_type", "history[0][1]", "must be a string"),
    (ROW, {"instruction": "a", "output": "b", "history": [["", "y"]]}, "empty_turn", "history[0][0]", "is empty"),
    (ROW, [], "not_an_object", None, "must be an object, is a list"),
    (ROW, "text", "not_an_object", None, "must be an object, is a string"),
    (CHAT, {"text": "a"}, "missing_field", "messages", "is missing"),
    (CHAT, {"messages": {}}, "wrong_type", "messages", "must be a list, is an object"),
    (CHAT, {"messages": []}, "no_assistant_turn", "messages", "nothing to learn"),
    (CHAT, {"messages": [user("a")]}, "no_assistant_turn", "messages", "nothing to learn"),
    (CHAT, {"messages": [user("a"), assistant("b", weight=0)]}, "no_assistant_turn", "messages", "carries loss"),
    (CHAT, {"messages": [assistant("a"), user("b")]}, "wrong_order", "messages[0]", "before any user"),
    (CHAT, {"messages": [user("a"), {"role": "tool", "content": "x"}, assistant("b")]}, "wrong_order", "messages[1]",
     "no tool call"),
    (CHAT, {"messages": [user("a"), assistant(None, tool_calls=[CALL]), user("b"), assistant("c")]}, "unanswered_tool_call",
     "messages[2]", "follows a tool call"),
    (CHAT, {"messages": ["a"]}, "wrong_type", "messages[0]", "must be an object, is a string"),
    (CHAT, {"messages": [{"content": "a"}]}, "missing_field", "messages[0].role", "is missing"),
    (CHAT, {"messages": [{"role": "human", "content": "a"}]}, "unknown_role", "messages[0].role",
     "is 'human'; must be one of system"),
    (CHAT, {"messages": [user("a"), assistant(None)]}, "empty_turn", "messages[1].content", "is empty"),
    (CHAT, {"messages": [user([]), assistant("b")]}, "empty_turn", "messages[0].content", "is empty"),
    (CHAT, {"messages": [user([{"type": "image_url"}]), assistant("b")]}, "unsupported_content",
     "messages[0].content[0].type", "only text"),
    (CHAT, {"messages": [user("a"), assistant("b", weight=2)]}, "wrong_value", "messages[1].weight", "is 2"),
    (CHAT, {"messages": [user("a"), assistant("b", tool_calls=[CALL | {"function": {"name": "f", "arguments": "{"}}])]},
     "invalid_tools",
     "messages[1].tool_calls[0].function.arguments", "is not valid JSON"),
    (CHAT, CHAT | {"tools": [{}]}, "invalid_tools", "tools[0]", "a function with a name"),
    (CHAT, CHAT | {"tools": "["}, "invalid_tools", "tools", "is not valid JSON"),
    ({"conversations": turns("a", "b")}, {"conversations": [{"from": "bot", "value": "x"}]}, "unknown_role",
     "conversations[0].from", "is 'bot'"),
    ({"conversations": turns("a", "b")}, {"conversations": turns("a", ""), "system": "s"}, "empty_turn",
     "conversations[1].value", "is empty"),
    ({"conversations": turns("a", "b")}, {"conversations": turns("a", "b"), "images": ["x"]}, "unsupported_content",
     "images", "cannot be trained"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"},
     "chosen_equals_rejected", "rejected", "equals"),
    ({"text": "a"}, {"text": " "}, "empty_turn", "text", "is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "row", "code", "path", "message"), BAD_ROWS)
def test_a_bad_row_is_named(
    upload: Upload, good: dict[str, Any], row: Any, code: str, path: str | None, message: str
) -> None:
    response = upload([good, row, good])
    assert first_problem(response)[:2] == (2, path)
    problem = response.json()["error"]["problems"][0]
    assert (problem["code"], problem["count"]) == (code, 1)
    assert message in problem["message"]


def test_unknown_format_says_what_was_found(upload: Upload) -> None:
    error = refusal(upload([{"question": "a", "answer": "b"}]), 422, "bad_rows")
    assert '"question", "answer"' in error["message"]
    assert "'columns'" in error["hint"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"format": "text", "kind": "chat"}, "kind"),
        ({"columns": '{"messages": "a", "prompt": "b"}'}, "columns"),
        ({"columns": "{"}, "columns"),
        ({"columns": '{"instruction": "a"}'}, "columns"),
        ({"columns": '{"images": "a"}'}, "columns"),
        ({"columns": "[]"}, "columns"),
        ({"columns": '{"prompt": 1}'}, "columns.prompt"),
        ({"tags": '{"role": "a"}'}, "tags"),
        ({"tags": '{"role_tag": "a"}', "format": "openai"}, "tags"),
        ({"on_bad_rows": "keep"}, "on_bad_rows"),
    ],
)
def test_options_that_no_format_has_are_refused(upload: Upload, fields: dict[str, str], param: str) -> None:
    assert refusal(upload([ROW], **fields), 422, "invalid_value")["param"] == param


@pytest.mark.parametrize(
    ("name", "format", "kind", "rows"),
    [
        ("llamafactory_demo/alpaca_zh_demo.json", "alpaca", "chat", 1000),
        ("llamafactory_demo/alpaca_en_demo.json", "alpaca", "chat", 999),
        ("llamafactory_demo/identity.json", "alpaca", "chat", 91),
        ("reviews_zh/validation.jsonl", "alpaca", "chat", 12108),
        ("llamafactory_demo/glaive_toolcall_en_demo.json", "sharegpt", "chat", 300),
        ("llamafactory_demo/dpo_en_demo.json", "sharegpt", "preference", 300),
        ("llamafactory_demo/kto_en_demo.json", "openai", "labels", 300),
        ("llamafactory_demo/c4_demo.jsonl", "text", "text", 300),
        ("llamafactory_demo/wiki_demo.txt", "text", "text", 30),
        ("sharegpt/dummy_conversation.json", "sharegpt", "chat", 500),
    ],
)
def test_a_real_file_loses_no_text(
    shared_data: Path, upload: Upload, name: str, format: str, kind: str, rows: int
) -> None:
    content = (shared_data / name).read_bytes()
    response = upload(content, name=Path(name).name)
    made = response.json()
    assert (made["format"], made["kind"], made["rows"]) == (format, kind, rows)
    if name.endswith(".txt"):
        source: list[Any] = content.decode().splitlines()
    elif name.endswith(".jsonl"):
        source = [json.loads(line) for line in content.splitlines()]
    else:
        source = json.loads(content)
    for row, made_of in zip(canonical(response), source, strict=True):
        assert _letters(_texts(row)) == _letters(_said(made_of))


def _said(value: Any) -> list[str]:
    """The texts of a source row that are somebody's words: not roles, labels or definitions of tools."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        left_out = {"from", "role", "tools", "label", "id"}
        return [text for key, each in value.items() if key not in left_out for text in _said(each)]
    return [text for each in value for text in _said(each)] if isinstance(value, list) else []


def _texts(row: dict[str, Any]) -> list[str]:
    found = [row.get("text") or ""]
    for part in ("messages", "chosen", "rejected"):
        for message in row.get(part) or ():
            found.append(message["content"] or "")
            calls = [(call["name"], json.loads(call["arguments"])) for call in message["tool_calls"] or ()]
            found += [f"name {name} arguments {json.dumps(given, ensure_ascii=False)}" for name, given in calls]
    return found


def _letters(texts: list[str]) -> list[str]:
    """All letters and digits of the texts, sorted: white space and the way JSON is written do not count."""
    return sorted(character for text in texts for character in text if character.isalnum())
