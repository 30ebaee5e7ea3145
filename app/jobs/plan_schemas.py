"""What a job would take, on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from app.jobs.estimate import Memory
from app.jobs.hyperparameters import StageName
from app.jobs.schemas import DeployOut
from app.jobs.spec import AnyMethod, Check, OfStage, Replay, Resources, Validation
from app.kit.wire import Metadata
from app.models.chat_templates import TemplateArguments


class PlannedJob(BaseModel):
    """The job as it would be stored, with every default written out."""

    base_model: str
    dataset: str
    stage: StageName
    method: AnyMethod
    hyperparameters: OfStage
    chat_template: str | None
    template_arguments: TemplateArguments
    validation: Validation | None
    replay: Replay | None
    check: Check
    deploy: DeployOut
    priority: int
    resources: Resources
    max_seconds: int | None
    metadata: Metadata


class PlannedMemory(BaseModel):
    """Bytes at the peak of a step, beside what the process takes without a model."""

    device: Literal["gpu", "cpu"] = Field(description="What it is estimated for.")
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    total_bytes: int


class PlannedTokens(BaseModel):
    """Tokens of the rows trained on, after the cut at max_length. At most 20,000 rows are looked at, drawn evenly."""

    rows: int = Field(description="Rows trained on, those of replay with them.")
    rows_checked: int
    per_epoch: int
    in_all: int = Field(description="Of all steps.")
    loss_share: float = Field(description="How many of them are learned.")
    mean: float = Field(description="Of a row.")
    p99: int
    max: int
    cut_rows: int = Field(description="Rows that are longer than max_length, of those checked.")


class PlanOut(BaseModel):
    """What a job would take. Nothing is started or stored."""

    object: Literal["job.estimate"] = "job.estimate"
    job: PlannedJob
    memory: PlannedMemory | None = Field(description="Null where the model's configuration does not tell its sizes.")
    tokens: PlannedTokens
    steps: int
    seconds: float | None = Field(
        description="Of the steps, by the speed of earlier jobs; null: there was none to go by."
    )
    seconds_reason: str = Field(description="Where the seconds come from, or why there are none.")


def memory_out(memory: Memory, device: Literal["gpu", "cpu"]) -> PlannedMemory:
    """The wire form."""
    return PlannedMemory(
        device=device,
        weights_bytes=memory.weights,
        gradients_bytes=memory.gradients,
        optimizer_bytes=memory.optimizer,
        activations_bytes=memory.activations,
        total_bytes=memory.total,
    )
