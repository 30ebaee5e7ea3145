"""Waiting for engines. However many requests wait for the same engine, one task asks the database for all of them."""

from __future__ import annotations

import asyncio
import time
from asyncio import Future, Task
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from app.chat.threads import in_thread
from app.kit.database import reading, writing
from app.kit.errors import NotFound, Unavailable
from app.models import serving
from app.models.service import not_found
from app.models.serving import Place
from app.models.tables import Model
from app.settings import get_settings

POLL_SECONDS = 0.2


class Engines:
    """What this process's requests want of the engines: one waiter per engine, one keeper per model in use."""

    def __init__(self) -> None:
        self.waiters: dict[str, Waiter] = {}
        self.keepers: dict[str, Keeper] = {}

    async def place(self, model: Model, deadline: float, *, again: bool = False) -> Place:
        """Says that the model is wanted and waits until it answers. Returns where; `deadline` is of `time.monotonic`.

        `again` is for a request that was told a place and found nobody there: it waits a moment before the next look.
        Raises `NotFound` when the model was deleted, and `Unavailable` when its engine fails or isn't up in time.
        """
        engine_id = serving.engine_of(model)
        waiter = self.waiters.get(engine_id)
        if waiter is None:
            waiter = self.waiters[engine_id] = Waiter()
            waiter.task = asyncio.create_task(self._run(engine_id, waiter, pause=again))
        try:
            place = await waiter.wait(model, deadline - time.monotonic(), look_now=not again)
        except TimeoutError:
            waited = get_settings().engine_wait_seconds
            raise no_engine(model, f"its engine is not up after {waited:.0f} s") from None
        if place is None:
            raise not_found(model.name, "model")
        if place.error:
            raise no_engine(model, place.error["message"])
        return place

    async def _run(self, engine_id: str, waiter: Waiter, *, pause: bool) -> None:
        """Looks for everyone who waits, until nobody does."""
        try:
            while waiter.futures:
                if pause:
                    await waiter.pause()
                if waiter.futures:
                    await waiter.look()
                pause = True
        except Exception as error:  # the database is away: each request answers that
            waiter.fail(error)
        finally:
            del self.waiters[engine_id]

    @asynccontextmanager
    async def in_use(self, model: Model) -> AsyncIterator[None]:
        """Says again and again that the model is wanted: an engine that takes long to answer must not be stopped."""
        keeper = self.keepers.get(model.id)
        if keeper is None:
            keeper = self.keepers[model.id] = Keeper(asyncio.create_task(_keep_wanted(model)))
        keeper.users += 1
        try:
            yield
        finally:
            keeper.users -= 1
            if not keeper.users:
                del self.keepers[model.id]
                keeper.task.cancel()


@dataclass
class Keeper:
    """The task that keeps a model wanted, and how many requests need it."""

    task: Task[None]
    users: int = 0


class Waiter:
    """The requests that wait for one engine, by the model that they ask for."""

    def __init__(self) -> None:
        self.task: Task[None] | None = None
        self.models: dict[str, Model] = {}
        self.futures: dict[str, set[Future[Place | None]]] = {}
        self.wanted: set[str] = set()
        self.called = asyncio.Event()

    async def wait(self, model: Model, seconds: float, *, look_now: bool) -> Place | None:
        """The model's place once it has one, or None when it was deleted. Raises `TimeoutError`."""
        future: Future[Place | None] = asyncio.get_running_loop().create_future()
        if model.id not in self.futures:
            self.models[model.id], self.futures[model.id] = model, set()
            if look_now:
                self.called.set()
        self.futures[model.id].add(future)
        try:
            return await asyncio.wait_for(future, max(seconds, 0))
        finally:
            self.leave(model.id, future)

    def leave(self, model_id: str, future: Future[Place | None]) -> None:
        """Forgets a request. The last one ends the waiter's pause, and so the waiter."""
        if future in (waiting := self.futures.get(model_id, set())):
            waiting.discard(future)
            if not waiting:
                self.forget(model_id)
            if not self.futures:
                self.called.set()

    def forget(self, model_id: str) -> set[Future[Place | None]]:
        """Takes out a model for which nobody is to wait any more, and returns who does."""
        self.wanted.discard(model_id)
        del self.models[model_id]
        return self.futures.pop(model_id)

    async def pause(self) -> None:
        """Until it's time to look again, a model is asked for that nobody waited for yet, or nobody waits any more."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.called.wait(), POLL_SECONDS)

    async def look(self) -> None:
        """Writes down what is newly wanted, and tells each request whose model has a place, an error, or is gone."""
        self.called.clear()
        models = list(self.models.values())
        new = [model for model in models if model.id not in self.wanted]
        self.wanted.update(model.id for model in new)
        places = await in_thread(_look, models, new)
        for model_id, place in places.items():
            if model_id in self.futures and (place is None or place.url or place.error):
                for future in self.forget(model_id):
                    if not future.done():
                        future.set_result(place)

    def fail(self, error: Exception) -> None:
        """Has every request raise `error`."""
        for model_id in list(self.futures):
            for future in self.forget(model_id):
                if not future.done():
                    future.set_exception(error)


def no_engine(model: Model, why: str) -> Unavailable:
    """The error for a model whose engine doesn't answer."""
    return Unavailable(
        f"The model '{model.name}' cannot answer: {why}.",
        param="model",
        hint="Try again shortly; the engine's log is in BURNISH_HOME/logs, and 'burnish doctor' checks the machine.",
    )


async def _keep_wanted(model: Model) -> None:
    while True:
        await asyncio.sleep(serving.USE_RESOLUTION.total_seconds())
        with suppress(DBAPIError, NotFound):  # the answer goes on; what cannot be said now is said next time
            await in_thread(_want, model)


def _look(models: Sequence[Model], new: Sequence[Model]) -> dict[str, Place | None]:
    for model in new:
        with suppress(NotFound):  # it has no place, then
            _want(model)
    with reading() as session:
        return serving.locate_all(session, models)


def _want(model: Model) -> None:
    with reading() as session:
        if serving.is_wanted(session, model):
            return
    with writing() as session:
        serving.want(session, model)
