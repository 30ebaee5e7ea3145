"""Mends the embedded queue's growth: kombu's SQLAlchemy transport keeps every message that was delivered."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from app.settings import get_settings


def sweep_read_messages() -> None:
    """Deletes delivered messages from the queue's file."""
    url = get_settings().celery_broker_url
    if not url.startswith("sqla+sqlite:///"):
        return
    with closing(sqlite3.connect(url.removeprefix("sqla+sqlite:///"), timeout=10)) as connection, connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'kombu_message'").fetchone():
            connection.execute("DELETE FROM kombu_message WHERE visible = 0")
