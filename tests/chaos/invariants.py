"""What must be so once everything has settled, read from the database and the storage. Each check yields what it finds wrong."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors import safe_open
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.datasets import blobs
from app.datasets.tables import BlobClaim, Dataset
from app.jobs.lifecycle import ENDED, TRANSITIONS
from app.jobs.tables import Attempt, Checkpoint, Event, Job, Metric
from app.kit import storage
from app.kit.database import reading, utc_now, writing
from app.models.tables import Model
from app.settings import get_settings
from tests.chaos.following import Follower
from tests.chaos.load import BAD_DATA, POISON, Load, Sent
from tests.chaos.world import LEASE_SECONDS, MAX_ATTEMPTS
from worker.supervisor import workspaces

OUTCOMES = {"succeeded", "failed", "cancelled", "lost", "handed_over", "paused"}
BAD_DATA_CODES = {"data_check_failed", "no_trainable_rows"}
LOST_CODES = {"trainer_died", "worker_lost", "disk_full", "checkpoint_unreadable", "checkpoint_read_failed"}
# Whether a job was in line at a moment is known this long after it was put there and before it was taken: an event is dated
# before its transaction ends, which a worker that is made to sleep may hold up.
UNSURE = timedelta(seconds=LEASE_SECONDS + 10)
# Type of event → states it leads from, state it leads to.
LEADS = {event: (legal, target) for legal, target, event in TRANSITIONS.values()}
Wrong = Iterator[str]


@dataclass
class Course:
    """What a job came to: all that was measured, step by step, and the hash of its adapter."""

    series: list[tuple[int, dict[str, Any]]]
    adapter: str


# What an undisturbed job of each shape came to.
Twins = dict[str, Course]


@dataclass
class Facts:
    """One job and what is there of it."""

    sent: Sent
    job: Job
    events: list[Event]
    metrics: list[Metric]
    models: list[Model]
    all_attempts: list[Attempt] = field(default_factory=list)


def course(facts: Facts) -> Course:
    """The course of a job that succeeded and whose model is still there."""
    series = [(metric.step, metric.data) for metric in facts.metrics]
    weights = _artifact(facts.models[0]) / "adapter" / "adapter_model.safetensors"
    return Course(series, hashlib.sha256(weights.read_bytes()).hexdigest())


def facts_of(session: Session, sent: Sent) -> Facts | None:
    """None where the job is gone."""
    job = session.get(Job, sent.id)
    if job is None:
        return None
    of_job = [select(table).where(table.job_id == sent.id) for table in (Event, Metric, Model)]
    events, metrics = of_job[0].order_by(Event.number), of_job[1].order_by(Metric.step)
    return Facts(
        sent, job, list(session.scalars(events)), list(session.scalars(metrics)), list(session.scalars(of_job[2])),
        sorted(job.attempts, key=lambda attempt: attempt.number),
    )  # fmt: skip


def check(load: Load, twins: Twins) -> list[str]:
    """Everything that is wrong, in words."""
    wrong: list[str] = []
    with reading() as session:
        wrong += _accepted(session, load)
        known: list[Facts] = []
        for sent in load.jobs:
            facts = facts_of(session, sent)
            if facts is None:
                if not sent.was_told("delete"):
                    wrong.append(f"job {sent.number} ({sent.id}) was accepted and is lost")
                continue
            known.append(facts)
            if any(verb == "delete" and status == 204 for verb, status, _ in sent.said):
                wrong.append(f"job {sent.number} was deleted and is there")
            for found in JOB_CHECKS:
                wrong += [f"job {sent.number} ({sent.shape}, {job_line(facts)}): {what}" for what in found(facts)]
            wrong += [f"job {sent.number} ({sent.shape}): {what}" for what in _like_its_twin(facts, twins)]
            if follower := load.followers.get(facts.job.id):
                wrong += [f"job {sent.number}: {what}" for what in _followed(facts, follower)]
        wrong += _in_line(known)
        for model in session.scalars(select(Model).where(Model.kind != "base")):
            wrong += [f"model {model.id} of {model.source}: {what}" for what in _whole(model)]
        wrong += _datasets(session, load)
    return wrong


def job_line(facts: Facts) -> str:
    outcomes = ", ".join(f"{attempt.outcome}@{attempt.start_step}" for attempt in facts.all_attempts)
    return f"{facts.job.id} {facts.job.status}; attempts {outcomes}"


def _accepted(session: Session, load: Load) -> Wrong:
    """Each request made one job."""
    numbers = Counter(job.meta.get("number") for job in session.scalars(select(Job)))
    sent = {str(each.number) for each in load.jobs}
    yield from (f"job {number} is there {count} times" for number, count in numbers.items() if count > 1)
    yield from (f"job {number} was never sent" for number in numbers.keys() - sent)
    known = set(session.scalars(select(Job.id)))
    for table in (Attempt, Event, Metric, Checkpoint):
        left = set(session.scalars(select(table.job_id).distinct())) - known
        yield from (f"{table.__tablename__} of {job}, which is gone" for job in left)


def _state(facts: Facts) -> Wrong:
    """It ended as the verbs and its data will it."""
    sent, job = facts.sent, facts.job
    expected = {"succeeded"}
    if sent.shape in (POISON, BAD_DATA):
        expected = {"failed"}
    elif any(verb == "cancel" and status == "cancelled" for verb, _, status in sent.said):
        expected = {"cancelled"}
    elif sent.was_told("cancel"):
        expected = {"succeeded", "cancelled"}
    if job.status not in expected:
        yield f"is {job.status}, which should be {' or '.join(sorted(expected))}; said {sent.said}; {job.error}"
    if job.lease_expires_at is not None:
        yield "has ended and has a lease"
    if job.status == "failed" and not (job.error and job.error.get("message")):
        yield "failed without a cause"


def _contained(facts: Facts) -> Wrong:
    """Poison stops at the cap; data that cannot be trained on stops at once."""
    if facts.sent.shape == POISON:
        since = [attempt for attempt in facts.all_attempts if attempt.number > facts.job.retried_after]
        lost = sum(attempt.outcome == "lost" for attempt in since)
        if lost != MAX_ATTEMPTS or not failed_by_nature(facts):
            yield f"{lost} lost attempts, {facts.job.error}"
    if facts.sent.shape == BAD_DATA and not failed_by_nature(facts):
        yield f"failed otherwise: {facts.job.error}"


def failed_by_nature(facts: Facts) -> bool:
    """Whether the job was to fail, and did so for that cause."""
    codes = {POISON: LOST_CODES, BAD_DATA: BAD_DATA_CODES}.get(facts.sent.shape, set())
    return (facts.job.error or {}).get("code") in codes


def _attempts(facts: Facts) -> Wrong:
    """Numbered from 1, each ended, one after the other."""
    if [attempt.number for attempt in facts.all_attempts] != list(range(1, facts.job.attempt + 1)):
        yield f"attempts {[attempt.number for attempt in facts.all_attempts]}, and the fencing token is {facts.job.attempt}"
    for attempt in facts.all_attempts:
        if attempt.outcome not in OUTCOMES or attempt.ended_at is None:
            yield f"attempt {attempt.number} ended as {attempt.outcome} at {attempt.ended_at}"
    for before, after in zip(facts.all_attempts, facts.all_attempts[1:], strict=False):
        if before.ended_at is None or after.started_at < before.ended_at:
            yield f"attempt {after.number} began before attempt {before.number} had ended"
    succeeded = [attempt.number for attempt in facts.all_attempts if attempt.outcome == "succeeded"]
    if len(succeeded) != (facts.job.status == "succeeded"):
        yield f"attempts {succeeded} succeeded"


def _events(facts: Facts) -> Wrong:
    """Numbered from 1 without a gap, and each state led to from one that the table allows."""
    numbers = [event.number for event in facts.events]
    if numbers != list(range(1, facts.job.event_count + 1)):
        yield f"events are numbered {numbers}, and {facts.job.event_count} are counted"
    status = "queued"
    for event, before, after in _moves(facts):
        if before not in LEADS[event.type][0]:
            yield f"event {event.number} is {event.type!r} from {before}"
        status = after
    if status != facts.job.status:
        yield f"its events lead to {status}"
    started = sum(event.type == "started" for event in facts.events)
    if started != len(facts.all_attempts):
        yield f"{started} attempts started by its events"


def _moves(facts: Facts) -> Iterator[tuple[Event, str, str]]:
    """The events that changed the job's state, each with the states before and after it."""
    status = "queued"
    for event in facts.events:
        if event.type in LEADS and not (event.type == "resumed" and status == "running"):
            before, status = status, LEADS[event.type][1]
            yield event, before, status


def _in_line(known: list[Facts]) -> Wrong:
    """The highest priority goes first. A job that certainly was in line may be passed by once, while someone who then
    died was taking it."""
    claims = [(facts, attempt.started_at) for facts in known for attempt in facts.all_attempts]
    for waiting in known:
        for since, until in _waits(waiting):
            passing = [
                f"{facts.sent.number} at {moment}"
                for facts, moment in claims
                if facts.job.priority < waiting.job.priority and since + UNSURE < moment < until - UNSURE
            ]
            if len(passing) > 1:
                yield f"job {waiting.sent.number} was in line from {since} to {until} and passed by by jobs {passing}"


def _waits(facts: Facts) -> Iterator[tuple[datetime, datetime]]:
    """From when to when the job was in line, each time."""
    since = facts.job.created_at
    for event, before, after in _moves(facts):
        if before == "queued":
            yield since, event.created_at
        if after == "queued":
            since = event.created_at


def _followed(facts: Facts, follower: Follower) -> Wrong:
    """Who followed the job saw each event once, in order, however often the stream was cut."""
    if follower.seen != list(range(1, facts.job.event_count + 1)):
        yield f"of {facts.job.event_count} events its stream had {follower.seen}, cut {follower.cuts} times"


def _series(facts: Facts) -> Wrong:
    """Every step is measured once."""
    if facts.job.status != "succeeded":
        return
    total = (facts.job.progress or {}).get("total_steps")
    steps = [metric.step for metric in facts.metrics]
    if not total or steps != list(range(1, total + 1)):
        yield f"of {total} steps these were measured: {steps}"


def _outcome(facts: Facts) -> Wrong:
    """One model of a job that succeeded, none of another."""
    models = [model for model in facts.models if model.status != "failed"]
    if facts.job.status != "succeeded":
        yield from (f"has the model {model.id} ({model.status})" for model in models)
    elif len(facts.models) > 1:
        yield f"has {len(facts.models)} models"
    elif facts.models and (facts.models[0].id != facts.job.model_id or facts.models[0].status != "ready"):
        yield f"its model {facts.models[0].id} is {facts.models[0].status}; it names {facts.job.model_id}"


JOB_CHECKS: tuple[Callable[[Facts], Wrong], ...] = (_state, _contained, _attempts, _events, _series, _outcome)


def _like_its_twin(facts: Facts, twins: Twins) -> Wrong:
    """What was interrupted and resumed exactly came to the same bits."""
    exact = all(attempt.resume in (None, "exact") for attempt in facts.all_attempts)
    if facts.job.status != "succeeded" or not exact or facts.sent.shape not in twins or not facts.models:
        return
    mine, its = course(facts), twins[facts.sent.shape]
    if mine.series != its.series:
        differing = [step for (step, a), (_, b) in zip(mine.series, its.series, strict=False) if a != b]
        yield f"its series differs from an undisturbed run's, first at step {next(iter(differing), 'the end')}; {job_line(facts)}"
    if mine.adapter != its.adapter:
        yield f"its weights differ from an undisturbed run's; {job_line(facts)}"


def is_told(session: Session, job: Job) -> str | None:
    """None where a failed job failed for a cause that the faults account for, else what is wrong with it."""
    error = job.error or {}
    lost = sum(attempt.outcome == "lost" and attempt.number > job.retried_after for attempt in job.attempts)
    if error.get("code") in LOST_CODES and lost == MAX_ATTEMPTS:
        return None
    if error.get("code") == "deploy_failed" and "died" in error["message"]:
        return None
    return f"{job.id} failed after {lost} lost attempts: {error}"


def _artifact(model: Model) -> Path:
    return storage.fetch_folder(str(Path(model.location or "").parent))


def _whole(model: Model) -> Wrong:
    """Its files can be loaded, and its manifest is that of the attempt that stored it."""
    try:
        folder = _artifact(model)
    except FileNotFoundError as error:
        yield f"its files are not there: {error}"
        return
    _, job, attempt = str(model.location).split("/")[:3]
    manifest = json.loads((folder / "manifest.json").read_bytes())
    if (manifest["job"], manifest["attempt"]) != (job, int(attempt)):
        yield f"its manifest is of {manifest['job']}, attempt {manifest['attempt']}"
    files = [*folder.rglob("*.safetensors")]
    if not any(file.parent.name == model.kind for file in files):
        yield f"it has no weights: {files}"
    for file in files:
        with safe_open(file, "numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  # what safetensors opens has keys and cannot be iterated over
                weights.get_slice(name).get_shape()
    if not (folder / model.kind / "tokenizer.json").is_file() or not (folder / "proof.json").is_file():
        yield "its tokenizer or its proof is not there"


def _datasets(session: Session, load: Load) -> Wrong:
    """Whole or absent."""
    rows = {dataset.id: dataset for dataset in session.scalars(select(Dataset))}
    for name, id in load.datasets.items():
        if id not in rows:
            yield f"the dataset {name} ({id}) was accepted and is lost"
    yield from (f"the dataset {id} was deleted and is there" for id in load.deleted_datasets & rows.keys())
    names = Counter(dataset.name for dataset in rows.values())
    if names["cut"]:
        yield "a dataset was made of an upload that broke off"
    yield from (f"{count} datasets are named {name}" for name, count in names.items() if count > 1)
    for dataset in rows.values():
        hashes = [*blobs.of(dataset.report), *([dataset.rows_sha256] if dataset.rows_sha256 else [])]
        for sha256 in hashes:
            try:
                found = storage.fetch_blob(sha256).read_bytes()
            except FileNotFoundError:
                yield f"a blob of the dataset {dataset.name} is not there"
                continue
            if hashlib.sha256(found).hexdigest() != sha256:
                yield f"a blob of the dataset {dataset.name} is not what it was"
        if (
            dataset.rows_sha256
            and pq.ParquetFile(storage.fetch_blob(dataset.rows_sha256)).metadata.num_rows != dataset.rows
        ):
            yield f"the rows of the dataset {dataset.name} are not all there"


def leftovers() -> list[str]:
    """What lies in storage, or on the disk, and no row accounts for; housekeeping removes it within some rounds."""
    with reading() as session:
        models = {
            str(Path(model).parent)
            for model in session.scalars(select(Model.location).where(Model.kind != "base"))
            if model
        }
        checkpoints = set(session.scalars(select(Checkpoint.key)))
        running = list(session.scalars(select(Job.id).where(Job.status.not_in([*ENDED, "paused"]))))
    spaces = [str(path) for path in workspaces().iterdir()] if workspaces().is_dir() else []
    stored, kept = set(storage.folders("artifacts")), set(storage.folders("checkpoints"))
    lost = [f"{key}, of which there is a row, is not there" for key in checkpoints - kept]
    return [*running, *spaces, *(stored - models), *(kept - checkpoints), *lost]


def a_day_passes() -> None:
    """What was stored is a day older from now on, as housekeeping sees it: what it leaves alone for so long is due."""
    yesterday = time.time() - 25 * 3600
    with writing() as session:
        session.execute(update(BlobClaim).values(expires_at=utc_now()))
    for path in _blobs().rglob("*"):
        os.utime(path, (yesterday, yesterday))


def orphaned_blobs() -> list[str]:
    """Blobs that no row refers to, and what uploads left that broke off; housekeeping removes them when they are a day old."""
    with reading() as session:
        known = {sha for column in blobs.COLUMNS for sha in session.scalars(select(column).where(column.is_not(None)))}
    stored = [path for path in (_blobs() / "sha256").glob("*/*") if path.name not in known]
    return [str(path) for path in (*stored, *(_blobs() / "incoming").glob("*"))]


def _blobs() -> Path:
    return get_settings().home.resolve() / "blobs"
