"""Threads of chat's own, so that slow work elsewhere in the API never keeps a chat waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter, to_thread

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

# Each holds a database connection for milliseconds. The pool of connections has 30.
THREADS = CapacityLimiter(20)


async def in_thread(work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """The result of a blocking function, run in one of chat's threads."""
    return await to_thread.run_sync(work, *arguments, limiter=THREADS)
