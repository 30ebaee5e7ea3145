"""What tests of datasets say often."""

from __future__ import annotations

import json
import secrets
from typing import Any

import httpx
import psutil

from app.datasets import reports
from app.datasets.canonical import read_rows
from app.datasets.problems import CODES
from app.datasets.service import rows_path
from app.datasets.tables import Dataset, Report
from app.kit import database

ROW = {"instruction": "Translate.", "input": "你好", "output": "Hello"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def new_row() -> dict[str, str]:
    """A row that no test uploaded before: the same bytes would be the same dataset."""
    return ROW | {"input": secrets.token_hex(8)}


def jsonl(rows: list[Any]) -> bytes:
    """Rows, one a line."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def canonical(response: httpx.Response) -> list[dict[str, Any]]:
    """The canonical rows of the dataset that an upload made, as training will read them."""
    assert response.status_code in (200, 201), response.text
    with database.reading() as session:
        dataset = session.get_one(Dataset, response.json()["id"])
    return list(read_rows(rows_path(dataset)))


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A canonical row with messages as (role, content) where they say no more, and without what is absent."""
    return {name: _plain(value) for name, value in row.items() if value is not None}


def _plain(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    said = [{name: each for name, each in message.items() if each is not None} for message in value]
    return [
        (message["role"], message["content"])
        if message.keys() == {"role", "content", "weight"} and message["weight"] == 1
        else message
        for message in said
    ]


def refusal(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of a response that must be one of this status and code, in the one body."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code, error
    assert error["message"]
    assert set(error) >= {"message", "type", "param", "code", "hint"}
    return error


def first_problem(response: httpx.Response) -> tuple[int | None, str | None, str]:
    """The first problem of a refusal: line, path, message."""
    error = refusal(response, 422, "bad_rows")
    first = error["problems"][0]
    assert (first["severity"], first["code"] in CODES) == ("error", True)
    return first["line"], first["path"], first["message"]


def expire(report: str) -> None:
    """Lets a refused upload's day be over, and what it kept be removed."""
    with database.writing() as session:
        session.get_one(Report, report).expires_at = database.utc_now()
    reports.remove_expired()


def helpers(module: str) -> list[psutil.Process]:
    """The helper processes of this process that run a module, without those that guard them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if line[-1:] == [module] and not any("processes.py" in word for word in line):
            found.append(process)
    return found
