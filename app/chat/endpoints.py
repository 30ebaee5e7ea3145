"""Routes of OpenAI's chat API."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from app.chat.gateway import forward
from app.kit.errors import errors
from app.kit.paths import NameOrId
from app.models import service as models
from app.models.tables import Model
from app.projects.access import ToInfer

router = APIRouter(prefix="/v1", tags=["chat"])

CHAT_REQUEST = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["model", "messages"],
                "properties": {
                    "model": {"type": "string", "description": "Name or id of a model."},
                    "messages": {
                        "type": "array",
                        "items": {"type": "object"},
                        "description": "The conversation, as in OpenAI's API, whose other fields go to the engine.",
                    },
                    "stream": {"type": "boolean", "default": False, "description": "Answer in pieces, as SSE."},
                },
                "additionalProperties": True,
            },
            "example": {"model": "demo-base", "messages": [{"role": "user", "content": "Hello"}]},
        }
    },
}


COMPLETION_REQUEST = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["model", "prompt"],
                "properties": {
                    "model": {"type": "string", "description": "Name or id of a model."},
                    "prompt": {
                        "type": "string",
                        "description": "The text to go on with, as it is. Other fields are those of OpenAI's API.",
                    },
                    "stream": {"type": "boolean", "default": False, "description": "Answer in pieces, as SSE."},
                },
                "additionalProperties": True,
            },
            "example": {"model": "demo-base", "prompt": "Once upon a time", "max_tokens": 32},
        }
    },
}


class ServedModel(BaseModel):
    """OpenAI's model object."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ServedModels(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


def _served(model: Model) -> ServedModel:
    owner = model.base_model.name if model.base_model else "burnish"
    return ServedModel(id=model.name, created=int(model.created_at.timestamp()), owned_by=owner)


@router.post(
    "/chat/completions",
    summary="Chat with a model",
    response_model=None,
    responses={200: {"description": "OpenAI's answer"}, **errors(400, 404, 422, 502, 503)},
    openapi_extra={"requestBody": CHAT_REQUEST},
)
async def chat(request: Request, project: ToInfer) -> Response:
    return await forward(request, project, "/v1/chat/completions")


@router.post(
    "/completions",
    summary="Have a model go on with a text",
    response_model=None,
    responses={200: {"description": "OpenAI's answer"}, **errors(400, 404, 422, 502, 503)},
    openapi_extra={"requestBody": COMPLETION_REQUEST},
)
async def complete(request: Request, project: ToInfer) -> Response:
    return await forward(request, project, "/v1/completions")


@router.get("/models", summary="List the models that can be asked")
def list_served(project: ToInfer) -> ServedModels:
    return ServedModels(data=[_served(model) for model in models.servable(project)])


@router.get("/models/{name}", summary="Get a model that can be asked", responses=errors(404))
def get_served(name: NameOrId, project: ToInfer) -> ServedModel:
    model = models.get(project, name)
    if model.status != "ready" or not models.answers(model):
        raise models.not_found(name)
    return _served(model)
