"""Checkpoints of jobs, in the database and in storage: kept while a run may go on from them."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.lifecycle import add_event
from app.jobs.tables import Checkpoint, Job
from app.kit import storage
from app.kit.database import reading
from app.kit.ids import new_id

# The newest, and the one before it should that turn out not to be readable.
KEPT = 2


def storage_key(job: Job, step: int) -> str:
    """Where a checkpoint of the job's present attempt is stored."""
    return f"checkpoints/{job.id}/{job.attempt}-{step}"


def add(session: Session, row: Job, step: int, size: int) -> list[str]:
    """Inserts the row of a checkpoint that is stored, in the transaction that holds the job's. Returns the keys of those
    that are kept no longer, for `drop` after the commit."""
    checkpoint = Checkpoint(id=new_id("ckpt"), job_id=row.id, attempt=row.attempt, step=step, bytes=size)
    checkpoint.key = storage_key(row, step)
    session.add(checkpoint)
    add_event(session, row, "checkpoint", f"Checkpoint of step {step}.", step=step, checkpoint=checkpoint.id)
    session.flush()
    older = newest_first(session, row.id)[KEPT:]
    for each in older:
        session.delete(each)
    return [each.key for each in older]


def drop(keys: list[str]) -> None:
    """Removes what storage holds under these keys; what is missed is found by the reconciler."""
    for key in keys:
        storage.delete_folder(key)


def newest_first(session: Session, job_id: str) -> list[Checkpoint]:
    """The checkpoints of a job, the one to go on from first."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id)
    return list(session.scalars(query.order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())))


def forget_newest(session: Session, row: Job) -> None:
    """Removes the row of a checkpoint that could not be read: the next attempt goes on from the one before it."""
    for checkpoint in newest_first(session, row.id)[:1]:
        session.delete(checkpoint)


def fetch_newest(job: Job) -> str | None:
    """The local folder of the newest checkpoint that storage has; None where there is none."""
    with reading() as session:
        found = newest_first(session, job.id)
    for checkpoint in found:
        try:
            return str(storage.fetch_folder(checkpoint.key))
        except FileNotFoundError:
            continue
    return None
