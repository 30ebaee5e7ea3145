"""One round of every reconciler, run every few seconds and when a worker starts."""

from __future__ import annotations

import logging
from collections.abc import Callable

from worker.reconcilers.expired_answers import remove_expired_answers
from worker.reconcilers.expired_deliveries import remove_expired_deliveries
from worker.reconcilers.expired_leases import requeue_expired
from worker.reconcilers.expired_reports import remove_expired_reports
from worker.reconcilers.leftovers import remove_leftovers
from worker.reconcilers.lost_workers import forget_lost_workers
from worker.reconcilers.orphaned_blobs import remove_orphaned_blobs
from worker.reconcilers.read_messages import sweep_read_messages
from worker.reconcilers.unseen_work import wake_for_unseen_work

log = logging.getLogger(__name__)

RECONCILERS: tuple[Callable[[], None], ...] = (
    requeue_expired,
    wake_for_unseen_work,
    sweep_read_messages,
    remove_expired_reports,
    remove_expired_answers,
    remove_expired_deliveries,
    remove_leftovers,
    remove_orphaned_blobs,
    forget_lost_workers,
)


def run_round() -> None:
    """Runs every reconciler; one that fails does not keep the others from theirs."""
    for mend in RECONCILERS:
        try:
            mend()
        except Exception:
            log.exception("%s failed; it is tried again at the next round", mend.__name__)
