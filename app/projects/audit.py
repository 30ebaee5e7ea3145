"""The audit log: who changed what."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.kit.database import reading
from app.kit.ids import new_id
from app.kit.pagination import Paging, newest_first
from app.projects.acting import actor
from app.projects.tables import Entry


def record(session: Session, action: str, target: str, **data: Any) -> None:
    """Adds an entry to the transaction that makes the change: there is one exactly when the other is there.

    `action` is `noun.verb`, `target` the id of what was changed, `data` what else is worth knowing: never a secret.
    """
    who = actor()
    session.add(
        Entry(
            id=new_id("audit"),
            action=action,
            target=target,
            project=who.project_id,
            key=who.key_id,
            key_name=who.key_name,
            role=who.role,
            address=who.address,
            data=data,
        )
    )


def list_entries(paging: Paging, filters: dict[str, str | None]) -> tuple[list[Entry], bool]:
    """One page of the log, newest first: the entries whose columns have the values of `filters` that are not None."""
    query = select(Entry)
    for column, value in filters.items():
        if value is not None:
            query = query.where(getattr(Entry, column) == value)
    with reading() as session:
        return newest_first(session, query, Entry.id, paging)
