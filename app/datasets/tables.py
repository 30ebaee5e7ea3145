"""A dataset: a file read under parse options, and its canonical rows. A report: what reading a file found."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.files.tables import File
from app.kit.database import Base, UtcDateTime, utc_now
from app.projects.tables import Project


class Report(Base):
    """A refused file is kept with its report until `expires_at`; a dataset's report has none. `rows_sha256` is the blob
    of its problems, a JSON object a line, or None where there are none."""

    __tablename__ = "reports"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id), index=True)
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), index=True)
    options: Mapped[dict[str, Any]]
    rows: Mapped[int] = mapped_column(BigInteger)
    bad_rows: Mapped[int] = mapped_column(BigInteger)
    repairable_rows: Mapped[int] = mapped_column(BigInteger)
    complete: Mapped[bool]
    problems: Mapped[list[dict[str, Any]]]
    rows_sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)

    file: Mapped[File] = relationship(lazy="joined")


class Dataset(Base):
    """Immutable once made. `rows_sha256` is the blob of its canonical rows (Parquet), of form `rows_version`; both are
    None until the rows are first needed. `identity` is the hash of the file's hash and the options that count."""

    __tablename__ = "datasets"
    __table_args__ = (
        UniqueConstraint("project_id", "identity"),
        Index("ix_datasets_newest", "project_id", "id"),
        Index("ix_datasets_name", "project_id", "name"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id))
    name: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(20))
    format: Mapped[str] = mapped_column(String(20))
    container: Mapped[str] = mapped_column(String(20))
    identity: Mapped[str] = mapped_column(String(64))
    rows: Mapped[int] = mapped_column(BigInteger)
    statistics: Mapped[dict[str, Any]]
    report_id: Mapped[str] = mapped_column(ForeignKey("reports.id"), index=True)
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), index=True)
    rows_sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    rows_version: Mapped[int | None]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)

    file: Mapped[File] = relationship(lazy="joined")
    report: Mapped[Report] = relationship(lazy="joined")


class BlobClaim(Base):
    """Somebody is storing a blob, or deletes it (`deletes`), until `expires_at` at the latest. One `id` claims several."""

    __tablename__ = "blob_claims"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
    deletes: Mapped[bool]
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
