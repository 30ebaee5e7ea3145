"""Mends jobs whose worker was lost: their lease ran out, so they run again, or fail when that happened too often."""

from __future__ import annotations

import logging

from sqlalchemy import select

from app.jobs.attempts import lose
from app.jobs.tables import Job
from app.kit.database import database_now, writing
from app.kit.leases import in_state

log = logging.getLogger(__name__)


def requeue_expired() -> None:
    """Ends every attempt whose lease ran out."""
    with writing() as session:
        expired = select(Job).where(in_state(Job, "running"), Job.lease_expires_at < database_now(session))
        for job in session.scalars(expired.with_for_update(skip_locked=True, of=Job)):
            log.warning("%s: the lease of attempt %d ran out", job.id, job.attempt)
            lose(session, job, "worker_lost", "The worker was not heard of for too long: it died, or its machine did.")
