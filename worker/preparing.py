"""One attempt at making a model ready that waits for it: claim, spawn the child that does it, heartbeat, record, end.

Nothing here is lost with the process: the lease runs out, and another worker takes the model.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import datetime
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, and_, or_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.kit.database import database_now, lease_until, writing
from app.kit.errors import InvalidValue
from app.kit.leases import LeaseLost, claim, hold, in_state
from app.kit.processes import python, spawn, stop
from app.models.tables import Model
from app.settings import get_settings

log = logging.getLogger(__name__)

# How often the lease is renewed, the wanted state read and the progress written down.
BEAT_SECONDS = 0.5
# How many leases a model waits after each failed try at a cause that may pass; after as many tries and one, it fails.
BACK_OFF_LEASES = (1, 2, 4, 8)
PASSING = ("hub_unreachable", "download_died", "merge_died", "worker_fault")

# What a child says, and how an attempt ended: `type` is `finished`, or `failed` with `code`, `message` and `hint`.
Event = dict[str, Any]
Made = TypeVar("Made")


class ShuttingDown(Exception):
    """The worker is asked to end."""


def waiting(now: datetime, status: str) -> ColumnElement[bool]:
    """Which models of this state wait at `now` (the database's clock): nobody holds them, or nobody does any more."""
    free = or_(Model.lease_expires_at.is_(None), Model.lease_expires_at < now)
    return and_(in_state(Model, status), free)


def prepare_next(
    status: str,
    shutting_down: threading.Event,
    work: Callable[[Model, Beat], Event],
    finish: Callable[[Session, Model, Event], None],
) -> Model | None:
    """Runs one attempt at the oldest model that waits in this state: `work`, and where that finished `finish`, which makes the
    held row what it is to be, or raises `InvalidValue`. Returns the model; None where there is none."""
    with writing() as session:
        model = claim(session, Model, waiting(database_now(session), status), get_settings().lease_seconds)
    if model is not None:
        _attempt(model, Beat(model, shutting_down), work, finish)
    return model


def _attempt(
    model: Model,
    beat: Beat,
    work: Callable[[Model, Beat], Event],
    finish: Callable[[Session, Model, Event], None],
) -> None:
    """Works and writes how it ended, unless the model is another's by then, or gone."""
    try:
        try:
            ended = work(model, beat)
        except ShuttingDown:
            with writing() as session:
                _hold(session, model).lease_expires_at = None
            return
        except (LeaseLost, DBAPIError):
            raise
        except Exception:
            log.exception("%s: attempt %d failed in its worker", model.id, model.attempt)
            ended = failure("worker_fault", "A fault in the worker; its log has the details.")
        _end(model, ended, finish)
    except LeaseLost:
        log.info("%s: attempt %d is not the current one any more, or the model was deleted", model.id, model.attempt)
    except DBAPIError as error:
        log.warning("%s: left to whoever finds its lease run out (%s)", model.id, error)


class Beat:
    """The heartbeat: renews the lease, writes the progress, and raises when the model is not wanted here any more."""

    def __init__(self, model: Model, shutting_down: threading.Event) -> None:
        self.model, self.shutting_down, self.renewed = model, shutting_down, time.monotonic()

    def __call__(self, progress: dict[str, Any] | None = None) -> None:
        """Raises `ShuttingDown`, or `LeaseLost` also when the database was away for as long as the lease."""
        if self.shutting_down.is_set():
            raise ShuttingDown
        seconds = get_settings().lease_seconds
        try:
            with writing() as session:
                row = _hold(session, self.model)
                row.lease_expires_at = lease_until(session, seconds)
                if progress:
                    row.progress = {"bytes": progress["bytes"], "total_bytes": progress["total_bytes"]}
        except DBAPIError as error:
            if time.monotonic() - self.renewed > seconds:
                raise LeaseLost("the database was away for longer than the lease") from error
            log.warning("%s: heartbeat failed (%s); trying again", self.model.id, error)
            return
        self.renewed = time.monotonic()


def _hold(session: Session, model: Model) -> Model:
    """The locked row, if it is still this attempt's, in the state in which it was claimed. Raises `LeaseLost`."""
    return hold(session, Model, model.id, model.attempt, model.status)


def run_child(model: Model, beat: Beat, what: str, hint: str, command: list[str], environment: dict[str, str]) -> Event:
    """Runs a module of ours with its arguments to its end, and returns the event that it ended with: `what` died, with this
    hint, where it said none. However this is left, nothing of it is alive."""
    log_file = get_settings().home.resolve() / "logs" / f"{model.id}-{model.attempt}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    grace = get_settings().stop_grace_seconds
    with log_file.open("wb") as stderr:
        child = spawn(
            python(*command), env=environment, stdout=PIPE, stderr=stderr, grace_seconds=grace,
        )  # fmt: skip
    said: queue.SimpleQueue[Event] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_events, args=(child, said), daemon=True)
    reader.start()
    ended = progress = None
    try:
        while reader.is_alive() or not said.empty():
            reader.join(BEAT_SECONDS)
            while not said.empty():
                event = said.get()
                progress, ended = (event, ended) if event["type"] == "progress" else (progress, event)
            beat(progress)
    finally:
        code = stop(child, grace)
    return ended or failure(f"{what}_died", _last_words(what, code, log_file), hint)


def meanwhile(beat: Beat, work: Callable[[], Made]) -> Made:
    """What `work` makes, however long it takes: the heart beats meanwhile. Raises what either does, when the work is done."""
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(work)
        while not wait([made], BEAT_SECONDS).done:
            beat()
    return made.result()


def _end(model: Model, ended: Event, finish: Callable[[Session, Model, Event], None]) -> None:
    """Writes how an attempt ended: the model is ready, has failed, or waits for its next try. Raises `LeaseLost`."""
    with writing() as session:
        row = _hold(session, model)
        row.lease_expires_at = None
        tries = row.facts.get("failed_tries", 0) + 1
        row.facts = {name: value for name, value in row.facts.items() if name != "failed_tries"}
        if ended["type"] == "finished":
            try:
                finish(session, row, ended)
            except InvalidValue as error:
                ended = failure(error.code, error.message, error.hint)
            else:
                return
        if ended["code"] in PASSING and tries <= len(BACK_OFF_LEASES):
            log.warning("%s: try %d failed: %s", row.id, tries, ended["message"])
            row.facts = row.facts | {"failed_tries": tries}
            row.lease_expires_at = lease_until(session, BACK_OFF_LEASES[tries - 1] * get_settings().lease_seconds)
            return
        row.status, row.progress = "failed", None
        row.error = {key: ended[key] for key in ("code", "message", "hint")}


def failure(code: str, message: str, hint: str | None = None) -> Event:
    """The event of an attempt that failed."""
    return {"type": "failed", "code": code, "message": message, "hint": hint}


def _read_events(child: Popen[bytes], said: queue.SimpleQueue[dict[str, Any]]) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            try:
                said.put(json.loads(line))
            except ValueError:
                log.warning("not an event from a child: %r", line[:200])


def _last_words(what: str, code: int, log_file: Path) -> str:
    """Why a child ended that said nothing of it itself."""
    if code in (-9, 128 + 9):  # the guard was killed, or what it guards
        return f"The {what} was killed (SIGKILL): by hand, or because the machine was out of memory."
    tail = log_file.read_text(errors="replace").strip().splitlines()[-1:]
    return f"The {what} ended with exit code {code}. Its last line: {tail[0][:300] if tail else '(none)'}"
