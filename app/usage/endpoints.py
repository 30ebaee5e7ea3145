"""The route of usage."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from fastapi import APIRouter, Query

from app.kit.errors import errors
from app.kit.pagination import Page, PageQuery
from app.projects.access import ToRead
from app.usage import service
from app.usage.schemas import UsageOut, usage_out

router = APIRouter(tags=["usage"])


@router.get("/usage", summary="List what was used, by day, model and key", responses=errors(422))
def list_usage(
    project: ToRead,
    page: PageQuery,
    since: Annotated[date | None, Query(description="From this day on (UTC).")] = None,
    until: Annotated[date | None, Query(description="Up to this day.")] = None,
    model: Annotated[str | None, Query(max_length=64, description="Only of the model of this name.")] = None,
    key: Annotated[str | None, Query(max_length=40, description="Only with the key of this id.")] = None,
) -> Page[UsageOut]:
    rows, more = service.list_usage(project, page, since, until, model, key)
    return Page(data=[usage_out(row) for row in rows], has_more=more)
