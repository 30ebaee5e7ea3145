"""What was used, by whom, of which model, on which day."""

from __future__ import annotations

from datetime import date

from sqlalchemy import BigInteger, Float, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.kit.database import Base
from app.projects.tables import Project


class Usage(Base):
    """A sum over a day (UTC). `key_id` is empty where no key of the database was shown; a key may be gone since."""

    __tablename__ = "usage"
    __table_args__ = (
        UniqueConstraint("project_id", "key_id", "model", "day"),
        Index("ix_usage_newest", "project_id", "day", "id"),
        Index("ix_usage_model_newest", "project_id", "model", "day", "id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    key_id: Mapped[str] = mapped_column(String(40))
    model: Mapped[str] = mapped_column(String(64))
    day: Mapped[date]
    requests: Mapped[int] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    trained_tokens: Mapped[int] = mapped_column(BigInteger)
    gpu_seconds: Mapped[float]


class Total(Base):
    """How much of something there ever was: `value` never falls. `label` tells apart what is counted under one name."""

    __tablename__ = "totals"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    label: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[float] = mapped_column(Float)
