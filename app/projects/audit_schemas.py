"""The audit log on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.projects.access import Role
from app.projects.tables import Entry


class EntryOut(BaseModel):
    """Something that a user changed."""

    id: str
    object: Literal["audit_entry"] = "audit_entry"
    action: str = Field(description="Noun and verb.", examples=["job.create"])
    target: str = Field(description="The id of what was changed.", examples=["job_01k0000000000000000000000"])
    project: str = Field(description="The id of the project that it was done in.")
    key: str | None = Field(description="The id of the key; null for BURNISH_ADMIN_KEY, and where there are no keys.")
    key_name: str | None = Field(description="What the key was called then.")
    role: Role
    address: str = Field(description="Where it was asked from; `console`: by a command on the service's machine.")
    data: dict[str, Any] = Field(description="What else is worth knowing.")
    created_at: datetime


def entry_out(entry: Entry) -> EntryOut:
    """The wire form of a row."""
    return EntryOut.model_validate(entry, from_attributes=True)
