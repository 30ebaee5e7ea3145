"""The gateway before an engine answers: who is asked for, who waits, and what a caller is told. With engines: tests/system."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from app.kit.database import DEFAULT_PROJECT, reading, utc_now, writing
from app.models.service import find
from app.models.tables import Engine
from app.settings import get_settings

ASK = {"model": "demo-base", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(autouse=True)
def impatient(client: httpx.Client) -> Iterator[None]:
    """No engine comes here, so nobody waits long for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(get_settings(), "engine_wait_seconds", 0.5)
        yield
    with writing() as session:
        for engine in session.query(Engine):
            session.delete(engine)


def engine_status() -> str | None:
    """What is wanted of the demo base's engine."""
    with reading() as session:
        model = find(session, DEFAULT_PROJECT, "demo-base")
        engine = session.get(Engine, model.id) if model else None
        return engine.status if engine else None


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b'{"model": "nobody", "messages": []}', 404, "model_not_found", "model"),
        (b'{"messages": []}', 422, "invalid_value", "model"),
        (b'{"model": 7}', 422, "invalid_value", "model"),
        (b"[1, 2]", 400, "invalid_json", None),
        (b'{"model": ', 400, "invalid_json", None),
        (b"", 400, "invalid_json", None),
        (b'"\xff"', 400, "invalid_json", None),
    ],
)
def test_a_request_that_no_engine_could_answer_is_refused(
    client: httpx.Client, body: bytes, status: int, code: str, param: str | None
) -> None:
    answer = client.post("/v1/chat/completions", content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"


def test_a_request_wants_the_engine_and_gives_up_in_time(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert engine_status() == "wanted"


def test_a_stopped_engine_is_wanted_again(client: httpx.Client) -> None:
    client.post("/v1/chat/completions", json=ASK)
    with writing() as session:
        session.query(Engine).one().status = "stopped"
    client.post("/v1/chat/completions", json=ASK)
    assert engine_status() == "wanted"


def test_an_engine_that_cannot_be_reached_is_no_answer(client: httpx.Client) -> None:
    client.post("/v1/chat/completions", json=ASK)
    with writing() as session:
        engine = session.query(Engine).one()
        engine.status, engine.url, engine.last_used_at = "ready", "http://127.0.0.1:9", utc_now()
    answer = client.post("/v1/chat/completions", json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
