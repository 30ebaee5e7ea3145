"""Mends disks: refused uploads that are kept no longer."""

from __future__ import annotations

from app.datasets.reports import remove_expired


def remove_expired_reports() -> None:
    """Removes the reports on refused files whose day is over, and the files."""
    remove_expired()
