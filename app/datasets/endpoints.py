"""Routes of datasets."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.datasets import service
from app.datasets.schemas import DatasetOut, dataset_out, upload_openapi
from app.kit.errors import errors
from app.kit.pagination import Page, PageQuery
from app.projects.service import ProjectId

router = APIRouter(prefix="/datasets", tags=["datasets"])


@router.post(
    "", status_code=201, summary="Upload a dataset", responses=errors(400, 413, 422), openapi_extra=upload_openapi()
)
async def create_dataset(request: Request, project: ProjectId) -> DatasetOut:
    return dataset_out(await service.upload(project, request))


@router.get("", summary="List datasets", responses=errors(422))
def list_datasets(project: ProjectId, page: PageQuery) -> Page[DatasetOut]:
    datasets, more = service.list_datasets(project, page)
    return Page(data=[dataset_out(dataset) for dataset in datasets], has_more=more)


@router.get("/{id}", summary="Get a dataset", responses=errors(404))
def get_dataset(id: str, project: ProjectId) -> DatasetOut:
    return dataset_out(service.get(project, id))


@router.delete("/{id}", status_code=204, summary="Delete a dataset", responses=errors(404, 409))
def delete_dataset(id: str, project: ProjectId) -> None:
    service.delete(project, id)
