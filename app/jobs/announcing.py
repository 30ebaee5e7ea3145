"""Telling a project's webhooks what happened to a job."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.jobs.schemas import job_out
from app.jobs.tables import Job
from app.webhooks.outbox import announce as announce_event


def announce(session: Session, job: Job, event: str) -> None:
    """Has the project's webhooks told of the event of the locked row `job`, if its transaction commits."""

    def as_it_is_now() -> dict[str, Any]:
        session.flush()
        session.refresh(job, ["attempts"])  # one that was added since it was loaded is not in it
        return job_out(job, None).model_dump(mode="json")

    announce_event(session, job.project_id, f"job.{event}", as_it_is_now)
