"""Models: base models that were registered, fine-tunes that jobs made, and the engines that serve them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, ForeignKey, Index, String, Text, UniqueConstraint, literal, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.kit.database import Base, UtcDateTime, utc_now
from app.kit.leases import Leased
from app.projects.tables import Project

# A base model is seen by every project.
IS_BASE = text("kind = 'base'")
# A model waits for its download only once.
IS_DOWNLOADING = text("status = 'downloading'")


class Model(Leased):
    """A base model, an adapter on one, whole weights (merged), or a reward model. Immutable once ready; its name is used once.

    `location` is where its files are: a directory of the machine (base models) or a key in storage (fine-tunes).
    """

    __tablename__ = "models"
    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        Index("ix_models_name", "name"),
        Index("ix_models_tuned_newest", "project_id", "kind", "id"),
        Index("ix_models_base_newest", "id", sqlite_where=IS_BASE, postgresql_where=IS_BASE),
        Index("ix_models_kind_status", "kind", "status"),
        Index("ix_models_downloading", "id", sqlite_where=IS_DOWNLOADING, postgresql_where=IS_DOWNLOADING),
        Index("ix_models_status_lease", "status", "lease_expires_at"),
        Index("uq_models_base_name", "name", unique=True, sqlite_where=IS_BASE, postgresql_where=IS_BASE),
    )

    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    name: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(20))
    source: Mapped[str] = mapped_column(String(1000))
    location: Mapped[str | None] = mapped_column(String(1000))
    base_model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"), index=True)
    job_id: Mapped[str | None] = mapped_column(String(40), index=True)
    chat_template: Mapped[str | None] = mapped_column(Text)
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    progress: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)

    base_model: Mapped[Model | None] = relationship(remote_side="Model.id", lazy="joined", join_depth=1)

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What its chat template is handed beside a conversation."""
        return dict(self.facts.get("template_arguments", {}))

    @property
    def stored_bytes(self) -> int:
        """What it counts for in its project's storage: nothing where it is a base model."""
        return int(self.facts.get("stored_bytes", 0)) if self.kind != "base" else 0


def is_base() -> ColumnElement[bool]:
    """Whether a model is a base model, said as `IS_BASE` says it: SQLite compares the terms."""
    return Model.kind == literal("base", literal_execute=True)


class Grant(Base):
    """A project that sees a fine-tune of another one."""

    __tablename__ = "grants"

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id), primary_key=True, index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Engine(Base):
    """One inference engine that is wanted for a model's weights, and how far the controller is with it.

    `status`: wanted → starting → ready; failed (then `error`, and it is tried again when next wanted) or stopped.
    `generation` changes with every start: an adapter counts as loaded only in the generation that loaded it.
    `features` say what the running engine can do: `engine` (its kind), `tools` and `reasoning` (the parsers that it runs
    with, or null) and `response_format`.
    """

    __tablename__ = "engines"

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    status: Mapped[str] = mapped_column(String(20))
    url: Mapped[str | None] = mapped_column(String(200))
    generation: Mapped[int] = mapped_column(default=0)
    error: Mapped[dict[str, Any] | None]
    wanted_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime] = mapped_column(UtcDateTime)
    resident_bytes: Mapped[int | None] = mapped_column(BigInteger)
    features: Mapped[dict[str, Any] | None]


class EngineAdapter(Base):
    """An adapter that is wanted in an engine. Loaded when `generation` is the engine's own."""

    __tablename__ = "engine_adapters"

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    engine_id: Mapped[str] = mapped_column(ForeignKey("engines.model_id", ondelete="CASCADE"), index=True)
    generation: Mapped[int] = mapped_column(default=0)
    error: Mapped[dict[str, Any] | None]
