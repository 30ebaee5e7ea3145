"""Counting what is used, and telling it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.files.tables import File
from app.kit.database import reading, upsert, utc_now
from app.kit.errors import Conflict
from app.kit.ids import new_id
from app.kit.pagination import Paging, newest_first
from app.models.tables import Model
from app.projects.limits import lock_project, project_limits
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
        return newest_first(session, query, Usage.id, paging)


def require_room(session: Session, project_id: str, more: int) -> None:
    """Raises `Conflict` where `more` bytes do not fit into the project's storage; with none more, where it is full."""
    limits = project_limits(session, project_id)
    if limits.storage_bytes is None:
        return
    if more:
        lock_project(session, project_id)
    stored = stored_bytes(session, project_id)
    if stored + more > limits.storage_bytes or stored >= limits.storage_bytes:
        raise Conflict(
            f"This project stores {stored} bytes; with {more} more they are over its limit of {limits.storage_bytes}."
            if more
            else f"This project stores {stored} bytes; its limit is {limits.storage_bytes}.",
            code="limit_reached",
            hint="Delete datasets or models that are not needed, or let an admin raise the limit.",
        )


def stored_bytes(session: Session, project_id: str) -> int:
    """The bytes of the project's uploads and fine-tunes."""
    files = session.scalar(select(func.sum(File.bytes)).where(File.project_id == project_id)) or 0
    tuned = select(func.sum(Model.facts["stored_bytes"].as_integer()))
    return int(files) + int(session.scalar(tuned.where(Model.project_id == project_id, Model.kind != "base")) or 0)
