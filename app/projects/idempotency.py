"""`Idempotency-Key`: a creation that is asked for again under the same key is answered as it was the first time.

The answer is kept in the transaction that creates: one is there exactly when the other is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import orjson
from anyio import to_thread
from fastapi import Request, Response
from pydantic import BaseModel
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.kit.database import reading, utc_now, writing
from app.kit.errors import Conflict, InvalidValue
from app.kit.sealing import Unreadable, seal, unseal
from app.projects.acting import AUTHENTICATING, actor
from app.projects.tables import Answer

KEPT = timedelta(hours=24)


class Replayed(Exception):
    """The request was answered before: this is the answer."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status, self.body = status, body


@dataclass(frozen=True)
class Asked:
    """An idempotency key, hashed, and the fingerprint of what it was sent with (None until that has arrived)."""

    key: str
    request: str | None


_asked: ContextVar[Asked | None] = ContextVar("asked", default=None)


async def ask_once(key: str, request: str | None) -> None:
    """From here on what this task creates is created once under `key`.

    `request` is what the request asks for, in full; None where it arrives as a stream, see `arrived`. Raises `Replayed`
    where it was answered before, `Conflict` where the key came with another request, `InvalidValue` for a bad key.
    """
    if not 1 <= len(key) <= 255 or not key.isprintable():
        raise InvalidValue(
            "The header 'Idempotency-Key' is not 1 to 255 printable characters.",
            param="Idempotency-Key",
            hint="Send a UUID, the same one with every try.",
        )
    asked = Asked(_digest(key), None if request is None else _digest(request))
    if asked.request is not None:
        await to_thread.run_sync(_replay, asked, limiter=AUTHENTICATING)
    _asked.set(asked)


def arrived(request: Any) -> None:
    """Says what a request that arrived as a stream asks for: anything that JSON holds. Raises as `ask_once`."""
    if (asked := _asked.get()) is not None:
        asked = Asked(asked.key, _digest(orjson.dumps(request, option=orjson.OPT_SORT_KEYS).decode()))
        _replay(asked)
        _asked.set(asked)


@contextmanager
def creating() -> Iterator[Session]:
    """A writing session in which the request creates something. Of two requests with one key the second waits for the
    first here, and is answered like it (`Replayed`)."""
    asked = _asked.get()
    with writing() as session:
        if asked is not None:
            _claim(session, asked)
        yield session


def remember(session: Session, status: int, answer: BaseModel) -> None:
    """Keeps the answer of a creation, at the end of its transaction. It may hold a key: it is sealed."""
    if (asked := _asked.get()) is not None:
        row = session.get_one(Answer, (actor().project_id, asked.key))
        row.status, row.body = status, seal(answer.model_dump_json().encode())


def remove_expired() -> None:
    """Removes the answers that are kept no longer."""
    with writing() as session:
        session.execute(delete(Answer).where(Answer.created_at <= utc_now() - KEPT))


def _claim(session: Session, asked: Asked) -> None:
    project = actor().project_id
    mine = (Answer.project_id == project) & (Answer.key == asked.key)
    session.execute(delete(Answer).where(mine, Answer.created_at <= utc_now() - KEPT))
    try:
        with session.begin_nested():
            session.add(Answer(project_id=project, key=asked.key, request=asked.request, status=0, body=""))
    except IntegrityError:
        _replay(asked)
        raise


def _replay(asked: Asked) -> None:
    """Raises `Replayed` with the answer that is kept for the key, if one is."""
    with reading() as session:
        found = session.get(Answer, (actor().project_id, asked.key))
    if found is None or found.created_at <= utc_now() - KEPT:
        return
    if found.request != asked.request:
        raise _conflict("was sent with another request", "idempotency_mismatch")
    try:
        raise Replayed(found.status, unseal(found.body))
    except Unreadable:
        raise _conflict(
            "was used, but its answer cannot be opened: BURNISH_SECRET_KEY has changed", "idempotency_unreadable"
        ) from None


def _conflict(what: str, code: str) -> Conflict:
    return Conflict(
        f"The Idempotency-Key {what}.",
        param="Idempotency-Key",
        code=code,
        hint="Send a new key for a new request; a key is remembered for 24 hours.",
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def answer_again(request: Request, error: Exception) -> Response:
    """The handler of `Replayed`."""
    assert isinstance(error, Replayed)
    return Response(error.body, error.status, {"Idempotent-Replayed": "true"}, "application/json")
