"""How much a project or a key may ask for in a minute: counted in Redis where it is the broker, else in this process.

Windows are fixed: the first request opens a minute, and what is counted in it is forgotten at its end. The library `limits` counts.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

from limits.errors import StorageError
from limits.storage import Storage, storage_from_string
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.kit.errors import Conflict, TooManyRequests
from app.kit.wire import Strict
from app.projects.tables import Project
from app.settings import get_settings

log = logging.getLogger(__name__)

WINDOW_SECONDS = 60

What = Literal["requests", "tokens"]
Amount = Annotated[int, Field(ge=0, le=2**53)]
Rate = Annotated[int, Field(ge=1, le=2**31 - 1)]


class KeyLimits(Strict):
    """What a key may ask for. Null: no limit."""

    requests_per_minute: Rate | None = Field(None, description="Requests in a minute, of any kind.", examples=[600])
    tokens_per_minute: Rate | None = Field(
        None, description="Tokens in a minute, of prompts and answers.", examples=[100_000]
    )


class ProjectLimits(KeyLimits):
    """What a project may ask for, all its keys together. Null: no limit."""

    storage_bytes: Amount | None = Field(None, description="Bytes of uploaded files and of fine-tunes.")
    upload_bytes: Amount | None = Field(None, description="Bytes of one upload.")
    running_jobs: Rate | None = Field(None, description="Jobs that run at the same time; others wait.")
    queued_jobs: Amount | None = Field(None, description="Jobs that wait at the same time.")


class Rates(NamedTuple):
    """The limits of one project or key: `scope` is its id."""

    scope: str
    limits: KeyLimits

    def of(self, what: What) -> int | None:
        """How much of it a minute, or None for no limit."""
        return self.limits.requests_per_minute if what == "requests" else self.limits.tokens_per_minute


@dataclass(frozen=True)
class Left:
    """What is left of the tightest limit, in this minute, which ends in `seconds`."""

    limit: int
    remaining: int
    seconds: int


def project_limits(session: Session, project_id: str) -> ProjectLimits:
    """The project's limits. Raises `Conflict` where it was removed since the request came."""
    limits = session.scalars(select(Project.limits).where(Project.id == project_id)).one_or_none()
    if limits is None:
        raise Conflict("The project was removed meanwhile.", code="overtaken", hint="Use a key of another project.")
    return ProjectLimits(**limits)


def lock_project(session: Session, project_id: str) -> None:
    """Until this transaction ends no other one judges by the project's limits: two that each fit must not pass together."""
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))


def spend(what: What, rates: tuple[Rates, ...], amount: int) -> Left | None:
    """Counts `amount`, also beyond a limit. Returns what is left of the tightest limit, or None where there is none."""
    lefts = [_spend(what, scope, limit, amount) for scope, limit in _limits(what, rates)]
    return min(filter(None, lefts), key=lambda left: left.remaining, default=None)


def require(what: What, left: Left | None, room: int) -> None:
    """Raises `TooManyRequests` where less than `room` is left."""
    if left is not None and left.remaining < room:
        raise TooManyRequests(
            f"The limit of {left.limit} {what} a minute is reached.",
            seconds=left.seconds,
            hint=f"Try again in {left.seconds} s. An admin sets limits with PATCH /projects/{{name}} and PATCH /keys/{{id}}.",
        )


def headers(what: What, left: Left | None) -> dict[str, str]:
    """OpenAI's headers for what is left."""
    if left is None:
        return {}
    values = {"limit": left.limit, "remaining": max(left.remaining, 0), "reset": f"{left.seconds}s"}
    return {f"x-ratelimit-{name}-{what}": str(value) for name, value in values.items()}


def _limits(what: What, rates: tuple[Rates, ...]) -> list[tuple[str, int]]:
    return [(rate.scope, limit) for rate in rates if (limit := rate.of(what)) is not None]


def _spend(what: What, scope: str, limit: int, amount: int) -> Left | None:
    key, counters = f"burnish/{what}/{scope}", _counters()
    try:
        spent = counters.incr(key, WINDOW_SECONDS, amount) if amount else counters.get(key)
        ends = counters.get_expiry(key) if spent else time.time() + WINDOW_SECONDS
    except StorageError as error:  # a queue that is away stops nobody
        log.warning("limits are not counted: %s", error)
        return None
    return Left(limit, limit - spent, max(1, math.ceil(ends - time.time())))


@lru_cache
def _counters() -> Storage:
    url = get_settings().celery_broker_url
    if not url.startswith(("redis://", "rediss://")):
        return _storage("memory://")
    return _storage(url, socket_timeout=1, socket_connect_timeout=1)


def _storage(url: str, **options: float) -> Storage:
    made = storage_from_string(url, wrap_exceptions=True, **options)
    assert isinstance(made, Storage)
    return made
