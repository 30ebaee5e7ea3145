"""What tests of datasets say often."""

from __future__ import annotations

import json
from typing import Any

import httpx

from app.datasets.canonical import read_rows
from app.datasets.tables import Dataset
from app.kit import database, storage

ROW = {"instruction": "Translate.", "input": "你好", "output": "Hello"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def jsonl(rows: list[Any]) -> bytes:
    """Rows, one a line."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def canonical(response: httpx.Response) -> list[list[tuple[str, str]]]:
    """The canonical rows of the dataset that an upload made, as training will read them."""
    assert response.status_code == 201, response.text
    with database.reading() as session:
        dataset = session.get_one(Dataset, response.json()["id"])
    path = storage.fetch_blob(dataset.rows_sha256)
    return [[(turn["role"], turn["content"]) for turn in row] for row in read_rows(path)]


def refusal(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of a response that must be one of this status and code, in the one body."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code, error
    assert error["message"]
    assert set(error) >= {"message", "type", "param", "code", "hint"}
    return error


def first_problem(response: httpx.Response) -> tuple[int | None, str | None, str]:
    """The first bad row of a refusal: line, path, message."""
    error = refusal(response, 422, "bad_rows")
    assert error["problem_count"] >= len(error["problems"]) > 0
    first = error["problems"][0]
    return first["line"], first["path"], first["message"]
