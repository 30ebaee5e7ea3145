"""Jobs on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.jobs.combinations import why_so
from app.jobs.hyperparameters import StageName
from app.jobs.spec import AnyMethod, Check, Deploy, JobSpec, OfStage, Replay, Resources, Validation
from app.jobs.tables import Checkpoint, Event, Job, Log, Status
from app.kit.wire import Failure, Metadata, Name, Reference
from app.models.chat_templates import TemplateArguments
from app.models.tables import Model


class JobCreate(JobSpec):
    """`base_model` and `dataset` are enough; the rest has defaults."""

    base_model: str = Field(
        min_length=1, max_length=64, description="Name or id of a base model or fine-tune.", examples=["demo-base"]
    )
    dataset: str = Field(
        min_length=1, max_length=200, description="Name or id of a dataset.", examples=["ds_01k0000000000000000000000"]
    )
    priority: int = Field(0, ge=-100, le=100, description="The highest goes first, and of those the oldest.")
    resources: Resources = Field(default_factory=Resources, description="What it needs of a worker.")
    max_seconds: int | None = Field(
        None, ge=1, le=31_536_000, description="Running longer in all fails it. Default: no bound."
    )
    name: Name | None = Field(None, description="Name of the fine-tune; unique. Default: made from base and id.")
    metadata: Metadata = Field(default_factory=dict)

    def spec(self) -> JobSpec:
        """What the trainer is asked to do, without whose it is: a copy, in which defaults can be written out."""
        return JobSpec(**{field: getattr(self, field) for field in JobSpec.model_fields}).model_copy(deep=True)


class Progress(BaseModel):
    """How far a running job is. `phase` is what it does now."""

    phase: Literal["loading", "measuring", "preflight", "training", "merging", "deploying"]
    step: int = 0
    total_steps: int | None = None
    epoch: float = 0.0
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None


class QueueOut(BaseModel):
    """Where a queued job stands: its place among all that wait, and what it waits for."""

    position: int
    waiting_for: str


class AttemptOut(BaseModel):
    """One try at the job."""

    number: int
    worker: str = Field(description="Name of the worker.")
    started_at: datetime
    ended_at: datetime | None
    start_step: int
    resume: Literal["exact", "approximate"] | None = Field(
        description="How it went on from a checkpoint; null: it did not."
    )
    resume_reason: str | None = Field(description="What differs from the machine that made the checkpoint.")
    outcome: Literal["succeeded", "failed", "cancelled", "lost", "handed_over", "paused"] | None
    reason: str | None
    code: str | None = Field(description="Of the error, where it failed or was lost.")


class ScorecardSide(BaseModel):
    """What one of both models made of the rows. Null: not measured of such a job."""

    loss: float | None = Field(description="On held-out rows, as the stage counts it.")
    accuracy: float | None = Field(description="Share of the answers that are exactly the held-out ones.")
    reward_accuracy: float | None = Field(
        description="Of reward models: share of the pairs that is the right way round."
    )
    stop_rate: float | None = Field(description="Share of the answers that end by themselves.")
    repetition_rate: float | None = Field(description="Share of the answers that repeat themselves.")
    text_loss: float | None = Field(description="Mean loss a token on general text.")


class ScorecardOut(BaseModel):
    """Base beside fine-tune, on the same rows."""

    base: ScorecardSide
    tuned: ScorecardSide
    rows: int = Field(description="Held-out rows that the loss is of.")
    prompts: int = Field(description="Prompts that were answered.")
    new_tokens: int | None = Field(description="Tokens that an answer had at most.")


class DeployOut(Deploy):
    """How the outcome is served, and why so."""

    reason: str


class JobOut(BaseModel):
    """A job, with every default written out."""

    id: str
    object: Literal["job"] = "job"
    name: str
    status: Status
    base_model: str
    dataset: str
    stage: StageName
    method: AnyMethod
    hyperparameters: OfStage
    chat_template: str | None = Field(description="Its text; null: the base model's.")
    template_arguments: TemplateArguments
    validation: Validation | None
    replay: Replay | None
    check: Check
    deploy: DeployOut
    priority: int
    resources: Resources
    max_seconds: int | None
    queue: QueueOut | None = Field(description="Null unless it is queued.")
    progress: Progress | None
    attempts: list[AttemptOut]
    scorecard: ScorecardOut | None = Field(description="Null until training has ended.")
    cancel_requested: bool
    pause_requested: bool
    error: Failure | None
    model: Reference | None
    metadata: Metadata
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class EventOut(BaseModel):
    """Something that happened to a job; `id` counts from 1 within the job."""

    id: int
    object: Literal["event"] = "event"
    type: str
    message: str
    data: dict[str, Any]
    created_at: datetime


class LogOut(BaseModel):
    """Whole lines that a trainer wrote; `id` counts from 1 within the job."""

    id: int
    object: Literal["log"] = "log"
    attempt: int
    text: str
    created_at: datetime


class MetricOut(BaseModel):
    """What one optimiser step measured."""

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int | None = None
    epoch: float | None = None
    validation_loss: float | None = None
    reward_accuracy: float | None = Field(
        None, description="Of preferences and labels: the share that is the right way round."
    )
    reward_margin: float | None = Field(None, description="By how much the chosen answers are ahead, on average.")
    kl: float | None = Field(
        None, description="Of `kto`, and `rl` with beta: how far the model has come from what it was, in nats."
    )
    reward: float | None = Field(None, description="Of `rl`: what an answer was rewarded with, on average.")
    answer_tokens: float | None = Field(None, description="Of `rl`: how long an answer was, on average.")
    validation_reward_accuracy: float | None = None
    validation_reward: float | None = None


class CheckpointOut(BaseModel):
    """What a run can go on from, be served and be trained on."""

    id: str
    object: Literal["checkpoint"] = "checkpoint"
    attempt: int = Field(description="The attempt that made it.")
    step: int = Field(description="The optimiser step that it follows.")
    bytes: int
    validation_loss: float | None = Field(description="After that step; null where it was not validated.")
    models: list[Reference] = Field(description="Those that are made of it; while there is one, it is kept.")
    created_at: datetime


def job_out(job: Job, queue: QueueOut | None) -> JobOut:
    """The wire form of a row; `queue` tells where it stands (see `app.jobs.waiting`)."""
    spec = JobSpec.model_validate(job.spec)
    mode = spec.deploy.mode
    assert mode != "auto"
    return JobOut(
        id=job.id,
        name=job.name,
        status=job.status,
        base_model=job.base_model_name,
        dataset=job.dataset_id,
        stage=spec.stage,
        method=spec.method,
        hyperparameters=spec.hyperparameters,
        chat_template=spec.chat_template,
        template_arguments=spec.template_arguments or {},
        validation=spec.validation,
        replay=spec.replay,
        check=spec.check,
        deploy=DeployOut(mode=mode, reason=why_so(spec.stage, spec.method, mode)),
        priority=job.priority,
        resources=Resources(gpus="auto" if job.gpus is None else job.gpus, memory_gb=job.memory_gb),
        max_seconds=job.max_seconds,
        queue=queue,
        progress=Progress(**job.progress) if job.progress else None,
        attempts=[AttemptOut.model_validate(attempt, from_attributes=True) for attempt in job.attempts],
        scorecard=ScorecardOut(**job.scorecard) if job.scorecard else None,
        cancel_requested=job.cancel_requested,
        pause_requested=job.pause_requested,
        error=Failure(**job.error) if job.error else None,
        model=Reference(id=job.model_id, name=job.name) if job.model_id else None,
        metadata=job.meta,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
    )


def event_out(event: Event) -> EventOut:
    """The wire form of a row."""
    return EventOut(
        id=event.number, type=event.type, message=event.message, data=event.data, created_at=event.created_at
    )


def log_out(log: Log) -> LogOut:
    """The wire form of a row."""
    return LogOut(id=log.number, attempt=log.attempt, text=log.text, created_at=log.created_at)


def checkpoint_out(checkpoint: Checkpoint, models: list[Model]) -> CheckpointOut:
    """The wire form of a row and of the models that are made of it."""
    return CheckpointOut(
        id=checkpoint.id,
        attempt=checkpoint.attempt,
        step=checkpoint.step,
        bytes=checkpoint.bytes,
        validation_loss=checkpoint.validation_loss,
        models=[Reference(id=model.id, name=model.name) for model in models],
        created_at=checkpoint.created_at,
    )
