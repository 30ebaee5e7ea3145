"""Routes of projects and keys, all of them for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter

from app.kit.errors import errors
from app.kit.pagination import Page, Paging, page_of
from app.kit.paths import NameOrId
from app.kit.routing import NativeRoute
from app.projects import removal, service
from app.projects.access import ToAdminister, ToCreateForAll
from app.projects.schemas import (
    KeyCreate,
    KeyCreated,
    KeyOut,
    KeyPatch,
    ProjectCreate,
    ProjectOut,
    ProjectPatch,
    key_created,
    key_out,
    project_out,
)

router = APIRouter(tags=["projects and keys"], route_class=NativeRoute)


@router.post("/projects", status_code=201, summary="Make a project", responses=errors(409, 422))
def create_project(request: ProjectCreate, project: ToCreateForAll) -> ProjectOut:
    return project_out(service.create_project(request.name, request.limits))


@router.get("/projects", summary="List projects", responses=errors(422))
def list_projects(project: ToAdminister, page: Annotated[Paging, page_of("proj")]) -> Page[ProjectOut]:
    projects, more = service.list_projects(page)
    return Page(data=[project_out(each) for each in projects], has_more=more)


@router.get("/projects/{name}", summary="Get a project by name or id", responses=errors(404))
def get_project(name: NameOrId, project: ToAdminister) -> ProjectOut:
    return project_out(service.get_project(name))


@router.patch("/projects/{name}", summary="Change a project's limits", responses=errors(404, 422))
def change_project(name: NameOrId, request: ProjectPatch, project: ToAdminister) -> ProjectOut:
    return project_out(service.change_project(name, request.limits))


@router.delete(
    "/projects/{name}", status_code=204, summary="Delete a project and all that it owns", responses=errors(404, 409)
)
def delete_project(name: NameOrId, project: ToAdminister) -> None:
    removal.delete_project(name)


@router.post("/keys", status_code=201, summary="Make a key", responses=errors(409, 422))
def create_key(request: KeyCreate, project: ToCreateForAll) -> KeyCreated:
    opens = request.project or project
    return key_created(*service.create_key(opens, request.role, request.name, request.expires_at, request.limits))


@router.get("/keys", summary="List keys", responses=errors(422))
def list_keys(project: ToAdminister, page: Annotated[Paging, page_of("key")]) -> Page[KeyOut]:
    keys, more = service.list_keys(page)
    return Page(data=[key_out(key) for key in keys], has_more=more)


@router.get("/keys/{id}", summary="Get a key by name or id, without itself", responses=errors(404, 409))
def get_key(id: NameOrId, project: ToAdminister) -> KeyOut:
    return key_out(service.get_key(id))


@router.patch("/keys/{id}", summary="Change a key's limits", responses=errors(404, 409, 422))
def change_key(id: NameOrId, request: KeyPatch, project: ToAdminister) -> KeyOut:
    return key_out(service.change_key(id, request.limits))


@router.post("/keys/{id}/rotate", summary="Give a key a new secret", responses=errors(404, 409))
def rotate_key(id: NameOrId, project: ToAdminister) -> KeyCreated:
    return key_created(*service.rotate_key(id))


@router.delete("/keys/{id}", status_code=204, summary="Revoke a key", responses=errors(404, 409))
def delete_key(id: NameOrId, project: ToAdminister) -> None:
    service.delete_key(id)
