"""The one table of a job's states, and the one function that moves a job through it."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.announcing import announce
from app.jobs.tables import Event, Job, Status
from app.kit.database import utc_now
from app.kit.errors import Conflict
from app.models.tables import Model
from app.projects import stored
from app.usage import totals

Transition = Literal["claim", "requeue", "succeed", "fail", "cancel", "pause", "resume", "retry"]

LIVE: tuple[Status, ...] = ("queued", "running", "paused")
ENDED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")

# transition: (states it is legal from, state it leads to, type of the event that tells of it)
TRANSITIONS: dict[Transition, tuple[tuple[Status, ...], Status, str]] = {
    "claim": (("queued",), "running", "started"),
    "requeue": (("running",), "queued", "requeued"),
    "succeed": (("running",), "succeeded", "succeeded"),
    "fail": (("running",), "failed", "failed"),
    "cancel": (("queued", "running", "paused"), "cancelled", "cancelled"),
    "pause": (("queued", "running"), "paused", "paused"),
    "resume": (("paused",), "queued", "resumed"),
    "retry": (("failed",), "queued", "retried"),
}


def move(session: Session, job: Job, transition: Transition, message: str, **data: Any) -> None:
    """Moves the locked row `job`, with its event, of which webhooks are told: what else changes about the job in this
    transaction was changed before. Raises `Conflict` where the table does not allow it."""
    require_legal(job, transition)
    _, target, event = TRANSITIONS[transition]
    job.status = target
    if target == "running":
        job.started_at = job.started_at or utc_now()
    else:
        job.lease_expires_at = None
        job.pause_requested = False  # only what runs can be asked to
    if target == "queued":
        job.queued_at = utc_now()
    if target in ENDED:
        job.ended_at = utc_now()
    else:
        job.ended_at = None
    if target in ("failed", "cancelled"):
        _end_model(session, job)
    add_event(session, job, event, message, **data)
    announce(session, job, event)
    if target == "failed" and job.error:
        totals.add(session, {("failed_jobs", job.error["code"]): 1})


def require_legal(job: Job, transition: Transition) -> None:
    """Raises `Conflict` where the table does not allow the transition from the job's state."""
    legal = TRANSITIONS[transition][0]
    if job.status not in legal:
        raise Conflict(
            f"The job {job.id} is {job.status}; to {transition} it, it must be {' or '.join(legal)}.",
            hint=f"GET /jobs/{job.id} shows its state, and GET /jobs/{job.id}/events shows how it got there.",
        )


def _end_model(session: Session, job: Job) -> None:
    """A model that was stored and does not answer yet ends with its job: failed, its files kept, or gone with its name."""
    for model in session.scalars(select(Model).where(Model.job_id == job.id, Model.status == "deploying")):
        if job.status == "failed":
            model.status, model.error = "failed", job.error
        else:
            session.delete(model)
            stored.add(session, model.project_id, -model.stored_bytes)
            job.model_id = None


def add_event(session: Session, job: Job, type: str, message: str, **data: Any) -> None:
    """Appends an event. The caller holds the job's row, so numbers have no gaps and no doubles."""
    job.event_count += 1
    session.add(Event(job_id=job.id, number=job.event_count, type=type, message=message, data=data))
