"""The route of the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.kit.errors import errors
from app.kit.pagination import Page, Paging, page_of
from app.kit.routing import NativeRoute
from app.projects import audit
from app.projects.access import ToAdminister
from app.projects.audit_schemas import EntryOut, entry_out
from app.projects.service import key_id_of, project_id_of

router = APIRouter(tags=["audit"], route_class=NativeRoute)


def _filter(what: str) -> object:
    return Query(max_length=200, description=f"Only entries of this {what}.")


@router.get("/audit", summary="List what was changed, by whom", responses=errors(409, 422))
def list_entries(
    caller: ToAdminister,
    page: Annotated[Paging, page_of("audit")],
    project: Annotated[str | None, _filter("project (its name or id)")] = None,
    key: Annotated[str | None, _filter("key (its name or id)")] = None,
    action: Annotated[str | None, _filter("action")] = None,
    target: Annotated[str | None, _filter("object (its id)")] = None,
) -> Page[EntryOut]:
    entries, more = audit.list_entries(
        page,
        {"project": project_id_of(project), "key": key_id_of(key), "action": action, "target": target},
    )
    return Page(data=[entry_out(entry) for entry in entries], has_more=more)
