"""Workers: the processes that train and look after things, as they tell of themselves."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.kit.database import Base, UtcDateTime, utc_now


class Worker(Base):
    """A worker process. `heard_at` is on the database's clock. `reason`: why an unfit one claims nothing.

    `gpus`: `{"index", "name", "memory_gb"}` of those that are its own. `doing`: `{"job", "attempt", "project", "gpus"}` for
    each slot that is taken. `memory_gb`: the machine's.
    """

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    queue: Mapped[str] = mapped_column(String(20))
    status: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str | None] = mapped_column(Text)
    slots: Mapped[int]
    gpus: Mapped[list[dict[str, Any]]]
    memory_gb: Mapped[float]
    doing: Mapped[list[dict[str, Any]]]
    version: Mapped[str] = mapped_column(String(40))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    heard_at: Mapped[datetime] = mapped_column(UtcDateTime)
