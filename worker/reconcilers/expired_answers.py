"""Mends the database's growth: answers to idempotency keys that are kept no longer."""

from __future__ import annotations

from app.projects.idempotency import remove_expired


def remove_expired_answers() -> None:
    """Removes the answers whose day is over."""
    remove_expired()
