"""The API where a test can look inside, an engine that answers everything, and clients that wait while the test goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from app.kit.database import writing
from app.main import create_app
from app.models.tables import Engine
from tests.conftest import serving

ASK = {"model": "demo-base", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def api(service: str) -> Iterator[FastAPI]:
    """The API once more; `state.url` is its address."""
    app = create_app()
    with serving(app) as url:
        app.state.url = url
        yield app


@pytest.fixture(scope="module")
def engine_url() -> Iterator[str]:
    """The address of an engine that answers everything."""
    engine = FastAPI()

    @engine.post("/v1/chat/completions")
    async def answer(request: Request) -> dict[str, Any]:
        return {"model": (await request.json())["model"], "choices": []}

    with serving(engine) as url:
        yield url


class Clients:
    """Requests that are under way in a thread of their own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None))
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def post(self, url: str, body: Any = None) -> Pending:
        """Sends a request, and returns at once."""
        return Pending(asyncio.run_coroutine_threadsafe(self.client.post(url, json=body), self.loop))

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.client.aclose(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Pending:
    """A request that may not be answered yet."""

    def __init__(self, future: Any) -> None:
        self.future = future

    def hang_up(self) -> None:
        self.future.cancel()

    def answer(self) -> httpx.Response:
        response: httpx.Response = self.future.result(30)
        return response


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    clients = Clients()
    yield clients
    clients.close()


@pytest.fixture
def no_engine() -> Iterator[None]:
    """No engine is wanted when the next test begins."""
    yield
    with writing() as session:
        for engine in session.query(Engine):
            session.delete(engine)
