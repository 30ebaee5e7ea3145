"""A round of the reconcilers, run every few seconds and when a worker starts."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from worker.reconcilers.expired_answers import remove_expired_answers
from worker.reconcilers.expired_deliveries import remove_expired_deliveries
from worker.reconcilers.expired_leases import requeue_expired
from worker.reconcilers.expired_reports import remove_expired_reports
from worker.reconcilers.leftovers import remove_leftovers
from worker.reconcilers.lost_workers import forget_lost_workers
from worker.reconcilers.orphaned_blobs import remove_orphaned_blobs
from worker.reconcilers.read_messages import sweep_read_messages
from worker.reconcilers.stored_bytes import recount_stored
from worker.reconcilers.unseen_work import wake_for_unseen_work

log = logging.getLogger(__name__)

# Each, and how many seconds at least pass between two runs of it in a process: what reads whole tables or lists storage
# is not done at every round.
RECONCILERS: dict[Callable[[], None], float] = {
    requeue_expired: 0.0,
    wake_for_unseen_work: 0.0,
    sweep_read_messages: 0.0,
    remove_leftovers: 15.0,
    remove_expired_reports: 60.0,
    remove_expired_answers: 60.0,
    remove_expired_deliveries: 60.0,
    forget_lost_workers: 60.0,
    remove_orphaned_blobs: 3600.0,
    recount_stored: 3600.0,
}
# What lists a store of a million folders takes minutes: it has a tenth of the time at most, whatever is said above.
RESTS = 9
_due_at: dict[Callable[[], None], float] = {}


def run_round() -> None:
    """Runs every reconciler that is due; one that fails does not keep the others from theirs."""
    for mend, seconds in RECONCILERS.items():
        began = time.monotonic()
        if began < _due_at.get(mend, 0.0):
            continue
        if seconds:
            _due_at[mend] = math.inf  # other threads run rounds too
        try:
            mend()
        except Exception:
            log.exception("%s failed; it is tried again", mend.__name__)
        if seconds:
            ended = time.monotonic()
            _due_at[mend] = max(began + seconds, ended + RESTS * (ended - began))
