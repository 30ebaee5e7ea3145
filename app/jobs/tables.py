"""Jobs, their attempts, and what happened to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import BigInteger, Float, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.kit.database import Base, UtcDateTime, utc_now
from app.kit.leases import Leased
from app.projects.tables import Project

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]

# Said as `app.kit.leases.in_state` says it: SQLite compares the terms.
IS_LIVE = text("status = 'queued' OR status = 'running' OR status = 'paused'")


class Job(Leased):
    """A request to train. `attempt` is its fencing token: a write of an older attempt changes nothing.

    `cancel_requested` and `pause_requested` are the wanted state, which the supervisor reads with every heartbeat.
    `retried_after`: the attempt after which it was last tried again by hand; lost ones and seconds count from there.
    `gpus`: how many it asks for; null: one where the worker has any. `memory_gb`: of each of them, else of the machine.
    `queued_at`: when it was last put into the queue. `traceparent`: the span of the request that created it, if it was traced.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_project_status", "project_id", "status", "id"),
        Index("ix_jobs_project_newest", "project_id", "id"),
        Index("ix_jobs_name", "project_id", "name"),
        Index("ix_jobs_status_lease", "status", "lease_expires_at"),
        # Millions of jobs have ended; whoever looks for the others reads these alone.
        Index("ix_jobs_live", "status", "id", postgresql_where=IS_LIVE, sqlite_where=IS_LIVE),
        # A fine-tune is named once; a job that came to nothing gives its name back.
        Index(
            "uq_jobs_live_name",
            "project_id",
            "name",
            unique=True,
            postgresql_where=text("status NOT IN ('failed', 'cancelled')"),
            sqlite_where=text("status NOT IN ('failed', 'cancelled')"),
        ),
    )

    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    name: Mapped[str] = mapped_column(String(64))
    spec: Mapped[dict[str, Any]]
    # No foreign keys from here: a job that has ended outlives what it was made of.
    base_model_id: Mapped[str] = mapped_column(String(40), index=True)
    base_model_name: Mapped[str] = mapped_column(String(64))
    dataset_id: Mapped[str] = mapped_column(String(40), index=True)
    validation_dataset_id: Mapped[str | None] = mapped_column(String(40), index=True)
    replay_dataset_id: Mapped[str | None] = mapped_column(String(40), index=True)
    model_id: Mapped[str | None] = mapped_column(String(40))
    key_id: Mapped[str | None] = mapped_column(String(40))
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    pause_requested: Mapped[bool] = mapped_column(default=False)
    retried_after: Mapped[int] = mapped_column(default=0)
    priority: Mapped[int] = mapped_column(default=0)
    gpus: Mapped[int | None]
    memory_gb: Mapped[float | None]
    max_seconds: Mapped[int | None]
    event_count: Mapped[int] = mapped_column(default=0)
    progress: Mapped[dict[str, Any] | None]
    scorecard: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    traceparent: Mapped[str | None] = mapped_column(String(64))
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    queued_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=utc_now)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    attempts: Mapped[list[Attempt]] = relationship(order_by="Attempt.number", lazy="selectin")


class Attempt(Base):
    """One try at a job by one worker. `outcome`: succeeded, failed, cancelled or lost; null while it runs; `code` is that of the
    error of one that failed or was lost. `tokens` were
    trained on in `steps` that took `step_seconds` together, on so many `gpus`. `resume`, of one that went on from a
    checkpoint: exact or approximate, and why."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    worker: Mapped[str] = mapped_column(String(200))
    start_step: Mapped[int] = mapped_column(default=0)
    tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    steps: Mapped[int] = mapped_column(default=0, server_default="0")
    step_seconds: Mapped[float] = mapped_column(Float, default=0.0, server_default="0")
    gpus: Mapped[int] = mapped_column(default=0)
    resume: Mapped[str | None] = mapped_column(String(20))
    resume_reason: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    outcome: Mapped[str | None] = mapped_column(String(20))
    reason: Mapped[str | None] = mapped_column(Text)
    code: Mapped[str | None] = mapped_column(String(40))


class Checkpoint(Base):
    """All that a run needs to go on from a step, stored under `key` before its row is inserted. `validation_loss`: after that
    step, where it was validated."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "attempt", "step"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    step: Mapped[int]
    key: Mapped[str] = mapped_column(String(200))
    bytes: Mapped[int] = mapped_column(BigInteger)
    validation_loss: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Event(Base):
    """Something that happened to a job, numbered under the job's row so that a reader who resumes misses none."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(String(40))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Log(Base):
    """Whole lines that the trainer of an attempt wrote to its standard error, numbered under the job's row as events are."""

    __tablename__ = "logs"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Metric(Base):
    """What an optimiser step measured; a step counts once, the latest attempt's."""

    __tablename__ = "metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[dict[str, Any]]
