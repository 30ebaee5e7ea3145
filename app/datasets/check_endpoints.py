"""Routes that show what training would make of a dataset."""

from __future__ import annotations

from fastapi import APIRouter

from app.datasets import checking
from app.datasets.check_schemas import CheckOut, CheckRequest, PreviewOut, PreviewRequest
from app.kit.errors import errors
from app.kit.helpers import run_apart
from app.kit.paths import NameOrId
from app.kit.routing import NativeRoute
from app.projects.access import ToRead

router = APIRouter(prefix="/datasets", tags=["datasets"], route_class=NativeRoute)


@router.post("/{id}/preview", summary="Show a row as the model sees it", responses=errors(404, 409, 422, 503))
async def preview(id: NameOrId, request: PreviewRequest, project: ToRead) -> PreviewOut:
    return await run_apart(project, checking.preview, project, id, request)


@router.post("/{id}/check", summary="Count what training would make of the rows", responses=errors(404, 409, 422, 503))
async def check(id: NameOrId, request: CheckRequest, project: ToRead) -> CheckOut:
    return await run_apart(project, checking.check, project, id, request)
