"""Routes of workers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter

from app.kit.errors import errors
from app.kit.pagination import Page, Paging, page_of
from app.kit.paths import NameOrId
from app.kit.routing import NativeRoute
from app.projects.access import ToRead
from app.workers import service
from app.workers.schemas import WorkerOut, worker_out

router = APIRouter(prefix="/workers", tags=["workers"], route_class=NativeRoute)


@router.get("", summary="List workers", responses=errors(422))
def list_workers(project: ToRead, page: Annotated[Paging, page_of("worker")]) -> Page[WorkerOut]:
    workers, more = service.list_workers(page)
    return Page(data=[worker_out(worker, lost, project) for worker, lost in workers], has_more=more)


@router.get("/{id}", summary="Get a worker", responses=errors(404))
def get_worker(id: NameOrId, project: ToRead) -> WorkerOut:
    return worker_out(*service.get(id), project)
