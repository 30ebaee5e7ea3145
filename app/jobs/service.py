"""What can be done with jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import String, cast, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.datasets.tables import Dataset
from app.jobs import attempts, checkpoints, reward_models
from app.jobs.announcing import announce
from app.jobs.combinations import ON_ONE_GPU, SHARDED_METHODS, SHARDED_STAGES
from app.jobs.hyperparameters import Reinforcement, auto_epochs, auto_learning_rate
from app.jobs.lifecycle import ENDED, LIVE, add_event
from app.jobs.rules import RULES, require_rows
from app.jobs.schemas import JobCreate, job_out
from app.jobs.spec import JobSpec
from app.jobs.tables import Checkpoint, Event, Job, Metric
from app.jobs.waiting import places
from app.kit import references
from app.kit.database import reading
from app.kit.errors import Conflict, InvalidValue, NotFound
from app.kit.ids import new_id
from app.kit.leases import in_state
from app.kit.pagination import Paging, newest_first
from app.kit.queue import wake
from app.models import service as models
from app.models.bases import ready_base
from app.models.tables import Model
from app.projects import removal, stored
from app.projects.acting import actor
from app.projects.audit import record
from app.projects.idempotency import creating, remember
from app.projects.limits import lock_project, project_limits


def create(project_id: str, request: JobCreate, *, dry_run: bool = False) -> Job:
    """Accepts a job, with every default resolved. What cannot work is refused here, with the field named. Of a dry run nothing
    is kept: the job is as it would have been."""
    spec = request.spec()
    with creating() as session:
        require_room(session, project_id)
        base = ready_base(session, project_id, request.base_model, lock=True)
        dataset = _dataset(session, project_id, spec, request.dataset, "dataset")
        validation = spec.validation.dataset if spec.validation else None
        if validation:
            _dataset(session, project_id, spec, validation, "validation.dataset")
        if spec.replay:
            _dataset(session, project_id, spec, spec.replay.dataset, "replay.dataset")
        reward_models.hold(session, project_id, spec)
        _require_use_of_gpus(request, spec)
        for rule in RULES:
            rule(spec, base, dataset)
        _resolve(request, spec, base, dataset)
        job = Job(
            id=new_id("job"),
            project_id=project_id,
            status="queued",
            spec=spec.model_dump(mode="json"),
            base_model_id=base.id,
            base_model_name=base.name,
            dataset_id=dataset.id,
            validation_dataset_id=validation,
            replay_dataset_id=spec.replay.dataset if spec.replay else None,
            key_id=actor().key_id,
            priority=request.priority,
            gpus=None if request.resources.gpus == "auto" else request.resources.gpus,
            memory_gb=request.resources.memory_gb,
            max_seconds=request.max_seconds,
            meta=request.metadata,
            event_count=0,
            attempts=[],
        )
        job.name = request.name or f"{base.name[:55]}-{job.id[-8:]}"
        _claim_name(session, job)
        add_event(session, job, "created", f"Accepted: {spec.stage} of '{base.name}' on {dataset.rows} rows.")
        if dry_run:
            session.expunge_all()
            session.rollback()
            return job
        announce(session, job, "created")
        record(session, "job.create", job.id, name=job.name)
        remember(session, 202, job_out(job, places(session, [job])[job.id]))
    wake("train")
    return job


def require_room(session: Session, project_id: str) -> None:
    """Raises `Conflict` where the project's limits leave no room for another job or its outcome."""
    most = project_limits(session, project_id).queued_jobs
    if most is not None:
        lock_project(session, project_id)
        queued = session.scalar(select(func.count()).where(Job.project_id == project_id, Job.status == "queued")) or 0
        if queued >= most:
            raise Conflict(
                f"{queued} jobs of this project are queued; its limit is {most}.",
                code="limit_reached",
                hint="Wait until one starts, or cancel one.",
            )
    stored.require_room(session, project_id, 0)


def _require_use_of_gpus(request: JobCreate, spec: JobSpec) -> None:
    """Raises `InvalidValue` where the job could not use all of several GPUs."""
    gpus, rows = request.resources.gpus, spec.hyperparameters.rows_per_step
    if spec.hyperparameters.sharding != "none":
        _require_parts(gpus, spec)
    if gpus == 0 and spec.hyperparameters.precision == "fp16":
        raise InvalidValue(
            "fp16 is computed on GPUs only, and this job is to have none (resources.gpus 0).",
            param="hyperparameters.precision",
            code="unsupported",
            hint="Use 'bf16', 'fp32' or 'auto', or resources.gpus 1.",
        )
    if gpus == "auto" or gpus <= 1:
        return
    for what, name in (("Stage", spec.stage), ("Method", spec.method.type)):
        if name in ON_ONE_GPU:
            raise InvalidValue(
                f"{what} '{name}' cannot have {gpus} GPUs: {ON_ONE_GPU[name]}.",
                param="resources.gpus",
                code="unsupported",
                hint="Use 1, 0 for none, or leave it at 'auto'.",
            )
    if rows < gpus:
        raise InvalidValue(
            f"A step of {rows} {'row' if rows == 1 else 'rows'} leaves some of {gpus} GPUs without any.",
            param="resources.gpus",
            hint=f"Use at most {rows}, or a larger hyperparameters.batch_size.",
        )


def _require_parts(gpus: int | str, spec: JobSpec) -> None:
    """Raises `InvalidValue` where a job that is to be sharded cannot be."""
    if spec.stage not in SHARDED_STAGES or spec.method.type not in SHARDED_METHODS:
        raise InvalidValue(
            f"Stage '{spec.stage}' by method '{spec.method.type}' cannot be sharded.",
            param="hyperparameters.sharding",
            code="unsupported",
            hint=f"Leave it out, or use method.type {' or '.join(SHARDED_METHODS)} with stage {' or '.join(SHARDED_STAGES)}.",
        )
    if gpus in ("auto", 0, 1):
        raise InvalidValue(
            "A job is sharded among several GPUs, and this one has no more than one.",
            param="hyperparameters.sharding",
            hint="Give it resources.gpus, or leave sharding out.",
        )
    if spec.hyperparameters.precision == "fp16":
        raise InvalidValue(
            "A job that is sharded does not compute in fp16: each GPU would scale its gradients by itself.",
            param="hyperparameters.precision",
            code="unsupported",
            hint="Use 'bf16', 'fp32' or 'auto'.",
        )


def _dataset(session: Session, project_id: str, spec: JobSpec, id: str, param: str) -> Dataset:
    """The dataset's locked row: it cannot be deleted before the job that uses it is there."""
    query = select(Dataset).where(Dataset.project_id == project_id, Dataset.id == id).with_for_update(of=Dataset)
    dataset = session.scalars(query).first()
    if dataset is None:
        raise InvalidValue(
            f"The dataset '{id}' does not exist.",
            param=param,
            code="dataset_not_found",
            hint="Upload one with POST /datasets.",
        )
    require_rows(spec, dataset, param)
    return dataset


def _resolve(request: JobCreate, spec: JobSpec, base: Model, dataset: Dataset) -> None:
    """Writes out the defaults that depend on the base model or the rows."""
    parameters = spec.hyperparameters
    if "max_length" not in request.hyperparameters.model_fields_set and base.facts.get("max_length"):
        parameters.max_length = min(parameters.max_length, base.facts["max_length"])
    if parameters.epochs == "auto":
        parameters.epochs = auto_epochs(dataset.rows)
    if parameters.learning_rate == "auto":
        parameters.learning_rate = auto_learning_rate(base.facts["hidden_size"], spec.stage, spec.method.type)
    if isinstance(parameters, Reinforcement):
        _fit(parameters, request.hyperparameters.model_fields_set)
    if spec.validation and spec.validation.fraction and spec.validation.seed is None:
        spec.validation.seed = parameters.seed


def _fit(parameters: Reinforcement, asked: set[str]) -> None:
    """Writes out how many answers there are to a prompt, and how long they may be. Raises `InvalidValue`."""
    sizes = [size for size in range(2, parameters.group_size + 1) if parameters.batch_size % size == 0]
    if not sizes:
        raise InvalidValue(
            f"A batch_size of {parameters.batch_size} answers cannot be divided into groups of 2 to "
            f"{parameters.group_size} (group_size): answers to the same prompt are compared.",
            param="hyperparameters.batch_size",
            hint="Use a multiple of hyperparameters.group_size.",
        )
    parameters.group_size = max(sizes)
    if "max_new_tokens" not in asked:
        parameters.max_new_tokens = min(parameters.max_new_tokens, parameters.max_length // 2)
    if parameters.prompt_length < 1:
        raise InvalidValue(
            f"max_new_tokens ({parameters.max_new_tokens}) leaves no room for a prompt within max_length "
            f"({parameters.max_length}).",
            param="hyperparameters.max_new_tokens",
            hint="max_length counts the prompt and its answer.",
        )


def _claim_name(session: Session, job: Job) -> None:
    if models.find(session, job.project_id, job.name) is not None:
        raise name_taken(job)
    try:
        with session.begin_nested():
            session.add(job)
    except IntegrityError:
        raise name_taken(job) from None


def name_taken(job: Job) -> Conflict:
    """The error for a job whose name is another model's or job's."""
    return Conflict(
        f"The name '{job.name}' is taken.",
        param="name",
        code="name_taken",
        hint="A fine-tune is named once; choose another.",
    )


def get(project_id: str, id: str) -> Job:
    """The job. Raises `NotFound`."""
    with reading() as session:
        return find(session, project_id, id)


def find(session: Session, project_id: str, id: str, *, lock: bool = False) -> Job:
    """The project's job of this id; with `lock`, held until the transaction ends. Raises `NotFound`."""
    query = select(Job).where(Job.project_id == project_id, Job.id == id)
    job = session.scalars(query.with_for_update(of=Job) if lock else query).first()
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
        query = select(Event).where(Event.job_id == id, Event.number > after).order_by(Event.number).limit(limit + 1)
        found = list(session.scalars(query))
        return found[:limit], len(found) > limit, job.status in ENDED


def list_checkpoints(project_id: str, id: str) -> list[tuple[Checkpoint, list[Model]]]:
    """The job's checkpoints, the newest first, each with the models that are made of it. Raises `NotFound`."""
    with reading() as session:
        found = checkpoints.newest_first(session, find(session, project_id, id).id)
        used = checkpoints.models_of(session, id)
        return [(each, used.get(each.key, [])) for each in found]


def metrics(project_id: str, id: str, after: int, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """Measurements after step `after`, oldest first, and whether there are more."""
    with reading() as session:
        find(session, project_id, id)
        query = select(Metric).where(Metric.job_id == id, Metric.step > after).order_by(Metric.step).limit(limit + 1)
        found = [{"step": metric.step, **metric.data} for metric in session.scalars(query)]
        return found[:limit], len(found) > limit


def _job_using(*columns: Any) -> references.Check:
    def check(session: Session, id: str, project_id: str) -> str | None:
        # A spec names what it has no column for: a reward model.
        uses = or_(*(column == id for column in columns), cast(Job.spec, String).contains(f'"{id}"'))
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
