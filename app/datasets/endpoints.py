"""Routes of datasets."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app.datasets import service
from app.datasets.schemas import DatasetOut, dataset_out, upload_openapi
from app.kit.errors import errors
from app.kit.helpers import run_apart
from app.kit.pagination import Page, Paging, page_of
from app.kit.paths import NameOrId
from app.kit.routing import NativeRoute
from app.kit.wire import WholeNumber
from app.projects.access import ToRead, ToUpload, ToWrite

router = APIRouter(prefix="/datasets", tags=["datasets"], route_class=NativeRoute)


@router.post(
    "",
    status_code=201,
    summary="Upload a dataset",
    responses={
        200: {"model": DatasetOut, "description": "The dataset that is there."},
        **errors(400, 409, 413, 422, 507),
    },
    openapi_extra=upload_openapi(),
)
async def create_dataset(request: Request, response: Response, project: ToUpload) -> DatasetOut:
    dataset, is_new = await service.upload(project, request)
    response.status_code = 201 if is_new else 200
    return dataset_out(dataset)


@router.get("", summary="List datasets", responses=errors(422))
def list_datasets(project: ToRead, page: Annotated[Paging, page_of("ds")]) -> Page[DatasetOut]:
    datasets, more = service.list_datasets(project, page)
    return Page(data=[dataset_out(dataset) for dataset in datasets], has_more=more)


@router.get("/{id}", summary="Get a dataset by name or id", responses=errors(404, 409))
def get_dataset(id: NameOrId, project: ToRead) -> DatasetOut:
    return dataset_out(service.get(project, id))


@router.get("/{id}/rows", summary="List canonical rows", responses=errors(404, 409, 422, 503, 507))
async def list_rows(
    id: NameOrId,
    project: ToRead,
    limit: Annotated[WholeNumber, Query(ge=1, le=1000, description="How many at most.")] = 20,
    after: Annotated[WholeNumber, Query(ge=-1, le=2**53, description="A row's number: what follows it.")] = -1,
) -> Page[dict[str, Any]]:
    rows, more = await run_apart(project, service.rows, project, id, after, limit)
    return Page(data=rows, has_more=more)


@router.delete("/{id}", status_code=204, summary="Delete a dataset", responses=errors(404, 409))
def delete_dataset(id: NameOrId, project: ToWrite) -> None:
    service.delete(project, id)
