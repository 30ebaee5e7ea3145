"""Streams of what is numbered within a job: its events, its log.

All streams of a job in one process share a follower, which looks into the database for all of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import anyio.to_thread
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel
from sqlalchemy import select

from app.jobs.lifecycle import ENDED
from app.jobs.tables import Event, Job, Log
from app.kit.database import reading
from app.kit.errors import NotFound

# How often a follower looks for what is new.
POLL_SECONDS = 0.3
# After this long without anything a comment is sent, so that proxies keep the stream open.
KEEPALIVE_SECONDS = 15.0
# The number of newest rows that a follower keeps. A stream that is further behind reads from the database.
KEPT_ROWS = 200

Row = TypeVar("Row", Event, Log)

# Rows after a number, oldest first; whether there are more, and whether the job has ended.
Batch = tuple[list[Row], bool, bool]
Read = Callable[[int], Batch[Row]]


class Follower(Generic[Row]):
    """Reads the rows of a job's `table` after number `last` as they come, until the job has ended or it is stopped.

    `ended`: no more rows will come, for the reason `error` if reading failed.
    """

    def __init__(self, table: type[Row], job_id: str, last: int) -> None:
        self.last, self.ended, self.listeners = last, False, 0
        self.error: Exception | None = None
        self._table: type[Row] = table
        self._job_id = job_id
        self._rows: deque[Row] = deque(maxlen=KEPT_ROWS)
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._follow())

    def after(self, number: int) -> list[Row] | None:
        """The rows after `number`; None if some of them are not kept any more."""
        if number < self.last - len(self._rows):
            return None
        return [row for row in self._rows if row.number > number]

    async def news(self) -> None:
        """Returns at the next change."""
        await self._news.wait()

    def stop(self) -> None:
        self._task.cancel()

    async def _follow(self) -> None:
        more = False
        try:
            while not self.ended:
                if not more:
                    await asyncio.sleep(POLL_SECONDS)
                rows, more, ended = await anyio.to_thread.run_sync(self._read)
                self._rows.extend(rows)
                self.last = rows[-1].number if rows else self.last
                self.ended = ended and not more
                if rows:
                    self._tell()
        except Exception as error:  # is every stream's
            self.error = error
        finally:
            self.ended = True
            self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _read(self) -> Batch[Row]:
        table: Any = self._table
        with reading() as session:
            status = session.scalar(select(Job.status).where(Job.id == self._job_id))
            query = select(table).where(table.job_id == self._job_id, table.number > self.last)
            found = list(session.scalars(query.order_by(table.number).limit(KEPT_ROWS + 1)))
        # A job that is gone was deleted with its project.
        return found[:KEPT_ROWS], len(found) > KEPT_ROWS, status is None or status in ENDED


# Those that somebody listens to, by event loop, table and job.
followers: dict[tuple[Any, type[Any], str], Follower[Any]] = {}


@contextmanager
def _following(table: type[Row], job_id: str, number: int) -> Iterator[Follower[Row]]:
    """The job's follower, a new one from `number` on if there is none. It stops with its last listener."""
    key = (asyncio.get_running_loop(), table, job_id)
    follower = followers.get(key)
    if follower is None or follower.ended:
        follower = followers[key] = Follower(table, job_id, number)
    follower.listeners += 1
    try:
        yield follower
    finally:
        follower.listeners -= 1
        if not follower.listeners:
            follower.stop()
            if followers.get(key) is follower:
                del followers[key]


async def stored(read: Read[Row], first: Batch[Row]) -> AsyncIterator[Row]:
    """The rows that are there, of which `first` is the first batch. `read` is called in a thread."""
    batch, more, _ = first
    for row in batch:
        yield row
    while more:
        try:
            batch, more, _ = await anyio.to_thread.run_sync(read, batch[-1].number)
        except NotFound:  # deleted with its project
            return
        for row in batch:
            yield row


async def followed(
    table: type[Row], job_id: str, read: Read[Row], first: Batch[Row], start: int, wanted: Callable[[Row], bool]
) -> AsyncIterator[Row | None]:
    """The `wanted` rows after number `start`, of which `first` is the first batch, and those that come until the job has
    ended; None now and then if nothing comes. `read` reads the wanted ones only; it is called in a thread."""
    batch: list[Row]
    batch, more, ended = first
    number = start
    for row in batch:
        number = row.number
        yield row
    if ended and not more:
        return
    with _following(table, job_id, number) as follower:
        while True:
            kept = follower.after(number)
            if kept is None:
                last = follower.last
                try:
                    batch, more, _ = await anyio.to_thread.run_sync(read, number)
                except NotFound:  # deleted with its project
                    return
                # What was not read up to there is not wanted.
                number = batch[-1].number if more else max([last, *(row.number for row in batch)])
                for row in batch:
                    yield row
                continue
            number = kept[-1].number if kept else number
            for row in filter(wanted, kept):
                yield row
            if follower.error:
                raise follower.error
            if follower.last > number:
                continue
            if follower.ended:
                return
            try:
                async with asyncio.timeout(KEEPALIVE_SECONDS):
                    await follower.news()
            except TimeoutError:
                yield None


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
