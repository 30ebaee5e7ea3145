"""Every answer carries its request's id, and every line that the API logs about the request has it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from app.kit import logs
from app.kit.database import DEFAULT_PROJECT, utc_now, writing
from app.models.service import find
from app.models.tables import Engine
from app.projects import service as projects
from app.projects.tables import Key
from app.settings import Settings
from tests.conftest import eventually, serving
from tests.jobs.conftest import dataset
from tests.jobs.test_lifecycle import job

__all__ = ["dataset", "job"]

Lines = Callable[[str], list[dict[str, Any]]]
UNSAFE_IDS = ["", "a b", "a" * 129, 'a"b', "a;b", "ä".encode()]


@pytest.fixture
def lines(service: str, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """What the API logs of a request from here on, by the request's id, once its access line is there."""
    stream = io.StringIO()
    monkeypatch.setattr(logs, "get_settings", lambda: Settings(log_format="json"))
    handler = logs.handler(stream)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(root, "level", logging.INFO)

    def about(id: str) -> list[dict[str, Any]]:
        def found() -> list[dict[str, Any]]:
            written = [json.loads(line) for line in stream.getvalue().splitlines()]
            mine = [line for line in written if line.get("request_id") == id]
            return mine if any(line["logger"] == "access" for line in mine) else []

        return eventually(found, 10, f"the access line of {id}")

    return about


REQUESTS: dict[str, tuple[int, dict[str, Any]]] = {
    "an answer": (200, {"method": "GET", "url": "/jobs"}),
    "no such path": (404, {"method": "GET", "url": "/nothing"}),
    "no such method": (405, {"method": "PUT", "url": "/jobs"}),
    "a wrong body": (422, {"method": "POST", "url": "/jobs", "json": {}}),
    "a page of another origin": (403, {"method": "GET", "url": "/jobs", "headers": {"Origin": "http://elsewhere"}}),
    "OpenAI's dialect": (
        404,
        {"method": "POST", "url": "/v1/chat/completions", "json": {"model": "x", "messages": []}},
    ),
    "no need of a key": (200, {"method": "GET", "url": "/health"}),
    "a static file": (200, {"method": "GET", "url": "/docs"}),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_every_answer_carries_an_id_and_has_a_line_in_the_log(client: httpx.Client, lines: Lines, what: str) -> None:
    status, request = REQUESTS[what]
    answer = client.request(**request)
    assert answer.status_code == status
    id = answer.headers["X-Request-ID"]
    assert id.startswith("req_")
    (line,) = [line for line in lines(id) if line["logger"] == "access"]
    assert (line["method"], line["path"], line["status"]) == (request["method"], request["url"], status)
    assert (line["client"], line["bytes"]) == ("127.0.0.1", len(answer.content))
    assert line["duration_ms"] > 0


def test_a_stream_carries_it(client: httpx.Client, job: dict[str, Any], lines: Lines) -> None:
    client.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    answer = client.get(
        f"/jobs/{job['id']}/events", headers={"Accept": "text/event-stream", "X-Request-ID": "stream-1"}
    )
    assert answer.headers["X-Request-ID"] == "stream-1"
    assert lines("stream-1")[-1]["bytes"] == len(answer.content) > 0


def test_a_client_s_own_id_is_kept_and_one_that_is_not_safe_is_replaced(client: httpx.Client) -> None:
    safe = "Root=1-67891233:a.b_c/d+e@f" + "x" * 100
    assert client.get("/health", headers={"X-Request-ID": safe}).headers["X-Request-ID"] == safe
    for unsafe in UNSAFE_IDS:
        given = client.get("/health", headers={"X-Request-ID": unsafe}).headers["X-Request-ID"]
        assert given.startswith("req_"), unsafe


def test_a_fault_is_logged_under_the_id_that_the_error_names(
    client: httpx.Client, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down() -> bytes:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("app.monitoring.service.exposition", break_down)
    answer = client.get("/metrics")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    id = answer.headers["X-Request-ID"]
    assert id in answer.json()["error"]["message"]
    logged = lines(id)
    assert any("broken on purpose" in line.get("exception", "") for line in logged)
    assert [line["status"] for line in logged if line["logger"] == "access"] == [500]


def test_a_line_says_whose_request_it_was_and_nothing_secret(client: httpx.Client, lines: Lines) -> None:
    key, secret = projects.create_key("default", "admin", "first", None)
    try:
        answer = client.get("/jobs", params={"after": "hidden-query"}, headers={"X-API-Key": secret})
        (line,) = [line for line in lines(answer.headers["X-Request-ID"]) if line["logger"] == "access"]
        assert (line["project"], line["key"]) == (key.project_id, key.id)
        assert "hidden-query" not in str(line)
        assert secret not in str(line)
        odd = client.get("/jobs/a%0Ab", headers={"X-API-Key": secret})
        assert lines(odd.headers["X-Request-ID"])[-1]["path"] == "/jobs/a%0Ab"
    finally:
        with writing() as session:
            session.delete(session.get_one(Key, key.id))


def test_the_engine_is_asked_under_the_request_s_id(client: httpx.Client) -> None:
    engine, heard = FastAPI(), []

    @engine.post("/v1/chat/completions")
    async def answer(request: Request) -> dict[str, Any]:
        heard.append(request.headers["X-Request-ID"])
        return {"choices": []}

    with serving(engine) as url:
        with writing() as session:
            model = find(session, DEFAULT_PROJECT, "demo-base")
            assert model is not None
            now = utc_now()
            row = Engine(model_id=model.id, status="ready", url=url, generation=1, wanted_at=now, last_used_at=now)
            row = session.merge(row)
        body = {"model": "demo-base", "messages": [{"role": "user", "content": "Hello"}]}
        answered = client.post("/v1/chat/completions", json=body).raise_for_status()
        with writing() as session:
            session.delete(session.merge(row))
    assert heard == [answered.headers["X-Request-ID"]]
