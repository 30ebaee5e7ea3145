"""Usage on the wire."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import BaseModel, Field

from app.usage.tables import Usage


class UsageOut(BaseModel):
    """What was used of one model with one key on one day."""

    id: str
    object: Literal["usage"] = "usage"
    project: str = Field(description="The project's id.")
    key: str | None = Field(description="The key's id; null where none of the database's was shown.")
    model: str = Field(description="The model's name.")
    day: date = Field(description="In UTC.")
    requests: int = Field(description="Chat requests that were answered.")
    input_tokens: int = Field(description="Tokens of their prompts.")
    output_tokens: int = Field(description="Tokens of their answers.")
    trained_tokens: int = Field(description="Tokens that attempts at training the model processed.")
    gpu_seconds: float = Field(description="Seconds of those attempts, times their GPUs; 0 on CPUs.")


def usage_out(usage: Usage) -> UsageOut:
    """The wire form of a row."""
    return UsageOut(
        id=usage.id,
        project=usage.project_id,
        key=usage.key_id or None,
        model=usage.model,
        day=usage.day,
        requests=usage.requests,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        trained_tokens=usage.trained_tokens,
        gpu_seconds=usage.gpu_seconds,
    )
