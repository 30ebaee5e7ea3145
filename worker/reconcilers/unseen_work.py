"""Mends lost wake-ups: where work waits and no message does, one is sent."""

from __future__ import annotations

from sqlalchemy import exists, or_, select

from app.jobs.tables import Job
from app.kit.database import database_now, reading
from app.kit.leases import in_state
from app.kit.queue import Wakeable, pending, wake
from app.models.tables import Model
from app.webhooks.tables import Delivery
from worker.preparing import waiting
from worker.webhooks import due


def wake_for_unseen_work() -> None:
    """Wakes a training slot for queued jobs and models to merge, a download for waiting models, and a sender for deliveries
    that are due."""
    with reading() as session:
        now = database_now(session)
        is_merging = exists(select(Model.id).where(waiting(now, "merging")))
        work: dict[Wakeable, bool | None] = {
            "train": session.scalar(select(or_(exists(select(Job.id).where(in_state(Job, "queued"))), is_merging))),
            "download": session.scalar(select(exists(select(Model.id).where(waiting(now, "downloading"))))),
            "deliver": session.scalar(select(exists(select(Delivery.id).where(due(now))))),
        }
    for what, is_waiting in work.items():
        if is_waiting and pending(what) == 0:
            wake(what)
