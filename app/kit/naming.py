"""Objects whose names need not be unique: an id or a name finds one, and a name that several have is refused."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select
from sqlalchemy.orm import Session

from app.kit.errors import Conflict

Row = TypeVar("Row")

# A refusal lists no more ids than this.
LISTED_IDS = 5


def find_named(
    session: Session,
    table: type[Row],
    query: Select[Any],
    name: str,
    *,
    lock: bool = False,
    unique_where: ColumnElement[bool] | None = None,
) -> Row | None:
    """The row of `query` whose id is `name`, else the only one whose name it is; None where there is none.

    With `unique_where`, a row for which that is true has its name for itself, and goes before others of that name. With `lock` the
    row is held until the transaction ends. Raises `Conflict` where several rows have the name.
    """
    if "\0" in name:  # PostgreSQL holds no NUL, and answers a question about one with an error
        return None
    columns: Any = table
    if lock:
        query = query.with_for_update(of=columns)
    by_name = query.where(columns.name == name)
    for exact in (query.where(columns.id == name), by_name.where(unique_where) if unique_where is not None else None):
        row: Row | None = session.scalars(exact).first() if exact is not None else None
        if row is not None:
            return row
    rows: list[Any] = list(session.scalars(by_name.order_by(columns.id.desc()).limit(LISTED_IDS + 1)))
    if len(rows) > 1:
        raise _ambiguous(table.__name__.lower(), name, [each.id for each in rows])
    return next(iter(rows), None)


def _ambiguous(noun: str, name: str, ids: list[str]) -> Conflict:
    count = str(len(ids)) if len(ids) <= LISTED_IDS else f"More than {LISTED_IDS}"
    return Conflict(
        f"{count} {noun}s have the name '{name}'.",
        code="ambiguous_name",
        hint=f"Use an id. From the newest on: {', '.join(ids[:LISTED_IDS])}.",
    )
