"""What a project stores, in bytes: a sum that is kept beside its uploads and fine-tunes, for there may be many of these.

Each transaction that adds or removes one adds to the sum, which then holds its row until it commits: it does so last, and
takes no lock afterwards that others hold while they wait for it. `worker/reconcilers/stored_bytes.py` counts anew.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.kit.database import upsert
from app.kit.errors import Conflict
from app.projects.limits import lock_project, project_limits
from app.projects.tables import Stored


def add(session: Session, project_id: str, more: int) -> None:
    """Adds to what the project stores, in the caller's transaction; less than nothing for what is removed."""
    insert = upsert(session, Stored).values(project_id=project_id, bytes=more)
    session.execute(
        insert.on_conflict_do_update(
            index_elements=["project_id"], set_={"bytes": Stored.bytes + insert.excluded.bytes}
        )
    )


def stored_bytes(session: Session, project_id: str) -> int:
    """The bytes of the project's uploads and fine-tunes."""
    return session.scalar(select(Stored.bytes).where(Stored.project_id == project_id)) or 0


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
