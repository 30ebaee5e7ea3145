"""Models that something new can be built on: base models, and fine-tunes that are trained further."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.kit import storage
from app.kit.database import reading
from app.kit.errors import Conflict, InvalidValue
from app.models.service import find
from app.models.tables import Model


def ready_base(session: Session, project_id: str, name: str, *, lock: bool = False) -> Model:
    """The model of this name or id that the project sees; with `lock`, held until the transaction ends. Raises
    `InvalidValue` where there is none, and `Conflict` where it is not ready."""
    model = find(session, project_id, name)
    if model is not None and lock:
        model = session.get(Model, model.id, with_for_update={"of": Model}, populate_existing=True)
    if model is None:
        raise InvalidValue(
            f"The base model '{name}' is not registered.",
            param="base_model",
            code="model_not_found",
            hint="Register it with POST /models, or choose one of GET /models.",
        )
    if model.status != "ready":
        raise Conflict(
            f"The base model '{name}' is {model.status}.",
            param="base_model",
            code="model_not_ready",
            hint=f"GET /models/{model.name} shows how far it is, or why it failed.",
        )
    return model


def foundation(model: Model) -> Model:
    """The model whose weights are loaded where something is built on `model`: its base for an adapter, else itself."""
    return model.base_model if model.kind == "adapter" and model.base_model else model


def weights_folder(model: Model) -> Path:
    """The local folder of the weights that something built on `model` needs. Raises `FileNotFoundError`."""
    base = foundation(model)
    location = base.location or ""
    folder = Path(location) if base.kind == "base" else storage.fetch_folder(location)
    if not folder.is_dir():
        raise FileNotFoundError(None, "gone", location)
    return folder


def read_config(model: Model) -> dict[str, Any]:
    """The config.json of the weights that something built on `model` needs. Raises `OSError`, and `ValueError` where it is none."""
    config: dict[str, Any] = json.loads((weights_folder(model) / "config.json").read_text(encoding="utf-8"))
    return config


def fetch_manifest(project_id: str, name: str) -> None:
    """Brings what `read_manifest` reads of the adapter of this name to this machine, so that no transaction waits for an
    object store. Does nothing for other models."""
    with reading() as session:
        model = find(session, project_id, name)
    if model is not None and model.kind == "adapter" and model.location:
        with suppress(FileNotFoundError):  # whoever needs it says so
            read_manifest(str(Path(model.location).parent))


def read_manifest(key: str) -> dict[str, Any]:
    """What the trainer wrote about the fine-tune or checkpoint that is stored under `key`. Raises `FileNotFoundError`."""
    manifest: dict[str, Any] = json.loads(storage.fetch_folder(f"{key}/manifest.json").read_text(encoding="utf-8"))
    return manifest
