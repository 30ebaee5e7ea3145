"""What Prometheus is told: how long requests took, and a table of questions to the database, asked at each scrape, as of one
moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, and_, func, select

from app.datasets.tables import Dataset
from app.files.tables import File
from app.jobs.tables import Attempt, Job, Status
from app.kit.database import snapshot, utc_now
from app.models.tables import Engine, Model
from app.monitoring.latency import RequestsCollector
from app.settings import get_settings
from app.usage.tables import Total
from app.workers.tables import Worker

Rows = Iterable[Sequence[Any]]
GAUGE, COUNTER = GaugeMetricFamily, CounterMetricFamily


@dataclass(frozen=True)
class Question:
    """A query and the metrics that it answers: (name, type, what it is). A row is the labels' values, then one value for each
    metric."""

    ask: Callable[[Connection], Rows]
    metrics: tuple[tuple[str, type[GaugeMetricFamily | CounterMetricFamily], str], ...]
    labels: tuple[str, ...] = ()


def _jobs(connection: Connection) -> Rows:
    counted = dict(connection.execute(select(Job.status, func.count()).group_by(Job.status)).all())
    return [(status, counted.get(status, 0)) for status in get_args(Status)]


def _oldest_queued(connection: Connection) -> Rows:
    queued_at = func.coalesce(Job.queued_at, Job.created_at, type_=Job.created_at.type)
    oldest = connection.scalar(select(func.min(queued_at)).where(Job.status == "queued"))
    return [(max(0.0, (utc_now() - oldest).total_seconds()) if oldest else 0.0,)]


def _workers(connection: Connection) -> Rows:
    """Of those that were heard of lately."""
    since = utc_now() - timedelta(seconds=get_settings().lease_seconds)
    heard = select(Worker.queue, Worker.status, func.count(), func.sum(Worker.slots)).where(Worker.heard_at >= since)
    by = (Worker.queue, Worker.status)
    return connection.execute(heard.group_by(*by).order_by(*by)).all()


def _trained(connection: Connection) -> Rows:
    """Of attempts that ended, and of those that run."""
    names, columns = ("steps", "step_seconds", "tokens"), (Attempt.steps, Attempt.step_seconds, Attempt.tokens)
    ended = dict(connection.execute(select(Total.name, Total.value).where(Total.name.in_(names))).all())
    current = and_(Attempt.job_id == Job.id, Attempt.number == Job.attempt)
    runs = select(*(func.coalesce(func.sum(column), 0) for column in columns)).select_from(Job).join(Attempt, current)
    running = connection.execute(runs.where(Job.status == "running")).one()
    return [[ended.get(name, 0.0) + float(value) for name, value in zip(names, running, strict=True)]]


def _total(name: str) -> Callable[[Connection], Rows]:
    query = select(Total.label, Total.value).where(Total.name == name).order_by(Total.label)
    return lambda connection: connection.execute(query).all()


def _counted(*by: Any, also: tuple[Any, ...] = (), of: Any = None) -> Callable[[Connection], Rows]:
    """How many rows there are of each value of the columns `by`, and the sums of the columns `also`."""
    query = select(*by, func.count(), *(func.sum(column) for column in also)).group_by(*by).order_by(*by)
    if of is not None:
        query = query.select_from(of)
    return lambda connection: connection.execute(query).all()


QUESTIONS = (
    Question(
        _jobs,
        (
            (
                "burnish_jobs",
                GAUGE,
                "Jobs that there are; queued: the depth of the queue, running: what is being trained.",
            ),
        ),
        ("status",),
    ),
    Question(
        _oldest_queued,
        (("burnish_queue_oldest_job_age_seconds", GAUGE, "How long the oldest queued job has waited; 0 without one."),),
    ),
    Question(_total("attempts"), (("burnish_attempts", COUNTER, "Attempts at jobs that have ended."),), ("outcome",)),
    Question(
        _total("failed_jobs"), (("burnish_failed_jobs", COUNTER, "Jobs that failed, by their error."),), ("code",)
    ),
    Question(
        _trained,
        (
            ("burnish_training_steps", COUNTER, "Optimiser steps."),
            (
                "burnish_training_step_seconds",
                COUNTER,
                "What optimiser steps took, without validation and checkpoints.",
            ),
            ("burnish_training_tokens", COUNTER, "Tokens trained on."),
        ),
    ),
    Question(
        _workers,
        (
            ("burnish_workers", GAUGE, "Workers that were heard of lately."),
            ("burnish_worker_slots", GAUGE, "Jobs or tasks that those workers can do at the same time."),
        ),
        ("queue", "status"),
    ),
    Question(_counted(Engine.status), (("burnish_engines", GAUGE, "Inference engines."),), ("status",)),
    Question(
        _counted(Model.kind, Model.status), (("burnish_models", GAUGE, "Models that there are."),), ("kind", "status")
    ),
    Question(_counted(of=Dataset), (("burnish_datasets", GAUGE, "Datasets that there are."),)),
    Question(
        _counted(File.purpose, also=(File.bytes,)),
        (
            ("burnish_files", GAUGE, "Uploads that are kept."),
            ("burnish_file_bytes", GAUGE, "Size of the uploads that are kept."),
        ),
        ("purpose",),
    ),
)


class DatabaseCollector(Collector):
    """Answers every question of the table anew. All read one moment: a sum of what ended and what runs must not miss what
    ends between."""

    def collect(self) -> Iterator[Metric]:
        with snapshot() as connection:
            for question in QUESTIONS:
                families = [made(name, told, labels=question.labels) for name, made, told in question.metrics]
                for row in question.ask(connection):
                    labels, values = [str(label) for label in row[: len(question.labels)]], row[len(question.labels) :]
                    for family, value in zip(families, values, strict=True):
                        family.add_metric(labels, float(value))
                yield from families


REGISTRY = CollectorRegistry()
REGISTRY.register(DatabaseCollector())
REGISTRY.register(RequestsCollector())


def exposition() -> bytes:
    """Every metric in Prometheus's text format."""
    return generate_latest(REGISTRY)
