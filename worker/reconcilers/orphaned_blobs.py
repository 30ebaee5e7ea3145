"""Mends storage: blobs that no row refers to, because a process was killed between a commit and what follows it."""

from __future__ import annotations

import logging
import time

from app.datasets.blobs import forget_expired_claims, release, unknown
from app.kit import storage

log = logging.getLogger(__name__)

# A restore stores its blobs first and its rows last: it is given a day for that.
OLD_AFTER_SECONDS = 24 * 3600.0


def remove_orphaned_blobs() -> None:
    """Removes the blobs that have lain for a day and that no row refers to."""
    forget_expired_claims()
    for sha256 in unknown(storage.blobs(before=time.time() - OLD_AFTER_SECONDS)):
        log.info("removing the blob %s, which nothing refers to", sha256)
        release(sha256)
