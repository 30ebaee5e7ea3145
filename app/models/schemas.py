"""Models on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.kit.wire import Failure, Metadata, Name, Strict
from app.models.chat_templates import MAX_TEXT, TemplateArguments
from app.models.tables import Model

Kind = Literal["base", "adapter", "merged", "reward"]
Status = Literal["downloading", "merging", "deploying", "ready", "failed"]


class ModelCreate(Strict):
    """Registers a base model, or makes a checkpoint a fine-tune."""

    name: Name = Field(description="What jobs and chat call it; unique.", examples=["qwen2.5-7b"])
    source: str = Field(
        min_length=1,
        max_length=1000,
        description="A directory on the machine, modelscope://owner/name[@revision], hf://owner/name[@revision] or "
        "checkpoint://id.",
        examples=["modelscope://Qwen/Qwen2.5-7B-Instruct"],
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_TEXT,
        description="Jinja, or the name of a common family's; default: the model's own.",
    )
    template_arguments: TemplateArguments = Field(
        default_factory=dict,
        description="What the template is handed beside a conversation.",
        examples=[{"enable_thinking": False}],
    )
    architecture_only: bool = Field(
        False,
        description="The directory has a configuration and a tokenizer, and weights are not looked for: what stage pt begins with "
        "random ones on.",
    )
    metadata: Metadata = Field(default_factory=dict)


class Download(BaseModel):
    """How far a download is."""

    bytes: int
    total_bytes: int | None


class ModelOut(BaseModel):
    """A base model or a fine-tune."""

    id: str
    object: Literal["model"] = "model"
    name: str
    kind: Kind
    status: Status
    source: str
    base_model: str | None
    job: str | None
    architecture: str | None
    parameters: int | None
    has_chat_template: bool
    template_arguments: TemplateArguments
    progress: Download | None
    error: Failure | None
    metadata: Metadata
    created_at: datetime


def model_out(model: Model) -> ModelOut:
    """The wire form of a row."""
    return ModelOut(
        id=model.id,
        name=model.name,
        kind=model.kind,
        status=model.status,
        source=model.source,
        base_model=model.base_model.name if model.base_model else None,
        job=model.job_id,
        architecture=model.facts.get("architecture"),
        parameters=model.facts.get("parameters"),
        has_chat_template=model.chat_template is not None,
        template_arguments=model.template_arguments,
        progress=Download(**model.progress) if model.progress else None,
        error=Failure(**model.error) if model.error else None,
        metadata=model.meta,
        created_at=model.created_at,
    )
