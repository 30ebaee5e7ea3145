"""Requests that wait for an engine: one task asks the database for all of them, and none depends on another."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event

from app.chat import waiting
from app.kit import database
from app.kit.database import reading, writing
from app.models.tables import Engine
from tests.chat.conftest import ASK, Clients, Pending
from tests.conftest import eventually

ABOUT_ENGINES = re.compile(r"\bengine(s|_adapters)\b")
pytestmark = pytest.mark.usefixtures("no_engine")


def ask(api: FastAPI, clients: Clients) -> Pending:
    """One client that asks the demo base and waits."""
    return clients.post(f"{api.state.url}/v1/chat/completions", ASK)


def waiting_in(api: FastAPI) -> int:
    """How many requests wait for an engine."""
    waiters = list(api.state.engines.waiters.values())
    return sum(len(futures) for waiter in waiters for futures in list(waiter.futures.values()))


def set_engine(status: str, **fields: Any) -> None:
    """What the controller would write about the one engine that is wanted."""
    with writing() as session:
        engine = session.query(Engine).one()
        engine.status = status
        for name, value in fields.items():
            setattr(engine, name, value)


@contextmanager
def statements() -> Iterator[list[str]]:
    """The statements about engines that this process sends to the database."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if ABOUT_ENGINES.search(statement):
            seen.append(statement)

    event.listen(database.engine(), "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database.engine(), "before_cursor_execute", note)


def test_the_database_is_asked_no_more_often_when_fifty_wait_than_when_one_does(
    api: FastAPI, clients: Clients, engine_url: str
) -> None:
    began = time.monotonic()
    with statements() as seen:
        asked = [ask(api, clients) for _ in range(50)]
        eventually(lambda: waiting_in(api) == 50, 30, "fifty requests wait")
        so_far = len(seen)
        eventually(lambda: len(seen) >= so_far + 6, 30, "three more looks")
        looks = (time.monotonic() - began) / waiting.POLL_SECONDS + 2
        told = list(seen)
    assert sum(statement.startswith("INSERT") for statement in told) == 1
    # A look is two statements about engines; saying what is wanted takes a few, once.
    assert len(told) <= 2 * looks + 12, told
    set_engine("ready", url=engine_url)
    assert {each.answer().status_code for each in asked} == {200}
    eventually(lambda: not api.state.engines.waiters and not api.state.engines.keepers, 10, "nothing is left behind")


def test_a_client_that_hangs_up_takes_nobody_along_and_the_last_one_ends_the_waiting(
    api: FastAPI, clients: Clients, engine_url: str
) -> None:
    first, second = ask(api, clients), ask(api, clients)
    eventually(lambda: waiting_in(api) == 2, 30, "both wait")
    first.hang_up()
    eventually(lambda: waiting_in(api) == 1, 30, "one is left")
    set_engine("ready", url=engine_url)
    assert second.answer().status_code == 200
    set_engine("stopped", url=None)
    third = ask(api, clients)
    eventually(lambda: waiting_in(api) == 1, 30, "the third waits")
    third.hang_up()
    eventually(lambda: not api.state.engines.waiters and not api.state.engines.keepers, 10, "nobody waits any more")


def test_an_engine_that_fails_is_told_to_everyone_and_tried_again_for_the_next(
    api: FastAPI, clients: Clients, engine_url: str
) -> None:
    asked = [ask(api, clients) for _ in range(3)]
    eventually(lambda: waiting_in(api) == 3, 30, "all wait")
    set_engine("failed", error={"code": "engine_failed", "message": "out of memory", "hint": None})
    errors = [each.answer() for each in asked]
    assert {error.status_code for error in errors} == {503}
    assert all("out of memory" in error.json()["error"]["message"] for error in errors)
    late = ask(api, clients)
    eventually(lambda: waiting_in(api) == 1, 30, "the next one waits")
    eventually(lambda: status() == "wanted", 30, "the engine is wanted again")
    set_engine("ready", url=engine_url)
    assert late.answer().status_code == 200


def status() -> str:
    with reading() as session:
        return session.query(Engine).one().status
