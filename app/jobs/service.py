"""What can be done with jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

from sqlalchemy import String, func, or_, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.datasets import service as datasets
from app.datasets.tables import Dataset
from app.jobs import attempts, checkpoints, reward_models, row_check
from app.jobs.announcing import announce
from app.jobs.gpu_rules import GPU_RULES
from app.jobs.lifecycle import ENDED, LIVE, add_event
from app.jobs.rules import RULES, apply, require_rows
from app.jobs.schemas import JobCreate, job_out
from app.jobs.spec import JobSpec
from app.jobs.tables import Checkpoint, Event, Job, Metric
from app.jobs.waiting import places
from app.kit import references, tracing
from app.kit.database import reading
from app.kit.errors import Conflict, InvalidValue, NotFound, Refusals, ServiceError
from app.kit.ids import new_id
from app.kit.leases import in_state
from app.kit.naming import find_named
from app.kit.pagination import Paging, newest_first
from app.kit.queue import wake
from app.models import service as models
from app.models.bases import fetch_manifest, ready_base
from app.models.tables import Model
from app.projects import removal, stored
from app.projects.acting import actor
from app.projects.audit import record
from app.projects.idempotency import creating, remember
from app.projects.limits import lock_project, project_limits


class Judged(NamedTuple):
    """A job that can be accepted: its spec with every default written out, and what it is made from; the datasets by the names
    that `TrainerSpec` has for their files."""

    spec: JobSpec
    base: Model
    datasets: dict[str, Dataset]


def create(project_id: str, request: JobCreate, *, dry_run: bool = False) -> Job:
    """Accepts a job, with every default resolved. What cannot work is refused here, with the fields named. Of a dry run nothing
    is kept: the job is as it would have been. Blocks while its rows are looked at."""
    fetch_manifest(project_id, request.base_model)
    try:
        with reading() as session:
            spec, base, held = judge(session, project_id, request)
        # Between the transactions: nobody else waits while rows are rendered.
        unchecked = row_check.require_trainable(spec, base, held, patient=dry_run)
    except ServiceError:
        with (
            creating()
        ):  # the same request, sent at the same time, may have been accepted: then this one is answered like it
            raise
    with creating() as session:
        spec, base, held = judge(session, project_id, request)
        dataset = held["rows"]
        job = Job(
            id=new_id("job"),
            project_id=project_id,
            status="queued",
            spec=spec.model_dump(mode="json"),
            base_model_id=base.id,
            base_model_name=base.name,
            dataset_id=dataset.id,
            validation_dataset_id=spec.validation.dataset if spec.validation else None,
            replay_dataset_id=spec.replay.dataset if spec.replay else None,
            key_id=actor().key_id,
            priority=request.priority,
            gpus=None if request.resources.gpus == "auto" else request.resources.gpus,
            memory_gb=request.resources.memory_gb,
            max_seconds=request.max_seconds,
            meta=request.metadata,
            traceparent=tracing.traceparent(),
            event_count=0,
            attempts=[],
        )
        job.name = request.name or f"{base.name[:55]}-{job.id[-8:]}"
        _claim_name(session, job)
        add_event(session, job, "created", f"Accepted: {spec.stage} of '{base.name}' on {dataset.rows} rows.")
        if unchecked:
            message = f"Whether the rows can be trained on is found out when the job starts. {unchecked}"
            add_event(session, job, "warning", message)
        if dry_run:
            session.expunge_all()
            session.rollback()
            return job
        announce(session, job, "created")
        record(session, "job.create", job.id, name=job.name)
        remember(session, 202, job_out(job, places(session, [job])[job.id]))
    wake("train")
    return job


def judge(session: Session, project_id: str, request: JobCreate) -> Judged:
    """Judges a job by all rules; what it is made from is held until the transaction ends. Raises all refusals at once."""
    spec, refusals = request.spec(), Refusals()
    # What does not exist is refused, and no rule that reads it is applied.
    base, held = cast(Model, None), dict[str, Dataset]()
    named = {"rows": ("dataset", request.dataset)}
    if spec.validation and spec.validation.dataset:
        named["validation_rows"] = ("validation.dataset", spec.validation.dataset)
    if spec.replay:
        named["replay_rows"] = ("replay.dataset", spec.replay.dataset)
    with refusals.catch():
        require_room(session, project_id)
    with refusals.catch():
        base = ready_base(session, project_id, request.base_model, lock=True)
    for file, (param, id) in named.items():
        with refusals.catch():
            held[file] = _dataset(session, project_id, spec, id, param)
    # From here on the spec names datasets by their ids.
    if spec.validation and "validation_rows" in held:
        spec.validation.dataset = held["validation_rows"].id
    if spec.replay and "replay_rows" in held:
        spec.replay.dataset = held["replay_rows"].id
    with refusals.catch():
        reward_models.hold(session, project_id, spec)
    apply(GPU_RULES, refusals, spec, request.resources.gpus)
    apply(RULES, refusals, spec, base, held.get("rows"))
    if request.name is not None:
        with refusals.catch():
            models.require_free_name(session, project_id, request.name)
    refusals.raise_all()
    return Judged(spec, base, held)


def require_room(session: Session, project_id: str) -> None:
    """Raises `Conflict` if the project's limits leave no room for another job or its outcome.

    Holds the project until the transaction ends, and before anything else is held: for its limits and its names.
    """
    lock_project(session, project_id)
    most = project_limits(session, project_id).queued_jobs
    if most is not None:
        queued = session.scalar(select(func.count()).where(Job.project_id == project_id, Job.status == "queued")) or 0
        if queued >= most:
            raise Conflict(
                f"{queued} jobs of this project are queued; its limit is {most}.",
                code="limit_reached",
                hint="Wait until one starts, or cancel one.",
            )
    stored.require_room(session, project_id, 0)


def _dataset(session: Session, project_id: str, spec: JobSpec, name: str, param: str) -> Dataset:
    """The dataset's locked row: it cannot be deleted before the job that uses it is there."""
    try:
        dataset = datasets.find(session, project_id, name, lock=True)
    except NotFound as error:
        raise InvalidValue(error.message, param=param, code=error.code, hint=error.hint) from None
    except Conflict as error:
        error.param = param
        raise
    require_rows(spec, dataset, param)
    return dataset


def _claim_name(session: Session, job: Job) -> None:
    models.require_free_name(session, job.project_id, job.name)
    try:
        with session.begin_nested():
            session.add(job)
    except IntegrityError:  # a job of that name has succeeded
        raise models.name_taken(job.name) from None


def get(project_id: str, id: str) -> Job:
    """The job of this name or id. Raises what `find` does."""
    with reading() as session:
        return find(session, project_id, id)


def find(session: Session, project_id: str, id: str, *, lock: bool = False) -> Job:
    """The project's job of this name or id; with `lock`, held until the transaction ends. Of jobs with one name it is the one that
    did not fail and was not cancelled. Raises `NotFound`, and `Conflict` where several came to nothing under the name."""
    own = select(Job).where(Job.project_id == project_id)
    holds_name = Job.status.not_in(("failed", "cancelled"))
    job = find_named(session, Job, own, id, lock=lock, unique_where=holds_name)
    if job is None:
        raise NotFound(f"The job '{id}' does not exist.", code="job_not_found", hint="GET /jobs lists those that do.")
    return job


def list_jobs(project_id: str, paging: Paging, status: str | None) -> tuple[list[Job], bool]:
    """One page of the project's jobs, newest first."""
    query = select(Job).where(Job.project_id == project_id)
    if status:
        query = query.where(Job.status == status)
    with reading() as session:
        return newest_first(session, query, Job.id, paging)


def events(project_id: str, id: str, after: int, limit: int) -> tuple[list[Event], bool, bool]:
    """Events after number `after`, oldest first; whether there are more, and whether the job has ended."""
    with reading() as session:
        job = find(session, project_id, id)
        query = (
            select(Event).where(Event.job_id == job.id, Event.number > after).order_by(Event.number).limit(limit + 1)
        )
        found = list(session.scalars(query))
        return found[:limit], len(found) > limit, job.status in ENDED


def list_checkpoints(project_id: str, id: str) -> list[tuple[Checkpoint, list[Model]]]:
    """The job's checkpoints, the newest first, each with the models that are made of it. Raises `NotFound`."""
    with reading() as session:
        job = find(session, project_id, id)
        found = checkpoints.newest_first(session, job.id)
        used = checkpoints.models_of(session, job.id)
        return [(each, used.get(each.key, [])) for each in found]


def metrics(project_id: str, id: str, after: int, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """Measurements after step `after`, oldest first, and whether there are more."""
    with reading() as session:
        job = find(session, project_id, id)
        query = (
            select(Metric).where(Metric.job_id == job.id, Metric.step > after).order_by(Metric.step).limit(limit + 1)
        )
        found = [{"step": metric.step, **metric.data} for metric in session.scalars(query)]
        return found[:limit], len(found) > limit


def _job_using(*columns: Any) -> references.Check:
    def check(session: Session, id: str, project_id: str) -> str | None:
        # A spec names what it has no column for: a reward model.
        uses = or_(*(column == id for column in columns), sql_cast(Job.spec, String).contains(f'"{id}"'))
        user = session.scalars(select(Job).where(in_state(Job, *LIVE), uses).limit(1)).first()
        if user is None:
            return None
        return f"{f'the job {user.id}' if user.project_id == project_id else 'a job'} uses it and has not ended"

    return check


def _job_named(session: Session, name: str, project_id: str) -> str | None:
    query = select(Job.id).where(Job.project_id == project_id, Job.name == name, in_state(Job, *LIVE))
    user = session.scalar(query.limit(1))
    return f"the job {user} will give it to its model" if user else None


def _end_all(session: Session, project_id: str) -> Callable[[], None]:
    """Held first of all: who works on a job writes to other rows while it holds the job's. What runs is counted."""
    held = select(Job).where(Job.project_id == project_id).order_by(Job.id).with_for_update(of=Job)
    session.execute(held.with_only_columns(Job.id))
    for job in session.scalars(held.where(Job.status == "running")):
        attempts.end(session, job, "cancelled", "The project was deleted.")
    tuned = select(Model.id).where(Model.project_id == project_id, Model.kind != "base").order_by(Model.id)
    models_held = list(session.scalars(tuned.with_for_update(of=Model)))
    uses = Job.base_model_id.in_(models_held)
    others = select(Job.id).where(Job.project_id != project_id, in_state(Job, *LIVE), uses)
    if session.scalar(others.limit(1)):
        raise Conflict(
            "A job of another project trains on a fine-tune of this one and has not ended.",
            code="in_use",
            hint="Wait until it has ended, or cancel it.",
        )
    return lambda: None


removal.register(_end_all)
references.register("model name", _job_named)
references.register("dataset", _job_using(Job.dataset_id, Job.validation_dataset_id, Job.replay_dataset_id))
references.register("model", _job_using(Job.base_model_id, Job.model_id))
