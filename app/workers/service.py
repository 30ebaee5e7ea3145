"""What is known of workers: what they tell, and who was heard of lately."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from app.kit.database import database_now, reading, writing
from app.kit.errors import NotFound
from app.kit.ids import new_id
from app.kit.pagination import Paging, newest_first
from app.settings import get_settings
from app.workers.tables import Worker

# A worker that was not heard of for this long is forgotten.
FORGOTTEN_AFTER = timedelta(hours=1)


def report(name: str, **told: Any) -> None:
    """Writes what a worker tells of itself (the columns of `Worker`), and that it was heard of now."""
    with writing() as session:
        now = database_now(session)
        row = session.scalars(select(Worker).where(Worker.name == name)).first()
        if row is None:
            row = Worker(id=new_id("worker"), name=name)
            session.add(row)
        row.reason = None
        for field, value in told.items():
            setattr(row, field, value)
        row.heard_at = now


def leave(name: str) -> None:
    """Forgets a worker that has ended."""
    with writing() as session:
        session.execute(delete(Worker).where(Worker.name == name))


def forget_lost() -> None:
    """Forgets workers that were not heard of for an hour."""
    with writing() as session:
        session.execute(delete(Worker).where(Worker.heard_at < database_now(session) - FORGOTTEN_AFTER))


def heard_since(session: Session) -> Any:
    """The moment since when a worker that lives was heard of."""
    return database_now(session) - timedelta(seconds=get_settings().lease_seconds)


def alive(session: Session, queue: str) -> list[Worker]:
    """The workers of a queue that were heard of within the time of a lease."""
    query = select(Worker).where(Worker.queue == queue, Worker.heard_at >= heard_since(session))
    return list(session.scalars(query.order_by(Worker.id)))


def list_workers(paging: Paging) -> tuple[list[tuple[Worker, bool]], bool]:
    """One page of workers, newest first, each with whether it is lost."""
    with reading() as session:
        since = heard_since(session)
        found, more = newest_first(session, select(Worker), Worker.id, paging)
        return [(worker, worker.heard_at < since) for worker in found], more


def get(id: str) -> tuple[Worker, bool]:
    """The worker of this id or name, and whether it is lost. Raises `NotFound`."""
    with reading() as session:
        worker = session.scalars(select(Worker).where(or_(Worker.id == id, Worker.name == id))).first()
        if worker is None:
            raise NotFound(
                f"The worker '{id}' does not exist.",
                code="worker_not_found",
                hint="GET /workers lists those that were heard of in the last hour.",
            )
        return worker, worker.heard_at < heard_since(session)
