"""Base models that something new can be built on."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.kit.errors import Conflict, InvalidValue
from app.models.service import find
from app.models.tables import Model


def ready_base(session: Session, project_id: str, name: str) -> Model:
    """The project's base model of this name or id. Raises `InvalidValue` where there is none or it is a fine-tune, and
    `Conflict` where it is not ready."""
    model = find(session, project_id, name)
    if model is None:
        raise InvalidValue(
            f"The base model '{name}' is not registered.",
            param="base_model",
            code="model_not_found",
            hint="Register it with POST /models, or choose one of GET /models?kind=base.",
        )
    if model.kind != "base":
        raise InvalidValue(
            f"'{name}' is a fine-tune; only base models can be chosen here.",
            param="base_model",
            code="unsupported",
            hint="Choose a base model: GET /models?kind=base.",
        )
    if model.status != "ready":
        raise Conflict(
            f"The base model '{name}' is {model.status}.",
            param="base_model",
            code="model_not_ready",
            hint="GET /models/{name} shows how far its download is, or why it failed.",
        )
    return model
