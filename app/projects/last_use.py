"""When keys were last used, written down beside the requests that use them: no request waits for it or fails by it."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from functools import lru_cache
from queue import SimpleQueue
from threading import Thread

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from app.kit.database import writing
from app.projects.tables import Key

log = logging.getLogger(__name__)

# A key's last use is written down this often at most.
RESOLUTION = timedelta(minutes=1)

_uses = SimpleQueue[tuple[str, datetime]]()
# Key → its last use that was handed to the writer. One that could not be written is tried again a minute later.
_noted: dict[str, datetime] = {}


def note(key: Key, now: datetime) -> None:
    """Has it written down, soon, that the key is used now, unless that was written within the last minute."""
    known = [each for each in (key.last_used_at, _noted.get(key.id)) if each is not None]
    if not known or now - max(known) > RESOLUTION:
        _noted[key.id] = now
        _uses.put((key.id, now))
        _writer()


@lru_cache
def _writer() -> Thread:
    """The one thread that writes, which lives as long as the process."""
    thread = Thread(target=_write, name="last-use", daemon=True)
    thread.start()
    return thread


def _write() -> None:
    while True:
        key_id, now = _uses.get()
        try:
            with writing() as session:
                session.execute(update(Key).where(Key.id == key_id).values(last_used_at=now))
        except SQLAlchemyError as error:
            log.warning("The last use of the key %s was not written down: %s", key_id, error)
