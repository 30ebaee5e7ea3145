"""Mends the database's growth: deliveries to webhooks that are kept no longer."""

from __future__ import annotations

from app.webhooks.outbox import remove_expired


def remove_expired_deliveries() -> None:
    """Removes the deliveries whose thirty days are over."""
    remove_expired()
