"""The route that balancers and orchestrators ask."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from app.kit.errors import errors
from app.kit.routing import NativeRoute
from app.readiness import service

router = APIRouter(tags=["service"], route_class=NativeRoute)


class Readiness(BaseModel):
    """Jobs are being claimed."""

    status: Literal["ready"] = "ready"


@router.get("/ready", summary="Whether jobs are being claimed", responses=errors(503))
def ready() -> Readiness:
    service.require_ready()
    return Readiness()
