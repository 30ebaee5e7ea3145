"""Mends the list of workers: those that were killed long ago."""

from __future__ import annotations

from app.workers.service import forget_lost


def forget_lost_workers() -> None:
    """Forgets workers that were not heard of for an hour."""
    forget_lost()
