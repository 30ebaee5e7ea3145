"""What the trainers of a job wrote to their logs, in the database."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.jobs.lifecycle import ENDED
from app.jobs.service import find
from app.jobs.tables import Job, Log
from app.kit.database import reading


def add(session: Session, row: Job, text: str) -> None:
    """Appends whole lines of the present attempt's trainer. The caller holds the job's row, so numbers have no gaps."""
    if not text:
        return
    last = session.scalar(select(func.max(Log.number)).where(Log.job_id == row.id)) or 0
    session.add(Log(job_id=row.id, number=last + 1, attempt=row.attempt, text=text))


def read(project_id: str, id: str, after: int, limit: int, attempt: int | None = None) -> tuple[list[Log], bool, bool]:
    """Pieces after number `after`, oldest first, of one attempt or of all; whether there are more, and whether the job has
    ended. Raises `NotFound`."""
    with reading() as session:
        job = find(session, project_id, id)
        query = select(Log).where(Log.job_id == job.id, Log.number > after)
        if attempt is not None:
            query = query.where(Log.attempt == attempt)
        found = list(session.scalars(query.order_by(Log.number).limit(limit + 1)))
        return found[:limit], len(found) > limit, job.status in ENDED
