"""Secrets on the wire: written, and never read again."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.kit.wire import Strict
from app.secrets.tables import Secret


class SecretPut(Strict):
    """Keeps a secret."""

    value: str = Field(
        description="1 to 10,000 characters; never shown again.",
        examples=["hf_…"],
        json_schema_extra={"writeOnly": True, "format": "password"},
    )


class SecretOut(BaseModel):
    """A secret, without itself."""

    id: str
    object: Literal["secret"] = "secret"
    name: str
    created_at: datetime
    updated_at: datetime


def secret_out(secret: Secret) -> SecretOut:
    """A secret on the wire."""
    return SecretOut(id=secret.id, name=secret.name, created_at=secret.created_at, updated_at=secret.updated_at)
