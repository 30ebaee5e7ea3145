"""What can be done to a job that there is. Each is idempotent, and legal only where the table of states says so."""

from __future__ import annotations

from sqlalchemy import delete as sql_delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.datasets.tables import Dataset
from app.jobs import attempts, service
from app.jobs.lifecycle import ENDED, add_event, move, require_legal
from app.jobs.tables import Job
from app.kit.database import writing
from app.kit.errors import Conflict
from app.kit.queue import wake
from app.models import service as models
from app.models.tables import Model
from app.projects.audit import record


def cancel(project_id: str, id: str) -> Job:
    """Cancels a queued job, asks a running one to stop; on a cancelled job nothing. Raises `Conflict` on other ended ones."""
    with writing() as session:
        job = service.find(session, project_id, id, lock=True)
        if job.status == "running":
            if not job.cancel_requested:
                job.cancel_requested = True
                add_event(session, job, "cancel_requested", "Asked to stop.")
                record(session, "job.cancel", job.id)
        elif job.status != "cancelled":
            job.cancel_requested = True
            move(session, job, "cancel", "Cancelled while it did not run.")
            record(session, "job.cancel", job.id)
        return job


def pause(project_id: str, id: str) -> Job:
    """Pauses a queued job, asks a running one to stop with a checkpoint; on a paused job nothing. Raises `Conflict`."""
    with writing() as session:
        job = service.find(session, project_id, id, lock=True)
        if job.status == "running" and not job.pause_requested:
            job.pause_requested = True
            add_event(session, job, "pause_requested", "Asked to pause.")
            record(session, "job.pause", job.id)
        elif job.status not in ("running", "paused"):
            attempts.pause(session, job, "Paused while it waited.")
            record(session, "job.pause", job.id)
        return job


def resume(project_id: str, id: str) -> Job:
    """Queues a paused job again, takes back what a running one was asked; else on one that waits or runs nothing. Raises
    `Conflict`."""
    with writing() as session:
        job = service.find(session, project_id, id, lock=True)
        if job.status in ("queued", "running") and not job.pause_requested:
            return job
        if job.status == "running":
            job.pause_requested = False
            add_event(session, job, "resumed", "Goes on; it had not paused yet.")
        else:
            move(session, job, "resume", "Queued again.")
        record(session, "job.resume", job.id)
    wake("train")
    return job


def retry(project_id: str, id: str) -> Job:
    """Queues a failed job again, to go on from its last checkpoint; on one that waits or runs nothing. Raises `Conflict`,
    also where its name or what it is made of is not there any more."""
    with writing() as session:
        service.require_room(session, project_id)
        job = service.find(session, project_id, id, lock=True)
        if job.status in ("queued", "running"):
            return job
        require_legal(job, "retry")
        _require_parts(session, job)
        job.error, job.progress, job.retried_after = None, None, job.attempt
        job.cancel_requested = False  # was said to an attempt that failed before it could stop
        try:
            with session.begin_nested():
                move(session, job, "retry", "Tried again.")
        except IntegrityError:
            raise models.name_taken(job.name) from None
        record(session, "job.retry", job.id)
    wake("train")
    return job


def _require_parts(session: Session, job: Job) -> None:
    """Holds what the job is made of. Raises `Conflict` where it was deleted, or its name is another model's by now."""
    datasets = [id for id in (job.dataset_id, job.validation_dataset_id, job.replay_dataset_id) if id]
    parts = [(Model, job.base_model_id, "base model"), *((Dataset, id, "dataset") for id in datasets)]
    for table, id, what in parts:
        if session.get(table, id, with_for_update={"of": table}) is None:
            raise Conflict(
                f"The {what} {id} of the job was deleted.", code="in_use", hint="Start a new job with what there is."
            )
    named = models.find(session, job.project_id, job.name)
    if named is not None and named.id != job.model_id:
        raise models.name_taken(job.name)


def delete(project_id: str, id: str) -> None:
    """Removes a job that has ended, with its events and metrics; its models stay. Raises `NotFound`, and `Conflict`."""
    with writing() as session:
        job = service.find(session, project_id, id, lock=True)
        if job.status not in ENDED:
            raise Conflict(
                f"The job {id} is {job.status}; to delete it, it must be {' or '.join(ENDED)}.", hint="Cancel it first."
            )
        record(session, "job.delete", job.id, name=job.name)
        session.execute(sql_delete(Job).where(Job.id == job.id))  # the database takes the rest along
