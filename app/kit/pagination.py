"""Lists: `{"object": "list", "data": […], "has_more": …}`, newest first, paged by `limit` and `after`."""

# No postponed annotations: `page_of` makes a type that depends on its argument.

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Depends, Query
from pydantic import AfterValidator, BaseModel
from sqlalchemy import ColumnElement, Select, select, union_all
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.kit.database import DEFAULT_PROJECT
from app.kit.ids import is_id
from app.kit.wire import WholeNumber

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


def page_of(kind: str) -> Any:
    """The dependency that reads which page of a list of such objects is asked for; `kind` is the prefix of their ids."""

    named = {DEFAULT_PROJECT} if kind == "proj" else set[str]()  # an id that was not drawn

    def check(after: str | None) -> str | None:
        if after is not None and after not in named and not is_id(after, kind):
            raise ValueError(f"Input should be the id of an object of this list ({kind}_…)")
        return after

    def paging(
        limit: Annotated[WholeNumber, Query(ge=1, le=1000, description="How many at most.")] = 20,
        after: Annotated[
            str | None,
            Query(max_length=64, description="An id: what follows it in the list. The object may be gone."),
            AfterValidator(check),
        ] = None,
    ) -> Paging:
        return Paging(limit=limit, after=after)

    return Depends(paging)


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
