"""Routes of models."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.kit.errors import errors
from app.kit.pagination import Page, Paging, page_of
from app.kit.paths import NameOrId
from app.kit.routing import NativeRoute
from app.models import service
from app.models.schemas import Kind, ModelCreate, ModelOut, Status, model_out
from app.projects.access import ToCreate, ToRead, ToWrite

KindFilter = Annotated[Kind | None, Query(description="Only models of this kind.")]
StatusFilter = Annotated[Status | None, Query(description="Only models of this status.")]

router = APIRouter(prefix="/models", tags=["models"], route_class=NativeRoute)


@router.post(
    "",
    status_code=201,
    summary="Register a base model, or make a checkpoint a fine-tune",
    responses={202: {"model": ModelOut}, **errors(404, 409, 422)},
)
def create_model(request: ModelCreate, project: ToCreate, response: Response) -> ModelOut:
    model = service.register(project, request)
    response.status_code = 201 if model.status == "ready" else 202
    return model_out(model)


@router.get("", summary="List models", responses=errors(422))
def list_models(
    project: ToRead, page: Annotated[Paging, page_of("model")], kind: KindFilter = None, status: StatusFilter = None
) -> Page[ModelOut]:
    models, more = service.list_models(project, page, kind, status)
    return Page(data=[model_out(model) for model in models], has_more=more)


@router.get("/{name}", summary="Get a model by name or id", responses=errors(404))
def get_model(name: NameOrId, project: ToRead) -> ModelOut:
    return model_out(service.get(project, name))


@router.delete("/{name}", status_code=204, summary="Delete a model", responses=errors(404, 409))
def delete_model(name: NameOrId, project: ToWrite) -> None:
    service.delete(project, name)
