"""Routes of monitoring."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.kit.routing import NativeRoute
from app.monitoring import service
from app.projects.access import ToAdminister

router = APIRouter(tags=["service"], route_class=NativeRoute)


@router.get(
    "/metrics",
    summary="How the service is, for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def get_metrics(project: ToAdminister) -> Response:
    return Response(service.exposition(), media_type=CONTENT_TYPE_LATEST)
