"""Chat has threads of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import anyio
import httpx
import pytest
from anyio import to_thread
from fastapi import Request

from app.kit.database import DEFAULT_PROJECT, utc_now, writing
from app.main import create_app
from app.models.service import find
from app.models.tables import Engine
from app.projects.access import Allowed
from tests.chat.conftest import ASK, Clients
from tests.conftest import eventually, serving

pytestmark = pytest.mark.usefixtures("no_engine")


@pytest.fixture
def busy(service: str, clients: Clients) -> Iterator[str]:
    """The address of an API whose shared threads are all taken, and more calls wait for one. Nobody authenticates there."""
    app, gate, limiters = create_app(), threading.Event(), []

    async def wait() -> None:
        await to_thread.run_sync(gate.wait)

    @app.post("/slow")
    async def slow() -> None:
        limiters.append(limiter := to_thread.current_default_thread_limiter())
        async with anyio.create_task_group() as calls:
            for _ in range(int(limiter.total_tokens) + 5):
                calls.start_soon(wait)

    async def anybody(request: Request) -> str:
        request.state.headers = {}
        return DEFAULT_PROJECT

    app.dependency_overrides[Allowed("infer")] = anybody
    with serving(app) as url:
        pending = clients.post(f"{url}/slow")
        try:
            eventually(lambda: limiters and not limiters[0].available_tokens, 30, "every shared thread is taken")
            yield url
        finally:
            gate.set()
            pending.answer()


def test_a_chat_is_answered_while_slow_calls_hold_every_shared_thread(busy: str, engine_url: str) -> None:
    with writing() as session:
        model, now = find(session, DEFAULT_PROJECT, "demo-base"), utc_now()
        assert model is not None
        session.add(Engine(model_id=model.id, status="ready", url=engine_url, wanted_at=now, last_used_at=now))
    assert httpx.post(f"{busy}/v1/chat/completions", json=ASK, timeout=30).status_code == 200
