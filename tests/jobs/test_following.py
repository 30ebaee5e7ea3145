"""Many who follow a job: one of them looks into the database for all, and each gets everything once and in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from sqlalchemy import event

from app.jobs import attempts, logs, streaming
from app.jobs.lifecycle import add_event
from app.jobs.tables import Job
from app.kit import database
from app.kit.database import writing
from tests.conftest import eventually
from tests.jobs.test_lifecycle import job

__all__ = ["job"]

FOLLOWERS = 8


@pytest.fixture
def claimed(job: dict[str, Any]) -> Job:
    found = attempts.claim("here")
    assert found is not None
    return found


def say(claimed: Job, *messages: str) -> None:
    """An event and a line of the log for each message."""
    for message in messages:
        with writing() as session:
            row = attempts.hold(session, claimed)
            add_event(session, row, "warning", message)
            logs.add(session, row, f"{message}\n")


def fail(claimed: Job) -> None:
    with writing() as session:
        attempts.fail(session, attempts.hold(session, claimed), "trainer_error", "It broke.")


def listeners() -> int:
    return sum(follower.listeners for follower in streaming.followers.values())


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements that are sent to the database meanwhile."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(database.engine(), "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(database.engine(), "before_cursor_execute", note)


@contextmanager
def following(client: httpx.Client, path: str, count: int) -> Iterator[None]:
    """So many streams that are open and read until the block ends."""
    with ExitStack() as stack:
        for _ in range(count):
            other = stack.enter_context(httpx.Client(base_url=client.base_url, timeout=60))
            stack.enter_context(other.stream("GET", path, headers={"Accept": "text/event-stream"}))
        yield


@pytest.mark.parametrize("what", ["events", "logs"])
def test_many_followers_ask_the_database_as_often_as_one(
    client: httpx.Client, claimed: Job, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look takes two statements. A slow machine looks less often, and never more."""
    monkeypatch.setattr(streaming, "POLL_SECONDS", 0.1)
    with following(client, f"/jobs/{claimed.id}/{what}", FOLLOWERS):
        eventually(lambda: listeners() == FOLLOWERS, 30)
        with counted() as statements:
            began = time.monotonic()
            eventually(lambda: len([each for each in statements if f"FROM {what}" in each]) >= 6, 30)
            looks = (time.monotonic() - began) / 0.1 + 1
        assert len([each for each in statements if f"FROM {what}" in each]) <= looks
    eventually(lambda: not streaming.followers, 30)


def test_each_follower_gets_each_row_once_in_order_wherever_it_began(
    client: httpx.Client, claimed: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are further behind than what the follower keeps."""
    monkeypatch.setattr(streaming, "KEPT_ROWS", 3)
    path = f"/jobs/{claimed.id}/events"

    def follow(start: int, *, by_header: bool = False) -> list[int]:
        headers = {"Last-Event-ID": str(start)} if by_header else {}
        params = {} if by_header else {"after": start}
        with httpx.Client(base_url=client.base_url, timeout=60) as other:
            with connect_sse(other, "GET", path, headers=headers, params=params) as source:
                return [int(event.id) for event in source.iter_sse()]

    with ThreadPoolExecutor(8) as pool:
        early = [pool.submit(follow, 0), pool.submit(follow, 1), pool.submit(follow, 2, by_header=True)]
        eventually(lambda: listeners() == 3, 30)
        say(claimed, *(f"message {number}" for number in range(20)))
        late = [pool.submit(follow, 0), pool.submit(follow, 7, by_header=True)]
        eventually(lambda: listeners() == 5, 30)
        say(claimed, *(f"message {number}" for number in range(20)))
        fail(claimed)
        found = [each.result(30) for each in early + late]
    whole = list(range(1, 44))  # created, started, 40 messages, failed
    assert found == [whole, whole[1:], whole[2:], whole, whole[7:]]
    eventually(lambda: not streaming.followers, 30)


def test_a_log_that_is_followed_for_one_attempt_ends_with_the_job(client: httpx.Client, claimed: Job) -> None:
    path, seen = f"/jobs/{claimed.id}/logs", list[str]()

    def follow() -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as other:
            with connect_sse(other, "GET", path, params={"attempt": 2}) as source:
                seen.extend(event.id for event in source.iter_sse())

    reader = threading.Thread(target=follow)
    reader.start()
    eventually(lambda: listeners() == 1, 30)
    say(claimed, "of the first attempt")
    fail(claimed)
    reader.join(30)
    assert not reader.is_alive()
    assert seen == []
