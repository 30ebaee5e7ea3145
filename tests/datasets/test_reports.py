"""Reports: every bad row named, warnings, what can be mended, and how long a refused file is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.datasets import reports
from app.kit.database import DEFAULT_PROJECT
from tests.datasets.helpers import CHAT, canonical, expire, jsonl, new_row, plain, refusal

Upload = Callable[..., httpx.Response]
Stored = Callable[[], set[str]]


def lines(client: httpx.Client, report: str) -> list[dict[str, Any]]:
    """A report's problems."""
    response = client.get(f"/reports/{report}/rows")
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_a_refusal_counts_each_code_and_the_report_names_every_row(client: httpx.Client, upload: Upload) -> None:
    rows = [new_row(), *[new_row() | {"output": number} for number in range(150)], {"instruction": "a"}]
    error = refusal(upload(jsonl(rows) + b"{\n", name="rows.jsonl"), 422, "bad_rows")
    assert error["message"].startswith("152 of 153 rows cannot be trained on; the first: line 2, output: must be")
    assert (error["problem_count"], error["param"]) == (152, "file")
    counted = {problem["code"]: (problem["count"], problem["line"]) for problem in error["problems"]}
    assert counted == {"wrong_type": (150, 2), "missing_field": (1, 152), "invalid_json": (1, 153)}
    report = client.get(f"/reports/{error['report']}").json()
    assert (report["object"], report["dataset"], report["filename"]) == ("report", None, "rows.jsonl")
    assert (report["rows"], report["bad_rows"], report["repairable_rows"]) == (153, 152, 150)
    assert report["problems"] == error["problems"]
    found = lines(client, report["id"])
    assert [problem["line"] for problem in found] == list(range(2, 154))
    assert found[3] == {
        "line": 5,
        "code": "wrong_type",
        "severity": "error",
        "path": "output",
        "found": "3",
        "expected": "a string",
        "message": "must be a string, is a number",
        "hint": "Write a value of the expected type.",
    }


def test_bad_rows_are_dropped_where_that_is_asked_for(client: httpx.Client, upload: Upload) -> None:
    good = [new_row(), new_row()]
    response = upload([good[0], {"output": "x"}, good[1]], on_bad_rows="drop")
    made = response.json()
    assert (made["rows"], made["dropped_rows"], made["on_bad_rows"]) == (2, 1, "drop")
    assert made["problems"][0]["code"] == "missing_field"
    assert [row["messages"][1]["content"] for row in canonical(response)] == [row["output"] for row in good]
    assert client.get(f"/reports/{made['report']}").json()["dataset"] == made["id"]
    assert lines(client, made["report"])[0]["line"] == 2


def test_a_file_that_cannot_be_read_on_is_not_stored_without_its_rest(upload: Upload) -> None:
    cut = json.dumps([new_row(), new_row()]).encode()[:-20]
    refusal(upload(cut, on_bad_rows="drop"), 422, "bad_rows")


def test_a_file_of_bad_rows_only_is_refused_all_the_same(upload: Upload) -> None:
    refusal(upload([{"output": "x"}] * 3, on_bad_rows="drop"), 422, "bad_rows")


def test_one_label_is_not_enough(upload: Upload) -> None:
    rows = [CHAT | {"label": True}] * 2
    error = refusal(upload(rows), 422, "bad_rows")
    assert [problem["code"] for problem in error["problems"] if problem["severity"] == "error"] == ["single_label"]
    assert upload([*rows, CHAT | {"label": False}]).status_code == 201


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("rows", "code", "found"),
    [
        ([{"messages": [turn("user", "a"), turn("user", "b"), turn("assistant", "c")]}], "consecutive_user_turns", [1]),
        ([{"instruction": "a\u0007", "output": "b"}], "control_characters", [1]),
        ([{"instruction": "a\tb\n", "output": "\u20ac"}], None, []),
        ([{"instruction": "a" * 200_000, "output": "b"}], "long_row", [1]),
        ([{"instruction": q, "output": "x"} for q in "abab"], "repeated_row", [3, 4]),
        ([{"instruction": q, "output": a} for q, a in ("ax", "bx", "ay", "cz")], "contradictory_answers", [1, 3]),
        ([{"prompt": "a", "chosen": "b", "rejected": c} for c in "cd"], None, []),
        ([{"text": t} for t in "aba"], "repeated_row", [3]),
    ],
)
def test_what_may_not_be_meant_is_a_warning(
    client: httpx.Client, upload: Upload, rows: list[Any], code: str | None, found: list[int]
) -> None:
    response = upload(rows)
    made = response.json()
    assert response.status_code == 201, response.text
    assert [problem["severity"] for problem in made["problems"]] == (["warning"] if code else [])
    problems = lines(client, made["report"])
    assert [problem["line"] for problem in problems] == found
    assert {problem["code"] for problem in problems} == ({code} if code else set())


def test_statistics_say_what_the_rows_are_like(upload: Upload) -> None:
    rows = [{"instruction": f"好{number}", "output": "yes" if number % 3 else "no"} for number in range(30)]
    statistics = upload(rows).json()["statistics"]
    assert statistics["labels"] == {"yes": 20, "no": 10}
    assert set(statistics["scripts"]) == {"Han", "Latin"}
    assert statistics["turns"] == 60
    many = [{"instruction": str(number), "output": str(number)} for number in range(30)]
    assert upload(many).json()["statistics"]["labels"] is None


def test_the_repaired_file_is_sent_in_large_pieces(client: httpx.Client, upload: Upload) -> None:
    rows = [new_row() | {"output": number} for number in range(5000)]
    report = refusal(upload(jsonl(rows)), 422, "bad_rows")["report"]
    pieces = list(reports.repair(DEFAULT_PROJECT, report))
    assert b"".join(pieces) == client.get(f"/reports/{report}/repaired").content
    assert [json.loads(line)["output"] for line in b"".join(pieces).splitlines()] == [str(n) for n in range(5000)]
    assert min(map(len, pieces[:-1])) >= 64 * 2**10


@pytest.mark.parametrize(
    ("raw", "mended"),
    [
        (b'{"instruction": "a", "output": 1,}', {"instruction": "a", "output": "1"}),
        (b'{"instruction": "a,]", "output": true},', {"instruction": "a,]", "output": "true"}),
        (b'{"prompt": "a", "completion": "b", "label": "True"}', {"prompt": "a", "completion": "b", "label": True}),
        (
            b'{"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "b"},]}',
            {"messages": [turn("user", "5"), turn("assistant", "b")]},
        ),
    ],
)
def test_the_repaired_file_holds_the_mended_rows(
    client: httpx.Client, upload: Upload, raw: bytes, mended: dict[str, Any]
) -> None:
    good = mended | ({"label": False} if "label" in mended else {})
    if "label" not in mended:
        good = {key: value if isinstance(value, list) else value + "!" for key, value in good.items()}
    hopeless = b'{"wrong": }'
    refused = refusal(upload(jsonl([good]) + raw + b"\n" + hopeless + b"\n"), 422, "bad_rows")
    report = client.get(f"/reports/{refused['report']}").json()
    assert (report["bad_rows"], report["repairable_rows"]) == (2, 1)
    assert f"/reports/{report['id']}/repaired" in refused["hint"]
    repaired = client.get(f"/reports/{report['id']}/repaired").content.splitlines()
    assert [json.loads(line) for line in repaired[:2]] == [good, mended]
    assert repaired[2] == hopeless
    assert upload(b"\n".join(repaired[:2])).status_code == 201


def test_a_mended_array_keeps_its_rows(client: httpx.Client, upload: Upload) -> None:
    rows = [new_row(), new_row() | {"output": 7}, new_row()]
    error = refusal(upload(json.dumps(rows, indent=2).encode()), 422, "bad_rows")
    repaired = client.get(f"/reports/{error['report']}/repaired").content
    rows[1]["output"] = "7"
    assert [json.loads(line) for line in repaired.splitlines()] == rows
    assert plain(canonical(upload(repaired))[1])["messages"][1] == ("assistant", "7")


def test_where_nothing_can_be_mended_it_says_so(client: httpx.Client, upload: Upload) -> None:
    error = refusal(upload([{"instruction": "a"}]), 422, "bad_rows")
    refusal(client.get(f"/reports/{error['report']}/repaired"), 409, "nothing_to_repair")


def test_a_refused_file_is_gone_after_its_day(client: httpx.Client, upload: Upload, stored: Stored) -> None:
    before = stored()
    error = refusal(upload([new_row(), {"instruction": "a"}]), 422, "bad_rows")
    assert len(stored() - before) == 2
    expire(error["report"])
    assert stored() == before
    for path in ("", "/rows", "/repaired"):
        refusal(client.get(f"/reports/{error['report']}{path}"), 404, "report_not_found")


def test_columns_may_bear_the_usual_names_of_others(upload: Upload) -> None:
    rows = [{"input": "a", "target": "b", "instruction": "no"}]
    response = upload(rows, columns='{"prompt": "input", "response": "target"}')
    assert plain(canonical(response)[0]) == {"messages": [("user", "a"), ("assistant", "b")]}


@pytest.mark.parametrize(
    "fields",
    [
        {"columns": '{"prompt": "a", "response": "a"}'},
        {"columns": '{"prompt": "a\\"b"}'},
        {"columns": '{"prompt": "a\\\\\\\\b"}'},
        {"tags": '{"user_tag": "gpt"}'},
        {"tags": '{"role_tag": "value"}'},
    ],
)
def test_names_that_cannot_be_are_refused(upload: Upload, fields: dict[str, str]) -> None:
    assert upload([new_row()], **fields).status_code == 422
