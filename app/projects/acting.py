"""Who asks for what is being done: set once a request is known, read by whatever keeps a record of it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from anyio import CapacityLimiter

from app.kit.database import DEFAULT_PROJECT
from app.projects.limits import Rates

# Whoever asks is looked up in threads that nothing else uses: no other request can hold it up, however slow it is.
AUTHENTICATING = CapacityLimiter(16)


@dataclass(frozen=True)
class Actor:
    """Who acts, in which project, and from where.

    `key_id` is None for the admin key of the settings and where there are no keys; `address` is the client's, or `console`
    for a command that works on the database itself; `rates` are the limits that its requests count for.
    """

    project_id: str
    key_id: str | None
    key_name: str | None
    role: str
    address: str
    rates: tuple[Rates, ...] = ()


CONSOLE = Actor(DEFAULT_PROJECT, None, None, "admin", "console")

# Set by a dependency that is a coroutine: then the request's task and the threads that it uses all see it.
_actor: ContextVar[Actor] = ContextVar("actor", default=CONSOLE)


def actor() -> Actor:
    """Who acts now."""
    return _actor.get()


def act_as(actor: Actor) -> None:
    """From here on this task, and the threads that it uses, act as `actor`."""
    _actor.set(actor)
