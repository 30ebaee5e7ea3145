"""Routes of workers."""

from __future__ import annotations

from fastapi import APIRouter

from app.kit.errors import errors
from app.kit.pagination import Page, PageQuery
from app.kit.paths import NameOrId
from app.projects.access import ToRead
from app.workers import service
from app.workers.schemas import WorkerOut, worker_out

router = APIRouter(prefix="/workers", tags=["workers"])


@router.get("", summary="List workers", responses=errors(422))
def list_workers(project: ToRead, page: PageQuery) -> Page[WorkerOut]:
    workers, more = service.list_workers(page)
    return Page(data=[worker_out(worker, lost, project) for worker, lost in workers], has_more=more)


@router.get("/{id}", summary="Get a worker", responses=errors(404))
def get_worker(id: NameOrId, project: ToRead) -> WorkerOut:
    return worker_out(*service.get(id), project)
