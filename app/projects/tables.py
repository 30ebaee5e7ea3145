"""Projects own everything; keys open them; answers are kept for requests that come again; entries tell who changed
what."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.kit.database import Base, UtcDateTime, utc_now


class Project(Base):
    """Owner of everything; there is always the default one."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    limits: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Stored(Base):
    """The bytes of a project's uploads and fine-tunes together, as `app/projects/stored.py` adds them up."""

    __tablename__ = "stored"

    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)


class Key(Base):
    """What a request shows to act in a project. The key itself is not kept, only its SHA-256: it is 256 random bits."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id), index=True)
    role: Mapped[str] = mapped_column(String(10))
    name: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    limits: Mapped[dict[str, Any]] = mapped_column(default=dict)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Answer(Base):
    """The answer that a creation was given, under the idempotency key that it came with. `key` is the key's SHA-256,
    `request` that of what was asked for, `body` the sealed JSON."""

    __tablename__ = "answers"

    project_id: Mapped[str] = mapped_column(ForeignKey(Project.id), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    request: Mapped[str | None] = mapped_column(String(64))
    status: Mapped[int]
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, index=True)


class Entry(Base):
    """A change that a user made. Never changed and never deleted: triggers of the database see to it. No foreign keys:
    an entry outlives what it tells of."""

    __tablename__ = "audit"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    action: Mapped[str] = mapped_column(String(40), index=True)
    target: Mapped[str] = mapped_column(String(200), index=True)
    project: Mapped[str] = mapped_column(String(40), index=True)
    key: Mapped[str | None] = mapped_column(String(40), index=True)
    key_name: Mapped[str | None] = mapped_column(String(200))
    role: Mapped[str] = mapped_column(String(10))
    address: Mapped[str] = mapped_column(String(100))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
