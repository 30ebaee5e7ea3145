"""Routes of grants, for admins of the project that owns the model."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.kit.errors import errors
from app.kit.pagination import Page
from app.kit.paths import NameOrId
from app.kit.routing import NativeRoute
from app.models import grants
from app.models.tables import Grant
from app.projects.access import ToAdminister
from app.projects.tables import Project

router = APIRouter(prefix="/models/{name}/grants", tags=["models"], route_class=NativeRoute)


class GrantOut(BaseModel):
    """A project that sees a fine-tune of another one."""

    object: Literal["grant"] = "grant"
    project: str = Field(description="The id of the project that may ask the model.")
    project_name: str = Field(description="Its name.")
    created_at: datetime


def _out(granted: tuple[Grant, Project]) -> GrantOut:
    grant, project = granted
    return GrantOut(project=project.id, project_name=project.name, created_at=grant.created_at)


@router.put("/{project}", summary="Let another project see a fine-tune", responses=errors(404, 422))
def put_grant(name: NameOrId, project: NameOrId, own: ToAdminister) -> GrantOut:
    return _out(grants.grant(own, name, project))


@router.get("", summary="List the projects that see a fine-tune", responses=errors(404))
def list_grants(name: NameOrId, own: ToAdminister) -> Page[GrantOut]:
    return Page(data=[_out(each) for each in grants.list_grants(own, name)], has_more=False)


@router.delete("/{project}", status_code=204, summary="Take a grant back", responses=errors(404))
def delete_grant(name: NameOrId, project: NameOrId, own: ToAdminister) -> None:
    grants.revoke(own, name, project)
