"""Routes of projects and keys, all of them for admins."""

from __future__ import annotations

from fastapi import APIRouter

from app.kit.errors import errors
from app.kit.pagination import Page, PageQuery
from app.projects import service
from app.projects.access import ToAdminister
from app.projects.schemas import (
    KeyCreate,
    KeyCreated,
    KeyOut,
    ProjectCreate,
    ProjectOut,
    key_created,
    key_out,
    project_out,
)

router = APIRouter(tags=["projects and keys"])


@router.post("/projects", status_code=201, summary="Make a project", responses=errors(409, 422))
def create_project(request: ProjectCreate, project: ToAdminister) -> ProjectOut:
    return project_out(service.create_project(request.name))


@router.get("/projects", summary="List projects", responses=errors(422))
def list_projects(project: ToAdminister, page: PageQuery) -> Page[ProjectOut]:
    projects, more = service.list_projects(page)
    return Page(data=[project_out(each) for each in projects], has_more=more)


@router.get("/projects/{name}", summary="Get a project by name or id", responses=errors(404))
def get_project(name: str, project: ToAdminister) -> ProjectOut:
    return project_out(service.get_project(name))


@router.delete("/projects/{name}", status_code=204, summary="Delete a project", responses=errors(404, 409))
def delete_project(name: str, project: ToAdminister) -> None:
    service.delete_project(name)


@router.post("/keys", status_code=201, summary="Make a key", responses=errors(422))
def create_key(request: KeyCreate, project: ToAdminister) -> KeyCreated:
    return key_created(*service.create_key(request.project or project, request.role, request.name, request.expires_at))


@router.get("/keys", summary="List keys", responses=errors(422))
def list_keys(project: ToAdminister, page: PageQuery) -> Page[KeyOut]:
    keys, more = service.list_keys(page)
    return Page(data=[key_out(key) for key in keys], has_more=more)


@router.get("/keys/{id}", summary="Get a key, without itself", responses=errors(404))
def get_key(id: str, project: ToAdminister) -> KeyOut:
    return key_out(service.get_key(id))


@router.post("/keys/{id}/rotate", summary="Give a key a new secret", responses=errors(404))
def rotate_key(id: str, project: ToAdminister) -> KeyCreated:
    return key_created(*service.rotate_key(id))


@router.delete("/keys/{id}", status_code=204, summary="Revoke a key", responses=errors(404, 409))
def delete_key(id: str, project: ToAdminister) -> None:
    service.delete_key(id)
