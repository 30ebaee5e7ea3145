"""The route of usage."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.kit.errors import errors
from app.kit.pagination import Page, Paging, page_of
from app.kit.routing import NativeRoute
from app.kit.wire import Day
from app.projects.access import ToRead
from app.projects.service import key_id_of
from app.usage import service
from app.usage.schemas import UsageOut, usage_out

router = APIRouter(tags=["usage"], route_class=NativeRoute)


@router.get("/usage", summary="List what was used, by day, model and key", responses=errors(409, 422))
def list_usage(
    project: ToRead,
    page: Annotated[Paging, page_of("usage")],
    since: Annotated[Day | None, Query(description="From this day on (UTC).")] = None,
    until: Annotated[Day | None, Query(description="Up to this day.")] = None,
    model: Annotated[str | None, Query(max_length=64, description="Only of the model of this name.")] = None,
    key: Annotated[str | None, Query(max_length=200, description="Only with the key of this name or id.")] = None,
) -> Page[UsageOut]:
    rows, more = service.list_usage(project, page, since, until, model, key_id_of(key, project))
    return Page(data=[usage_out(row) for row in rows], has_more=more)
