"""What the controller reads from the database and writes to it. Every function is one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select

from app.kit.database import reading, utc_now, writing
from app.models.own_code import runs_own_code
from app.models.tables import Engine, EngineAdapter, Model

ErrorBody = dict[str, Any]


@dataclass(frozen=True)
class WantedEngine:
    """A row of `engines`, with what the controller needs of its model."""

    model_id: str
    status: str
    generation: int
    last_used_at: datetime
    kind: str
    location: str | None
    chat_template: str | None
    architecture: str
    own_code: bool
    mixture_of_depths: bool = False


@dataclass(frozen=True)
class WantedAdapter:
    """A row of `engine_adapters`, with the key of the adapter's folder."""

    model_id: str
    engine_id: str
    generation: int
    failed: bool
    location: str | None


def read_engines() -> dict[str, WantedEngine]:
    """Every engine's row, by model id. A model that is gone has none: the database cascades."""
    query = select(Engine, Model).join(Model, Model.id == Engine.model_id)
    with reading() as session:
        return {engine.model_id: _wanted(engine, model) for engine, model in session.execute(query)}


def _wanted(engine: Engine, model: Model) -> WantedEngine:
    return WantedEngine(
        model_id=model.id,
        status=engine.status,
        generation=engine.generation,
        last_used_at=engine.last_used_at,
        kind=model.kind,
        location=model.location,
        chat_template=model.chat_template,
        architecture=model.facts.get("architecture", ""),
        own_code=runs_own_code(model),
        mixture_of_depths=bool(model.facts.get("mixture_of_depths")),
    )


def read_adapters(engine_id: str | None = None) -> list[WantedAdapter]:
    """Every wanted adapter, or those of one engine."""
    query = select(
        EngineAdapter.model_id, EngineAdapter.engine_id, EngineAdapter.generation, EngineAdapter.error, Model.location
    ).join(Model, Model.id == EngineAdapter.model_id)
    if engine_id is not None:
        query = query.where(EngineAdapter.engine_id == engine_id)
    with reading() as session:
        return [WantedAdapter(a, b, c, error is not None, d) for a, b, c, error, d in session.execute(query)]


def forget_running(used_within: timedelta) -> None:
    """Rows that say an engine runs, when none does: wanted again where it was used lately, else stopped."""
    with writing() as session:
        for row in session.scalars(select(Engine).where(Engine.status.in_(("starting", "ready"))).with_for_update()):
            row.status = "wanted" if utc_now() - row.last_used_at < used_within else "stopped"
            row.url = row.resident_bytes = None


def set_engine(
    model_id: str, status: str, *, error: ErrorBody | None = None, if_status: Iterable[str] | None = None
) -> bool:
    """Write an engine's state, without a URL. With `if_status` only where the row's status is one of these still.

    Returns whether it was written.
    """
    with writing() as session:
        row = session.get(Engine, model_id, with_for_update=True)
        if row is None or (if_status is not None and row.status not in if_status):
            return False
        row.status, row.error, row.url, row.resident_bytes = status, error, None, None
        return True


def publish_engine(
    model_id: str, url: str, generation: int, resident_bytes: int, features: dict[str, Any], loaded: Iterable[str]
) -> bool:
    """The engine is ready, with these adapters loaded: seen together or not at all. False if its row is gone."""
    with writing() as session:
        row = session.get(Engine, model_id, with_for_update=True)
        if row is None:
            return False
        row.status, row.url, row.generation, row.error = "ready", url, generation, None
        row.resident_bytes, row.features = resident_bytes, features
        for adapter in session.scalars(select(EngineAdapter).where(EngineAdapter.model_id.in_(list(loaded)))):
            adapter.generation, adapter.error = generation, None
        return True


def set_adapter(model_id: str, generation: int, error: ErrorBody | None = None) -> bool:
    """An adapter was loaded in this generation of its engine, or (then `error`) could not be. False if its row is gone."""
    with writing() as session:
        row = session.get(EngineAdapter, model_id, with_for_update=True)
        if row is None:
            return False
        row.generation, row.error = (row.generation if error else generation), error
        return True


def set_resident(sizes: dict[str, int]) -> None:
    """How many bytes each engine takes now."""
    with writing() as session:
        for model_id, size in sizes.items():
            row = session.get(Engine, model_id)
            if row is not None:
                row.resident_bytes = size
