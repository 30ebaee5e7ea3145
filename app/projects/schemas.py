"""Projects and keys on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.kit.wire import Moment, Name, Strict
from app.projects.access import Role
from app.projects.limits import KeyLimits, ProjectLimits
from app.projects.tables import Key, Project

Label = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class ProjectCreate(Strict):
    """Makes a project."""

    name: Name = Field(description="Unique.", examples=["search-team"])
    limits: ProjectLimits = Field(default_factory=ProjectLimits, description="How much it may use.")


class ProjectPatch(Strict):
    """Changes a project."""

    limits: ProjectLimits = Field(description="Those that are named change; null lifts one.")


class ProjectOut(BaseModel):
    """A project."""

    id: str
    object: Literal["project"] = "project"
    name: str
    limits: ProjectLimits
    created_at: datetime


class KeyCreate(Strict):
    """Makes a key."""

    project: str | None = Field(
        None, max_length=64, description="Name or id of the project that it opens. Default: the caller's."
    )
    role: Role = Field(description="What it may do.", examples=["write"])
    name: Label = Field("key", description="A label; need not be unique.", examples=["ci"])
    expires_at: Moment | None = Field(None, description="RFC 3339. Default: never.")
    limits: KeyLimits = Field(default_factory=KeyLimits, description="How much it may ask for.")


class KeyPatch(Strict):
    """Changes a key."""

    limits: KeyLimits = Field(description="Those that are named change; null lifts one.")


class KeyOut(BaseModel):
    """A key, without itself."""

    id: str
    object: Literal["key"] = "key"
    project: str = Field(description="The id of the project that it opens.")
    role: Role
    name: str
    limits: KeyLimits
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute.")
    created_at: datetime


class KeyCreated(KeyOut):
    """A key as it is shown once."""

    key: str = Field(description="Shown here and never again.")


def project_out(project: Project) -> ProjectOut:
    """A project on the wire."""
    return ProjectOut(id=project.id, name=project.name, limits=project.limits, created_at=project.created_at)


def key_out(key: Key) -> KeyOut:
    """A key on the wire."""
    return KeyOut(
        id=key.id,
        project=key.project_id,
        role=key.role,
        name=key.name,
        limits=key.limits,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        created_at=key.created_at,
    )


def key_created(key: Key, secret: str) -> KeyCreated:
    """A new key on the wire."""
    return KeyCreated(**key_out(key).model_dump(), key=secret)
