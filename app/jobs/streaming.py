"""Streams of what is numbered within a job: its events, its log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import anyio.to_thread
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel

from app.jobs.tables import Event, Log
from app.kit.errors import NotFound

# How often a stream looks for what is new.
POLL_SECONDS = 0.3
# After this long without anything a comment is sent, so that proxies keep the stream open.
KEEPALIVE_SECONDS = 15.0


Row = TypeVar("Row", Event, Log)

# Rows after a number, oldest first; whether there are more, and whether the job has ended.
Batch = tuple[list[Row], bool, bool]
Read = Callable[[int], Batch[Row]]


async def rows(read: Read[Row], first: Batch[Row], start: int, *, follow: bool) -> AsyncIterator[Row | None]:
    """The rows after number `start`, of which `first` is the first batch; with `follow` also those that come until the job has
    ended, and None now and then where nothing comes. `read` is called in a thread."""
    (batch, more, ended), number, silence = first, start, 0.0
    while True:
        for row in batch:
            number = row.number
            yield row
        if not more and (ended or not follow):
            return
        if not more:
            await asyncio.sleep(POLL_SECONDS)
            silence = 0.0 if batch else silence + POLL_SECONDS
            if silence > KEEPALIVE_SECONDS:
                yield None
                silence = 0.0
        try:
            batch, more, ended = await anyio.to_thread.run_sync(read, number)
        except NotFound:  # deleted with its project
            return


def server_sent(
    found: AsyncIterator[Row | None], kind: Callable[[Row], str], out: Callable[[Row], BaseModel]
) -> EventSourceResponse:
    """The rows as server-sent events: `kind` is an event's name, `out` its data."""

    async def events() -> AsyncIterator[bytes]:
        async for row in found:
            if row is None:
                yield format_sse_event(data_str=None, comment="still here")
            else:
                yield format_sse_event(data_str=out(row).model_dump_json(), event=kind(row), id=str(row.number))

    return EventSourceResponse(events())
