"""Whether finished jobs slow the service down: latencies of its hot paths with few and with many in the tables, on PostgreSQL.

    python benchmarks/control_plane.py                                # 1,000 finished jobs, 1,000 again, and 1,000,000
    python benchmarks/control_plane.py --rows 1000 10000 --rounds 100
    python benchmarks/control_plane.py --keep                         # the next run need not fill them, and migrates them

Each size has a database and an API process of its own, which take turns request by request, so that what else the machine does
meets them alike; the first size comes twice, so that what it does to one and not to another is seen. Prints a Markdown table.
BURNISH_TEST_POSTGRES and BURNISH_TEST_REDIS say where PostgreSQL (a superuser's URL) and Redis are; the databases
burnish_benchmark_* and Redis's key spaces 10 and up are the run's own, and emptied at its end.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import psycopg
import redis

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.filling import SMALL, fill
from demo.service import free_port, is_up

POSTGRES = os.environ.get("BURNISH_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432")
REDIS = os.environ.get("BURNISH_TEST_REDIS", "redis://127.0.0.1:6379")
# How many jobs wait when one is claimed.
QUEUED = 3
STEPS = 5
LISTS = (
    *("/jobs", "/jobs?status=succeeded", "/jobs?status=cancelled", "/jobs?status=running", "/datasets"),
    *("/models", "/models?kind=merged", "/models?status=failed", "/usage", "/usage?until=2001-01-01", "/metrics"),
)
# Of each project's storage; only where there is a limit is it asked what is stored.
STORAGE_BYTES = 2**53
ROWS = b'{"instruction": "What?", "output": "That."}\n' * 20


def main() -> None:
    parser = argparse.ArgumentParser(description="Latencies with few and with many finished jobs.")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1000, 1000, 1_000_000], help="finished jobs, the fewest first"
    )
    parser.add_argument("--rounds", type=int, default=500, help="how often each thing is done at each size")
    parser.add_argument("--keep", action="store_true", help="use the databases that are there, and leave them")
    arguments = parser.parse_args()
    times: dict[str, list[list[float]]] = {}
    with ExitStack() as stack:
        columns = [
            stack.enter_context(column(rows, place, arguments.keep)) for place, rows in enumerate(arguments.rows)
        ]
        for number in range(-5, arguments.rounds):  # the first ones warm up
            order = list(range(len(columns)))
            random.Random(number).shuffle(order)  # who comes after whom is not always the same
            for done in zip(*(one_round(columns[place]) for place in order), strict=True):
                for place, (what, seconds) in zip(order, done, strict=True):
                    if number >= 0:
                        times.setdefault(what, [[] for _ in columns])[place].append(seconds)
    show(times, arguments.rows)


def show(times: dict[str, list[list[float]]], rows: list[int]) -> None:
    """Prints the table: milliseconds at each size, and how many times those of the first one the others are."""
    sizes = [f"{each:,}" for each in rows]
    head = [
        cell
        for share in ("p50", "p99")
        for cell in (f"{share} at {sizes[0]}", *(f"at {each}" for each in sizes[1:]), "ratio")
    ]
    print(f"| | {' | '.join(head)} |")
    print("|---" * (len(head) + 1) + "|")
    for what, taken in times.items():
        cells = []
        for share in (0.5, 0.99):
            first, *others = (percentile(each, share) * 1000 for each in taken)
            cells += [f"{each:.2f}" for each in (first, *others)] + [
                " · ".join(f"{each / first:.2f}" for each in others)
            ]
        print(f"| {what} | {' | '.join(cells)} |")


def percentile(values: list[float], share: float) -> float:
    """The smallest value that is not below this share of them."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


@dataclass
class Column:
    """A database with so many finished jobs, an API on it, and a process that does what workers do."""

    rows: int
    client: httpx.Client
    small: httpx.Client
    worker: Connection
    dataset: str
    draw: random.Random = field(default_factory=lambda: random.Random(1))


def one_round(column: Column) -> Iterator[tuple[str, float]]:
    """Does each thing once: yields what it was and how long it took, in seconds. Leaves the tables as they were."""
    client = column.client
    body = {"base_model": "demo-base", "dataset": column.dataset}
    yield "workers: claim, empty queue", ask(column.worker, "claim")
    waiting: list[str] = []
    for _ in range(QUEUED):
        seconds, answer = timed(lambda: client.post("/jobs", json=body), 202)
        waiting.append(answer.json()["id"])
        yield "`POST /jobs`", seconds
    finished = job_id(column.draw.randint(SMALL // 2 + 1, column.rows // 2) * 2)
    for what in (f"/jobs/{finished}", *LISTS):
        name = what.replace(finished, "{id}")
        yield f"`GET {name}`", timed(lambda what=what: client.get(what))[0]
    for what in ("/jobs", "/models", "/datasets", "/usage"):
        yield f"`GET {what}` of a project with the oldest hundred", timed(lambda what=what: column.small.get(what))[0]
    yield "`GET /ready`, without a worker", timed(lambda: client.get("/ready"), 503)[0]
    yield "`DELETE /datasets/{id}`, refused", timed(lambda: client.delete(f"/datasets/{column.dataset}"), 409)[0]
    yield f"workers: claim, {QUEUED} queued", ask(column.worker, "claim")
    for what in WORKERS:
        if what != "claim":
            yield f"workers: {what}", ask(column.worker, what)
    for id in waiting:
        seconds, answer = timed(lambda id=id: client.post(f"/jobs/{id}/cancel"))
        if answer.json()["status"] == "running":
            ask(column.worker, "cancelled")
        else:
            yield "`POST /jobs/{id}/cancel`", seconds
        yield "`DELETE /jobs/{id}`", timed(lambda id=id: client.delete(f"/jobs/{id}"), 204)[0]


def timed(send: Callable[[], httpx.Response], status: int = 200) -> tuple[float, httpx.Response]:
    """Seconds that it took, and the answer, which must have this status."""
    began = time.perf_counter()
    answer = send()
    seconds = time.perf_counter() - began
    if answer.status_code != status:
        raise RuntimeError(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")
    return seconds, answer


@contextmanager
def column(rows: int, place: int, keep: bool) -> Iterator[Column]:
    """A column of `rows` finished jobs; its processes are gone afterwards, and its database unless it is to be kept."""
    name, broker = f"burnish_benchmark_{place}_{rows}", f"{REDIS}/{10 + place}"
    queue = redis.Redis.from_url(broker)
    queue.flushdb()
    with ExitStack() as stack:
        admin = stack.enter_context(psycopg.connect(f"{POSTGRES}/postgres", autocommit=True))
        filled = (
            keep
            and admin.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s AND shobj_description(oid, 'pg_database') = 'filled'",
                [name],
            ).fetchone()
        )
        if not filled:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            admin.execute(f"CREATE DATABASE {name}")
        if not keep:
            stack.callback(admin.execute, f"DROP DATABASE {name} WITH (FORCE)")
        stack.callback(queue.flushdb)
        home = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BURNISH_")}
        environment |= {
            "BURNISH_HOME": home,
            "BURNISH_DATABASE_URL": f"{POSTGRES}/{name}",
            "BURNISH_BROKER_URL": broker,
            "BURNISH_PORT": str(free_port()),
            "BURNISH_LEASE_SECONDS": "3600",
        }
        worker = stack.enter_context(worker_process(environment))
        if filled:  # by a run that may have been killed later
            with psycopg.connect(f"{POSTGRES}/{name}") as connection:
                connection.execute("DELETE FROM jobs WHERE status IN ('queued', 'running')")
        keys = json.loads(say(worker, "prepare"))
        url = stack.enter_context(api(environment))
        client, small = (
            stack.enter_context(httpx.Client(base_url=url, timeout=600, headers={"X-API-Key": keys[project]}))
            for project in ("default", "small")
        )
        dataset = client.post("/datasets", content=ROWS).raise_for_status().json()["id"]
        if not filled:
            body = {"base_model": "demo-base", "dataset": dataset}
            job = client.post("/jobs", json=body).raise_for_status().json()["id"]
            say(worker, "finish")
            fill(f"{POSTGRES}/{name}", job, rows)
            say(worker, "recount")
            admin.execute(f"COMMENT ON DATABASE {name} IS 'filled'")
        client.patch("/projects/default", json={"limits": {"storage_bytes": STORAGE_BYTES}}).raise_for_status()
        yield Column(rows, client, small, worker, dataset)


@contextmanager
def api(environment: dict[str, str]) -> Iterator[str]:
    """The API alone, in a process of its own; its address."""
    process = subprocess.Popen([sys.executable, "-m", "app.cli", "api"], env=environment)
    url = f"http://127.0.0.1:{environment['BURNISH_PORT']}"
    try:
        while not is_up(url):
            if process.poll() is not None:
                raise RuntimeError(f"the API ended with exit code {process.returncode} before it answered")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def job_id(number: int) -> str:
    """The id of a finished job that was filled in: sorts before all that are made now."""
    return f"job_00{number:024d}"


# What a process does that has the settings of one column, as workers do: in the database, without HTTP.


@contextmanager
def worker_process(environment: dict[str, str]) -> Iterator[Connection]:
    """The process; what is sent to it is the name of one of the functions below, what comes back (seconds, answer)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker, args=(environment, theirs), daemon=True)
    process.start()
    theirs.close()  # so that its death ends our waiting
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


def ask(worker: Connection, what: str) -> float:
    """Has the worker do it; seconds that it took."""
    worker.send(what)
    seconds: float = worker.recv()[0]
    return seconds


def say(worker: Connection, what: str) -> Any:
    """Has the worker do it; what it answered."""
    worker.send(what)
    return worker.recv()[1]


def worker(environment: dict[str, str], pipe: Connection) -> None:
    """Does what is asked for until the pipe ends."""
    os.environ.update(environment)
    held: list[Any] = [None]
    while True:
        what = pipe.recv()
        began = time.perf_counter()
        answer = (WORKERS.get(what) or PREPARATIONS[what])(held)
        pipe.send((time.perf_counter() - began, answer))


def prepare(_held: list[Any]) -> str:
    """Migrates, makes three projects and keys of two."""
    from app.kit.pagination import Paging
    from app.projects import service
    from app.up import migrate

    migrate()
    for name in {"small", "other"} - {
        project.name for project in service.list_projects(Paging(limit=1000, after=None))[0]
    }:
        service.create_project(name)
    keys = {name: service.create_key(name, "admin", "benchmark", None)[1] for name in ("default", "small")}
    return json.dumps(keys)


def recount(_held: list[Any]) -> None:
    from worker.reconcilers.stored_bytes import recount_stored

    recount_stored()


def finish(held: list[Any]) -> None:
    """Takes the queued job through an attempt that succeeds, as a supervisor does."""
    from app.jobs import attempts, checkpoints
    from app.jobs.lifecycle import move
    from app.kit.database import writing
    from app.kit.ids import new_id
    from app.models.tables import Model

    job = attempts.claim("benchmark:1")
    assert job is not None
    with writing() as session:
        row = attempts.heartbeat(session, job)
        said: list[dict[str, Any]] = [
            {"type": "phase", "phase": "training"},
            {"type": "started", "total_steps": STEPS, "rows": 20, "tokens": 400, "loss_tokens": 100},
        ]
        measured = {
            "learning_rate": 1e-3,
            "grad_norm": 1.0,
            "tokens": 80,
            "tokens_per_second": 5000.0,
            "eta_seconds": 1.0,
        }
        said += [
            {"type": "step", "step": step, "loss": 3.0 / step, "epoch": step / STEPS} | measured
            for step in range(1, STEPS + 1)
        ]
        attempts.record(session, row, said)
        checkpoints.add(session, row, STEPS, 2**20)
        base = session.get_one(Model, job.base_model_id)
        model = Model(
            id=new_id("model"), project_id=job.project_id, name=job.name, kind="adapter", status="ready",
            source=f"job:{job.id}", location=f"artifacts/{job.id}/1/adapter", base_model_id=base.id, job_id=job.id,
            chat_template=base.chat_template, facts=base.facts | {"stored_bytes": 2**20},
        )  # fmt: skip
        session.add(model)
        row.model_id = model.id
        attempts.end(session, row, "succeeded")
        move(session, row, "succeed", f"The model '{model.name}' is ready.", model=model.name)


def claim(held: list[Any]) -> None:
    from app.jobs import attempts

    held[0] = attempts.claim("benchmark:1")


def heartbeat(held: list[Any]) -> None:
    from app.jobs import attempts
    from app.kit.database import writing

    with writing() as session:
        attempts.heartbeat(session, held[0])


def cancelled(held: list[Any]) -> None:
    from app.jobs import attempts
    from app.kit.database import writing

    with writing() as session:
        attempts.cancelled(session, attempts.hold(session, held[0]))


def requeue_expired(_held: list[Any]) -> None:
    from worker.reconcilers.expired_leases import requeue_expired

    requeue_expired()


def wake_for_unseen_work(_held: list[Any]) -> None:
    from worker.reconcilers.unseen_work import wake_for_unseen_work

    wake_for_unseen_work()


def remove_leftovers(_held: list[Any]) -> None:
    from worker.reconcilers.leftovers import remove_leftovers

    remove_leftovers()


WORKERS: dict[str, Callable[[list[Any]], None]] = {
    "claim": claim,
    "heartbeat": heartbeat,
    "requeue_expired": requeue_expired,
    "wake_for_unseen_work": wake_for_unseen_work,
    "remove_leftovers": remove_leftovers,
}
PREPARATIONS: dict[str, Callable[[list[Any]], Any]] = {
    "prepare": prepare, "finish": finish, "recount": recount, "cancelled": cancelled,
}  # fmt: skip


if __name__ == "__main__":
    main()
