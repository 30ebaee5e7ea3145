"""The one claim query and the one fence: how work that must be done once is taken, kept and given up.

A row that can be claimed has `attempt` (its fencing token) and `lease_expires_at`, on the database's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, String, literal, or_, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.kit.database import Base, UtcDateTime, lease_until


class Leased(Base):
    """A table whose rows can be claimed."""

    __abstract__ = True

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    status: Mapped[str] = mapped_column(String(20))
    attempt: Mapped[int] = mapped_column(default=0)
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


Row = TypeVar("Row", bound=Leased)


class LeaseLost(Exception):
    """Someone else holds the row now, or it has ended: whoever gets this stops and writes nothing more."""


def in_state(table: type[Leased], *states: str) -> ColumnElement[bool]:
    """Whether a row is in one of these states, said as literals: SQLite does not use an index of the few rows that are live
    where a parameter says which, nor does a plan that PostgreSQL makes for any value."""
    return or_(*(table.status == literal(state, literal_execute=True) for state in states))


def claim(
    session: Session,
    table: type[Row],
    eligible: ColumnElement[bool],
    seconds: float,
    *,
    order: Sequence[ColumnElement[Any]] = (),
    fits: Callable[[Row], bool] = lambda _: True,
) -> Row | None:
    """Takes the first eligible row, by `order` and then the oldest: a new attempt, and a lease of `seconds`. None where there
    is nothing to take, or where the first does not fit: those behind it do not pass it by.

    `SKIP LOCKED` lets claimers pass each other on PostgreSQL; on SQLite the writing transaction is alone anyway.
    """
    query = select(table).where(eligible).order_by(*order, table.id).limit(1)
    row = session.scalars(query.with_for_update(skip_locked=True, of=table)).first()
    if row is None or not fits(row):
        return None
    row.attempt += 1
    row.lease_expires_at = lease_until(session, seconds)
    return row


def hold(session: Session, table: type[Row], id: str, attempt: int, status: str) -> Row:
    """The locked row, if this attempt still holds it. Raises `LeaseLost` otherwise."""
    query = select(table).where(table.id == id, table.attempt == attempt, table.status == status)
    row = session.scalars(query.with_for_update(of=table)).first()
    if row is None:
        raise LeaseLost(f"attempt {attempt} at {id} is no longer the current one")
    return row
