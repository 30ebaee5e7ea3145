"""Mends lost wake-ups: where work waits and no message does, one is sent."""

from __future__ import annotations

from sqlalchemy import exists, select

from app.jobs.tables import Job
from app.kit.database import database_now, reading
from app.kit.leases import in_state
from app.kit.queue import Wakeable, pending, wake
from app.models.tables import Model
from app.webhooks.tables import Delivery
from worker.downloads import waiting
from worker.webhooks import due


def wake_for_unseen_work() -> None:
    """Wakes a training slot for queued jobs, a download for waiting models, and a sender for deliveries that are due."""
    with reading() as session:
        work: dict[Wakeable, bool | None] = {
            "train": session.scalar(select(exists(select(Job.id).where(in_state(Job, "queued"))))),
            "download": session.scalar(select(exists(select(Model.id).where(waiting(database_now(session)))))),
            "deliver": session.scalar(select(exists(select(Delivery.id).where(due(database_now(session)))))),
        }
    for what, is_waiting in work.items():
        if is_waiting and pending(what) == 0:
            wake(what)
