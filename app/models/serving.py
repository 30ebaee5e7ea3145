"""What is wanted of the inference engines, and where a model answers. The engine controller does the wanting's work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.kit.database import utc_now
from app.models.service import not_found
from app.models.tables import Engine, EngineAdapter, Model

# A use is written down at most this often, so that a busy model does not write with every request.
USE_RESOLUTION = timedelta(seconds=5)


@dataclass(frozen=True)
class Place:
    """Where a model answers: the engine's address (None until it is ready) and what it can do, or why it cannot."""

    url: str | None
    error: dict[str, Any] | None
    features: dict[str, Any] | None = None


def engine_of(model: Model) -> str:
    """Id of the model whose weights an engine must hold to answer for `model`."""
    return model.base_model_id if model.kind == "adapter" and model.base_model_id else model.id


def locate(session: Session, model: Model) -> Place:
    """Where `model` answers now, as the controller last said."""
    engine = session.get(Engine, engine_of(model))
    return _place(model, engine, session.get(EngineAdapter, model.id) if model.kind == "adapter" else None)


def locate_all(session: Session, models: Sequence[Model]) -> dict[str, Place | None]:
    """Where these models of one engine answer now, by id; None for a model that was deleted. The number of statements
    doesn't grow with the number of models."""
    ids = [model.id for model in models]
    present = set(session.scalars(select(Model.id).where(Model.id.in_(ids))))
    engine = session.get(Engine, engine_of(models[0]))
    rows = session.scalars(select(EngineAdapter).where(EngineAdapter.model_id.in_(ids)))
    adapters = {adapter.model_id: adapter for adapter in rows}
    return {
        model.id: _place(model, engine, adapters.get(model.id)) if model.id in present else None for model in models
    }


def _place(model: Model, engine: Engine | None, adapter: EngineAdapter | None) -> Place:
    if engine is None or engine.status in ("wanted", "starting", "stopped"):
        return Place(None, None)
    if engine.status == "failed":
        return Place(None, engine.error)
    if model.kind == "adapter" and (adapter is None or adapter.generation != engine.generation):
        return Place(None, adapter.error if adapter else None)
    return Place(engine.url, None, engine.features or {})


def is_wanted(session: Session, model: Model) -> bool:
    """Whether `want` would change nothing: everything is wanted already, and the last use is fresh."""
    engine = session.get(Engine, engine_of(model))
    if engine is None or engine.status in ("stopped", "failed") or utc_now() - engine.last_used_at > USE_RESOLUTION:
        return False
    if model.kind != "adapter":
        return True
    adapter = session.get(EngineAdapter, model.id)
    return adapter is not None and adapter.error is None


def want(session: Session, model: Model) -> None:
    """Writes down that `model` is to answer: its engine and, for an adapter, the adapter in it. A failure is tried again.

    Raises `NotFound` where the model was deleted.
    """
    now = utc_now()
    # The lock on the weights' own row lets one at a time make the engine's, and keeps the model from being deleted meanwhile.
    held = session.get(Model, engine_of(model), with_for_update={"of": Model})
    if held is None or session.get(Model, model.id) is None:
        raise not_found(model.name, "model")
    engine = session.get(Engine, engine_of(model), with_for_update=True)
    if engine is None:
        engine = Engine(model_id=engine_of(model), status="wanted", wanted_at=now, last_used_at=now)
        session.add(engine)
        session.flush()
    elif engine.status in ("stopped", "failed"):
        engine.status, engine.error, engine.url, engine.wanted_at = "wanted", None, None, now
    engine.last_used_at = now
    if model.kind != "adapter":
        return
    adapter = session.get(EngineAdapter, model.id, with_for_update=True)
    if adapter is None:
        session.add(EngineAdapter(model_id=model.id, engine_id=engine.model_id))
    elif adapter.error is not None:
        adapter.error, adapter.generation = None, 0
