"""What a job would take: judged by the rules of one that is started, and nothing is left of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets.check_schemas import CheckOut, CheckRequest
from app.datasets.checking import check
from app.jobs import estimate, service
from app.jobs.hyperparameters import Precision, Reinforcement
from app.jobs.plan_schemas import PlannedJob, PlannedTokens, PlanOut, memory_out
from app.jobs.schemas import JobCreate, job_out
from app.jobs.spec import JobSpec
from app.jobs.tables import Job
from app.kit.database import reading
from app.models.bases import foundation, read_config, ready_base
from app.models.tables import Model
from app.workers.service import alive

# Jobs that are looked at for their speed.
_JOBS = 100


class _Speed(NamedTuple):
    """What so many jobs trained on, and in how many seconds of steps; `rows` are answers where they are drawn."""

    jobs: int
    tokens: int
    rows: int
    seconds: float


def plan(project_id: str, request: JobCreate) -> PlanOut:
    """What the job would take. Blocks for as long as its rows are rendered.

    Raises what `service.create` and `checking.check` do.
    """
    job = service.create(project_id, request, dry_run=True)
    spec = JobSpec.model_validate(job.spec)
    rendered = CheckRequest(
        base_model=job.base_model_id,
        chat_template=spec.chat_template,
        template_arguments=spec.template_arguments,
        max_length=spec.hyperparameters.max_length,
        validation=None,
    )
    counted = check(project_id, job.dataset_id, rendered)
    mixed_in = check(project_id, spec.replay.dataset, rendered) if spec.replay else None
    with reading() as session:
        base = ready_base(session, project_id, job.base_model_id)
        on_gpu = _on_gpu(session, job)
        speed = _speed(session, project_id, job)
    tokens, items = _tokens(spec, counted, mixed_in)
    steps = estimate.count_steps(items, spec.hyperparameters)
    tokens.in_all = round(tokens.per_epoch * steps * spec.hyperparameters.rows_per_step / max(items, 1))
    seconds, reason = _seconds(spec, tokens, steps, speed, job)
    planned = job_out(job, None).model_dump()
    return PlanOut(
        job=PlannedJob.model_validate({name: planned[name] for name in PlannedJob.model_fields}),
        memory=_memory(spec, base, tokens, on_gpu, job.gpus or 1),
        tokens=tokens,
        steps=steps,
        seconds=seconds,
        seconds_reason=reason,
    )


def _tokens(spec: JobSpec, counted: CheckOut, mixed_in: CheckOut | None) -> tuple[PlannedTokens, int]:
    """What the rows come to (`in_all` is still to come), and how many items the loss counts: rows, or pieces of texts."""
    held_out = 0
    if spec.validation and spec.validation.fraction:
        held_out = max(1, round(spec.validation.fraction * counted.rows))
    rows, most = counted.rows - held_out, spec.hyperparameters.max_length
    in_pieces = spec.stage == "pt"
    per_epoch = rows * _mean(counted, in_pieces)
    if spec.replay and mixed_in:
        wanted = max(1, round(rows * spec.replay.fraction / (1 - spec.replay.fraction)))
        replayed = min(mixed_in.rows, wanted)
        rows, per_epoch = rows + replayed, per_epoch + replayed * _mean(mixed_in, in_pieces)
    both = [each.tokens for each in (counted, mixed_in) if each]
    return PlannedTokens(
        rows=rows,
        rows_checked=counted.rows_checked,
        per_epoch=round(per_epoch),
        in_all=0,
        loss_share=counted.tokens.loss_share,
        mean=round(per_epoch / max(rows, 1), 1),
        p99=min(max(found.p99 for found in both), most),
        max=min(max(found.max for found in both), most),
        cut_rows=0 if in_pieces else counted.cut.rows,
    ), max(rows, math.ceil(per_epoch / most)) if in_pieces else rows


def _mean(counted: CheckOut, in_pieces: bool) -> float:
    """Tokens of a row that are trained on."""
    return (counted.tokens.total - (0 if in_pieces else counted.cut.tokens)) / max(counted.rows_checked, 1)


def _memory(spec: JobSpec, base: Model, tokens: PlannedTokens, on_gpu: bool, gpus: int) -> Any:
    facts = foundation(base).facts
    shape = estimate.shape_of(read_config(base), facts["parameters"])
    if shape is None:
        return None
    is_drawn = isinstance(spec.hyperparameters, Reinforcement)
    memory = estimate.memory(
        spec,
        shape,
        trained=estimate.trainable(shape, spec.method),
        longest=spec.hyperparameters.max_length if is_drawn else tokens.max,
        loss_share=1.0 if is_drawn else tokens.loss_share,
        device="cuda" if on_gpu else "cpu",
        compute_bytes=_compute_bytes(spec.hyperparameters.precision, on_gpu),
        processes=gpus,
    )
    return memory_out(memory, "gpu" if on_gpu else "cpu")


def _compute_bytes(precision: Precision, on_gpu: bool) -> int:
    """What a number takes that is computed with; as far as a worker's machine is like this one."""
    if precision == "auto":
        flags = Path("/proc/cpuinfo").read_text()
        return 2 if on_gpu or "amx_tile" in flags or "avx512_bf16" in flags else 4
    return 4 if precision == "fp32" else 2


def _on_gpu(session: Session, job: Job) -> bool:
    """Whether it would be trained on a GPU, as far as workers were heard of."""
    if job.gpus is not None:
        return job.gpus > 0
    return any(worker.gpus for worker in alive(session, "training"))


def _speed(session: Session, project_id: str, job: Job) -> _Speed:
    """That of the newest jobs of the project that trained the same base model by the same method and stage."""
    query = select(Job).where(Job.project_id == project_id, Job.base_model_id == job.base_model_id)
    found = _Speed(0, 0, 0, 0.0)
    for other in session.scalars(query.order_by(Job.id.desc()).limit(_JOBS)):
        alike = _kind(other) == _kind(job)
        ran = [attempt for attempt in other.attempts if attempt.step_seconds > 0]
        if alike and ran:
            a_step = int(other.spec["hyperparameters"]["batch_size"])
            found = _Speed(
                jobs=found.jobs + 1,
                tokens=found.tokens + sum(attempt.tokens for attempt in ran),
                rows=found.rows + a_step * sum(attempt.steps for attempt in ran),
                seconds=found.seconds + sum(attempt.step_seconds for attempt in ran),
            )
    return found


def _kind(job: Job) -> tuple[str, str, int]:
    """Stage, method, and how many processes train."""
    return job.spec["stage"], job.spec["method"]["type"], job.gpus or 1


def _seconds(spec: JobSpec, tokens: PlannedTokens, steps: int, speed: _Speed, job: Job) -> tuple[float | None, str]:
    what = f"{spec.stage} of '{job.base_model_name}' by method '{spec.method.type}'"
    if not speed.jobs:
        return None, f"No job of this project has trained yet that is {what}, so there is no speed to go by."
    earlier = f"{speed.jobs} earlier {'job' if speed.jobs == 1 else 'jobs'}: {what}"
    if isinstance(spec.hyperparameters, Reinforcement):
        answers, each = steps * spec.hyperparameters.batch_size, speed.seconds / speed.rows
        return round(answers * each, 1), (
            f"By the {each:.2g} seconds that each answer took in {earlier}. It takes longer where answers are, and nobody knows "
            "yet how long they will be. Loading, validation and deployment come on top."
        )
    rate = speed.tokens / speed.seconds
    return round(tokens.in_all / rate, 1), (
        f"By the {rate:.0f} tokens a second of {earlier}. Loading, validation and deployment come on top."
    )
