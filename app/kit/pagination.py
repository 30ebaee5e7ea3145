"""Lists: `{"object": "list", "data": […], "has_more": …}`, newest first, paged by `limit` and `after`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Select, select, union_all
from sqlalchemy.orm import InstrumentedAttribute, Session

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class Paging(BaseModel):
    """Which page is asked for."""

    limit: int
    after: str | None


def _paging(
    limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 20,
    after: Annotated[str | None, Query(max_length=64, description="An id: what follows it in the list.")] = None,
) -> Paging:
    return Paging(limit=limit, after=after)


PageQuery = Annotated[Paging, Depends(_paging)]


def newest_first(
    session: Session,
    query: Select[Any],
    identifier: InstrumentedAttribute[str],
    paging: Paging,
    either: Sequence[ColumnElement[bool]] = (),
) -> tuple[list[Any], bool]:
    """Runs `query` for one page ordered by descending id; returns the rows and whether there are more.

    With `either` the rows are those of which one of these is true. Each is asked for a page of its own: where they stood in
    an OR, no index would give them in order, and the whole table would be read for a page of it.
    """
    if paging.after is not None:
        query = query.where(identifier < paging.after)
    most = paging.limit + 1
    if either:
        pages = [
            query.with_only_columns(identifier.label("id"))
            .where(each)
            .order_by(identifier.desc())
            .limit(most)
            .subquery()
            for each in either
        ]
        query = select(identifier.class_).where(identifier.in_(union_all(*(select(page.c.id) for page in pages))))
    rows = list(session.scalars(query.order_by(identifier.desc()).limit(most)))
    return rows[: paging.limit], len(rows) > paging.limit
