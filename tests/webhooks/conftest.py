"""Receivers of webhooks, and what a sender needs to be driven by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import update

from app.kit.database import utc_now, writing
from app.settings import get_settings
from app.webhooks.tables import Delivery
from tests.datasets.helpers import jsonl, new_row
from worker.webhooks import deliver_next

LONG_AGO = utc_now().replace(year=2020)


class Message(NamedTuple):
    """What a receiver got."""

    headers: dict[str, str]
    body: bytes


class Receiver:
    """An HTTP server that keeps what it is sent. It answers with the `statuses` in turn, then with 200; before an answer it
    calls `before`."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.got: list[Message] = []
        self.statuses: list[int] = []
        self.before: Callable[[], object] = lambda: None
        self._server = ThreadingHTTPServer((host, port), type("Bound", (_Handler,), {"receiver": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://{host}:{self.port}/hook?a=b"

    def __enter__(self) -> Receiver:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.receiver.got.append(Message(headers | {":path": self.path}, body))
        self.receiver.before()
        status = self.receiver.statuses.pop(0) if self.receiver.statuses else 200
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", self.receiver.url)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def loopback(request: pytest.FixtureRequest) -> Iterator[None]:
    """Webhooks may reach this machine, where there is a service."""
    if "service" not in request.fixturenames:
        yield
        return
    request.getfixturevalue("service")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(get_settings(), "webhook_networks", "127.0.0.0/8")
        yield


Add = Callable[..., dict[str, Any]]


@pytest.fixture
def add(client: httpx.Client) -> Iterator[Add]:
    """Makes a webhook, which is deleted after the test."""
    made: list[str] = []

    def add(url: str, **fields: Any) -> dict[str, Any]:
        answer = client.post("/webhooks", json={"url": url, **fields})
        assert answer.status_code == 201, answer.text
        made.append(answer.json()["id"])
        return dict(answer.json())

    yield add
    for id in made:
        client.delete(f"/webhooks/{id}")


@pytest.fixture
def start(client: httpx.Client) -> Callable[[], dict[str, Any]]:
    """Starts a job; no other one waits or runs."""

    def start() -> dict[str, Any]:
        for status in ("queued", "running", "paused"):
            for job in client.get("/jobs", params={"status": status}).json()["data"]:
                client.post(f"/jobs/{job['id']}/cancel").raise_for_status()
        dataset = client.post("/datasets", content=jsonl([new_row()])).json()["id"]
        return dict(
            client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset}).raise_for_status().json()
        )

    return start


def deliver_all() -> None:
    """Sends all that is due, once."""
    while deliver_next():
        pass


def pass_time() -> None:
    """What waits for its next try is due, and every lease has run out."""
    with writing() as session:
        session.execute(update(Delivery).values(next_attempt_at=LONG_AGO))
        session.execute(
            update(Delivery).where(Delivery.lease_expires_at.is_not(None)).values(lease_expires_at=LONG_AGO)
        )


def deliveries(client: httpx.Client, webhook: dict[str, Any], **query: str) -> list[dict[str, Any]]:
    """The webhook's deliveries, newest first."""
    return list(client.get(f"/webhooks/{webhook['id']}/deliveries", params={"limit": 1000, **query}).json()["data"])
