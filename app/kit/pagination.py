"""Lists: `{"object": "list", "data": […], "has_more": …}`, newest first, paged by `limit` and `after`."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel
from sqlalchemy import Select
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
    session: Session, query: Select[Any], identifier: InstrumentedAttribute[str], paging: Paging
) -> tuple[list[Any], bool]:
    """Runs `query` for one page ordered by descending id; returns the rows and whether there are more."""
    if paging.after is not None:
        query = query.where(identifier < paging.after)
    rows = list(session.scalars(query.order_by(identifier.desc()).limit(paging.limit + 1)))
    return rows[: paging.limit], len(rows) > paging.limit
