"""Counting what is used, and telling it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from app.kit.database import reading, upsert, utc_now
from app.kit.ids import new_id
from app.kit.pagination import Paging
from app.usage.tables import Usage


@dataclass(frozen=True)
class Used:
    """What one request or one attempt at a job used."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    trained_tokens: int = 0
    gpu_seconds: float = 0.0


def add(session: Session, project_id: str, key_id: str | None, model: str, used: Used) -> None:
    """Adds to today's sums, in the caller's transaction."""
    amounts = asdict(used)
    insert = upsert(session, Usage)
    whose = {"project_id": project_id, "key_id": key_id or "", "model": model, "day": utc_now().date()}
    sums = {name: getattr(Usage, name) + insert.excluded[name] for name in amounts}
    session.execute(
        insert.values(id=new_id("usage"), **whose, **amounts).on_conflict_do_update(index_elements=[*whose], set_=sums)
    )


def list_usage(
    project_id: str, paging: Paging, since: date | None, until: date | None, model: str | None, key: str | None
) -> tuple[list[Usage], bool]:
    """One page of the project's sums, newest first; of days from `since` to `until`, both included."""
    query = select(Usage).where(Usage.project_id == project_id)
    if since is not None:
        query = query.where(Usage.day >= since)
    if until is not None:
        query = query.where(Usage.day <= until)
    if model is not None:
        query = query.where(Usage.model == model)
    if key is not None:
        query = query.where(Usage.key_id == key)
    with reading() as session:
        last = session.get(Usage, paging.after) if paging.after is not None else None
        if last is not None:
            query = query.where(tuple_(Usage.day, Usage.id) < (last.day, last.id))
        # By day first: an index in the order of the ids alone would be read from its end down to the days asked for.
        rows = list(session.scalars(query.order_by(Usage.day.desc(), Usage.id.desc()).limit(paging.limit + 1)))
        return rows[: paging.limit], len(rows) > paging.limit
