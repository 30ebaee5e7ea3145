"""A dataset: a file read under parse options, and its canonical rows."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.files.tables import File
from app.kit.database import Base, UtcDateTime, utc_now
from app.projects.tables import Project


class Dataset(Base):
    """Immutable once made. `rows_sha256` is the blob of its canonical rows (Parquet), of form `rows_version`."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id), index=True)
    name: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(20))
    format: Mapped[str] = mapped_column(String(20))
    rows: Mapped[int] = mapped_column(BigInteger)
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), index=True)
    rows_sha256: Mapped[str] = mapped_column(String(64), index=True)
    rows_version: Mapped[int]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)

    file: Mapped[File] = relationship(lazy="joined")
