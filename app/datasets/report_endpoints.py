"""Routes of reports."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response, StreamingResponse

from app.datasets import reports
from app.datasets.report_schemas import ReportOut, report_out
from app.kit.errors import errors
from app.kit.paths import Id
from app.kit.routing import NativeRoute
from app.projects.access import ToRead

router = APIRouter(prefix="/reports", tags=["datasets"], route_class=NativeRoute)

NDJSON = "application/x-ndjson"
LINES: dict[int | str, dict[str, Any]] = {200: {"content": {NDJSON: {"schema": {"type": "string"}}}}}


@router.get("/{id}", summary="Get a report", responses=errors(404))
def get_report(id: Id, project: ToRead) -> ReportOut:
    return report_out(*reports.get(project, id))


@router.get("/{id}/rows", summary="List a report's problems", response_class=Response, responses=LINES | errors(404))
def get_report_rows(id: Id, project: ToRead) -> Response:
    path = reports.problems(project, id)
    return FileResponse(path, media_type=NDJSON) if path else Response(media_type=NDJSON)


@router.get(
    "/{id}/repaired", summary="Get the mended file", response_class=Response, responses=LINES | errors(404, 409)
)
def get_repaired_file(id: Id, project: ToRead) -> Response:
    return StreamingResponse(reports.repair(project, id), media_type=NDJSON)
