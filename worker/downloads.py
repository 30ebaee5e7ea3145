"""One attempt at one model's download: claim, spawn the child that talks to the hub, heartbeat, record, end.

Nothing here is lost with the process: the lease runs out, and another worker goes on with what the cache holds.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from sqlalchemy import ColumnElement, and_, or_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.kit.database import database_now, lease_until, writing
from app.kit.errors import InvalidValue
from app.kit.leases import LeaseLost, claim, hold, in_state
from app.kit.processes import spawn, stop
from app.kit.sealing import Unreadable
from app.models.own_code import is_allowed
from app.models.service import read_directory
from app.models.tables import Model
from app.secrets.service import reveal
from app.settings import REPOSITORY, get_settings
from worker.hubs import HUBS, parse
from worker.trainers import KEPT_VARIABLES

log = logging.getLogger(__name__)

# How often the lease is renewed, the wanted state read and the progress written down.
BEAT_SECONDS = 0.5
# How many leases a model waits after each failed try at a cause that may pass; after as many tries and one, it fails.
BACK_OFF_LEASES = (1, 2, 4, 8)
PASSING = ("hub_unreachable", "download_died", "worker_fault")
# Downloads of this process at a time: they share its threads with the reconcilers, which must always find one.
SLOTS = threading.BoundedSemaphore(2)

# What the child may know of the environment: the hubs' own variables (their tokens are its business), the way to them,
# and nothing of the service's settings.
KEPT_PREFIXES = ("LC_", "HF_", "HUGGING", "MODELSCOPE_")
NETWORK_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
OTHER_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "XDG_CACHE_HOME")


class ShuttingDown(Exception):
    """The worker is asked to end."""


def waiting(now: datetime) -> ColumnElement[bool]:
    """Which models wait for a download at `now` (the database's clock): nobody holds them, or nobody does any more."""
    free = or_(Model.lease_expires_at.is_(None), Model.lease_expires_at < now)
    return and_(in_state(Model, "downloading"), free)


def download_next(shutting_down: threading.Event) -> bool:
    """Runs one attempt at the oldest waiting model. False where there is none, or enough downloads run in this process."""
    if not SLOTS.acquire(blocking=False):
        return False
    try:
        with writing() as session:
            model = claim(session, Model, waiting(database_now(session)), get_settings().lease_seconds)
        if model is not None:
            _attempt(model, shutting_down)
        return model is not None
    finally:
        SLOTS.release()


def _attempt(model: Model, shutting_down: threading.Event) -> None:
    """Downloads and writes how it ended, unless the model is another's by then, or gone."""
    try:
        try:
            ended = _fetch(model, Beat(model, shutting_down))
        except ShuttingDown:
            with writing() as session:
                _hold(session, model).lease_expires_at = None
            return
        except (LeaseLost, DBAPIError):
            raise
        except Exception:
            log.exception("%s: attempt %d failed in its worker", model.id, model.attempt)
            ended = _failure("worker_fault", "A fault in the worker; its log has the details.")
        _end(model, ended)
    except LeaseLost:
        log.info("%s: attempt %d is not the current one any more, or the model was deleted", model.id, model.attempt)
    except DBAPIError as error:
        log.warning("%s: left to whoever finds its lease run out (%s)", model.id, error)


class Beat:
    """The heartbeat: renews the lease, writes the progress, and raises when the download is not wanted here any more."""

    def __init__(self, model: Model, shutting_down: threading.Event) -> None:
        self.model, self.shutting_down, self.renewed = model, shutting_down, time.monotonic()

    def __call__(self, progress: dict[str, Any] | None) -> None:
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
    return hold(session, Model, model.id, model.attempt, "downloading")


def _fetch(model: Model, beat: Beat) -> dict[str, Any]:
    """Runs the child to its end; returns the event that it ended with. However this is left, nothing of it is alive."""
    try:
        environment = _environment(model)
    except Unreadable as error:
        return _failure("secret_unreadable", f"The project's token cannot be opened: {error}.", "Keep it anew.")
    log_file = get_settings().home.resolve() / "logs" / f"{model.id}-{model.attempt}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    grace = get_settings().stop_grace_seconds
    options = ["--own-code"] if is_allowed(model.source) else []
    with log_file.open("wb") as stderr:
        child = spawn(
            [sys.executable, "-m", "worker.hubs", model.source, *options], env=environment, cwd=REPOSITORY, stdout=PIPE,
            stderr=stderr, grace_seconds=grace,
        )  # fmt: skip
    said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
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
    return ended or _failure("download_died", _last_words(code, log_file), "What was downloaded is kept.")


def _end(model: Model, ended: dict[str, Any]) -> None:
    """Writes how an attempt ended: the model is ready, has failed, or waits for its next try. Raises `LeaseLost`."""
    with writing() as session:
        row = _hold(session, model)
        row.lease_expires_at = None
        if ended["type"] == "finished":
            try:
                read_directory(row, Path(ended["folder"]))
            except InvalidValue as error:
                # Users know the source, not the folder in the hub library's cache.
                message = error.message.replace(ended["folder"], row.source)
                ended = _failure(error.code, message, error.hint)
            else:
                row.facts = row.facts | {"revision": ended["revision"]}
                return
        tries = row.facts.get("failed_tries", 0) + 1
        given = {name: value for name, value in row.facts.items() if name == "template_arguments"}
        if ended["code"] in PASSING and tries <= len(BACK_OFF_LEASES):
            log.warning("%s: try %d failed: %s", row.id, tries, ended["message"])
            row.facts = given | {"failed_tries": tries}
            row.lease_expires_at = lease_until(session, BACK_OFF_LEASES[tries - 1] * get_settings().lease_seconds)
            return
        row.status, row.progress, row.facts = "failed", None, given
        row.error = {key: ended[key] for key in ("code", "message", "hint")}


def _failure(code: str, message: str, hint: str | None = None) -> dict[str, Any]:
    return {"type": "failed", "code": code, "message": message, "hint": hint}


def _environment(model: Model) -> dict[str, str]:
    """The child's environment; a token that the model's project keeps comes before the machine's."""
    exact = {*KEPT_VARIABLES, *NETWORK_VARIABLES, *map(str.lower, NETWORK_VARIABLES), *OTHER_VARIABLES}
    kept = {name: value for name, value in os.environ.items() if name in exact or name.startswith(KEPT_PREFIXES)}
    hub = HUBS[parse(model.source).hub]
    if (secret := reveal(model.project_id, hub.secret)) is not None:
        kept[hub.token] = secret
    return kept | {"PYTHONUNBUFFERED": "1"}


def _read_events(child: Popen[bytes], said: queue.SimpleQueue[dict[str, Any]]) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            try:
                said.put(json.loads(line))
            except ValueError:
                log.warning("not an event from the download: %r", line[:200])


def _last_words(code: int, log_file: Path) -> str:
    """Why a child ended that said nothing of it itself."""
    if code in (-9, 128 + 9):  # the guard was killed, or what it guards
        return "The download was killed (SIGKILL): by hand, or because the machine was out of memory."
    tail = log_file.read_text(errors="replace").strip().splitlines()[-1:]
    return f"The download ended with exit code {code}. Its last line: {tail[0][:300] if tail else '(none)'}"
