"""What can go wrong: a small function a fault. Each gets the load, its world with it, and a number in [0, 1) that chooses
among victims; it returns what it met. It ends with every part running again, so far as that is the test's to do."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import psutil

from demo.text import sample_rows
from tests.chaos.load import BAD_DATA, POISON, Load, Sent
from tests.chaos.world import LEASE_SECONDS, is_role, trains
from tests.conftest import eventually

Fault = Callable[[Load, float], str]
NOTHING = "nothing there"
# A part that is away stays away for so long.
AWAY_SECONDS = 3.0
FULL_SECONDS = 6.0
# How long a fault waits for a job that it can hit in the middle.
PATIENCE_SECONDS = 30.0


def kill(role: str, program: str | None = None, number: int = signal.SIGKILL) -> Fault:
    """The fault that sends a signal to one process of the role."""

    def fault(load: Load, choice: float) -> str:
        found = load.world.processes(role, program)
        if not found:
            return NOTHING
        victim = found[int(choice * len(found))]
        try:
            victim.send_signal(number)
        except psutil.NoSuchProcess:
            return NOTHING
        return f"{role} {victim.pid}"

    return fault


def kill_training(number: int, of_worker: bool) -> Fault:
    """The fault that signals a trainer, or its worker, once its job has made a step and has more before it."""

    def fault(load: Load, choice: float) -> str:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := _training(load)):
            if time.monotonic() > deadline:
                return NOTHING
            time.sleep(0.2)
        id, step = found[int(choice * len(found))]
        for trainer in load.world.processes("trainer"):
            try:
                if not trains(trainer, id):
                    continue
                victims = [each for each in trainer.parents() if is_role(each, "training")] if of_worker else [trainer]
                for victim in victims[:1]:
                    victim.send_signal(number)
                    return f"{id} at step {step}"
            except psutil.NoSuchProcess:
                continue
        return NOTHING

    return fault


def _training(load: Load) -> list[tuple[str, int]]:
    """Jobs that are being trained, and their steps; none where nobody answers."""
    try:
        with load.world.client(5) as client:
            jobs = client.get("/jobs", params={"status": "running"}).json().get("data", [])
    except (httpx.TransportError, ValueError):
        return []
    steps = [(job["id"], (job["progress"] or {}).get("step", 0)) for job in jobs]
    return [(id, step) for id, step in steps if step > 0]


def kill_up(load: Load, choice: float) -> str:
    load.world.programs["up"].process.kill()
    return "up"


def rolling_restart(load: Load, choice: float) -> str:
    """One worker after the other is asked to end, and its successor waited for."""
    for program in ("up", "second worker"):
        old = load.world.processes("training", program)
        for worker in old:
            worker.terminate()
        eventually(lambda old=old: not any(map(_is_there, old)), 60, "the end of a worker that was asked to")
        eventually(lambda program=program: load.world.processes("training", program), 60, "its successor")
    return "both workers"


def _is_there(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def stop_worker_past_its_lease(load: Load, choice: float) -> str:
    """A worker sleeps until its job is another's, then wakes up and goes on as if nothing had been."""
    found = load.world.processes("training")
    if not found:
        return NOTHING
    victim = found[int(choice * len(found))]
    try:
        victim.suspend()
        time.sleep(LEASE_SECONDS + 5)
        victim.resume()
    except psutil.NoSuchProcess:
        return NOTHING
    return f"training {victim.pid}"


def flush_queue(load: Load, choice: float) -> str:
    """Every wake-up is lost."""
    world = load.world
    if world.redis:
        world.redis.flush()
        return "FLUSHALL"
    with closing(sqlite3.connect(world.disk.path / "queue.db", timeout=10)) as connection, connection:
        return f"{connection.execute('DELETE FROM kombu_message').rowcount} messages"


def queue_away(number: int) -> Fault:
    def fault(load: Load, choice: float) -> str:
        world = load.world
        if world.redis:
            world.redis.end(number)
            time.sleep(AWAY_SECONDS)
            world.redis.start()
            return "redis"
        return _locked(world.disk.path / "queue.db")

    return fault


def database_restart(mode: str) -> Fault:
    def fault(load: Load, choice: float) -> str:
        world = load.world
        if world.postgres:
            world.postgres.restart(mode)
            return f"postgres {mode}"
        return _locked(world.disk.path / "burnish.db")

    return fault


def _locked(path: Any) -> str:
    """Someone else holds the file's write lock for a while."""
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(AWAY_SECONDS)
        connection.execute("ROLLBACK")
    return f"{path.name} locked"


def terminate_backends(load: Load, choice: float) -> str:
    return f"{load.world.postgres.terminate_backends()} sessions" if load.world.postgres else NOTHING


def fill_disk(load: Load, choice: float) -> str:
    if not load.world.disk.can_fill:
        return "no file system of its own here"
    load.world.disk.fill()
    time.sleep(FULL_SECONDS)
    load.world.disk.free()
    return "full"


def say(verb: str) -> Fault:
    """The fault that is a user's wish, said once to some job, whatever becomes of the request."""

    def fault(load: Load, choice: float) -> str:
        told = [sent for sent in load.jobs if sent.id and sent.shape not in (POISON, BAD_DATA)]
        # The newer a job, the sooner it is still there to be told something.
        told = told[-8:]
        if not told:
            return NOTHING
        sent = told[int(choice * len(told))]
        method, path = ("DELETE", f"/jobs/{sent.id}") if verb == "delete" else ("POST", f"/jobs/{sent.id}/{verb}")
        status, answer = _once(load, method, path)
        sent.said.append((verb, status, answer.get("status")))
        return f"job {sent.number}: {status} {answer.get('status', '')}"

    return fault


def _once(load: Load, method: str, path: str, **arguments: Any) -> tuple[int | None, dict[str, Any]]:
    """The status (None: no answer, so it may have been done) and the body of a request that is sent once."""
    try:
        with load.world.client(10) as client:
            answer = client.request(method, path, **arguments)
    except httpx.TransportError:
        return None, {}
    if answer.status_code >= 500:
        return None, {}
    return answer.status_code, answer.json() if answer.content else {}


def delete_model(load: Load, choice: float) -> str:
    with load.world.client() as client:
        try:
            answer = client.get("/models", params={"limit": 1000})
        except httpx.TransportError:
            return "no answer"
    models = [model for model in answer.json().get("data", []) if model["kind"] != "base"]
    if not models:
        return NOTHING
    model = models[int(choice * len(models))]
    status, _ = _once(load, "DELETE", f"/models/{model['id']}")
    if status in (None, 204):
        load.deleted_models.add(model["id"])
    return f"{model['name']}: {status}"


def _some_rows(choice: float, count: int) -> bytes:
    rows = sample_rows(count, seed=int(choice * 1e9))
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def upload_and_delete(load: Load, choice: float) -> str:
    """A dataset comes, and goes again at once; the API is killed at about that moment."""
    name, rows = f"passing-{choice}", _some_rows(choice, 50)
    status, made = _once(load, "POST", "/datasets", params={"name": name}, content=rows)
    if status != 201:
        return f"upload: {status}"
    with _killing_api(load, choice / 20):
        status, _ = _once(load, "DELETE", f"/datasets/{made['id']}")
    load.deleted_datasets.add(made["id"])
    if status is None:  # whether it was done is not known; done again, it is
        load.ask("DELETE", f"/datasets/{made['id']}")
    return f"deleted: {status}"


def cut_upload(load: Load, choice: float) -> str:
    """The connection breaks in the middle of an upload."""
    rows = _some_rows(choice, 400)
    head = f"POST /datasets?name=cut HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(rows)}\r\n\r\n".encode()
    part = rows[: int(len(rows) * choice)]
    _send_and_leave(load, head + part)
    return f"{len(part)} of {len(rows)} bytes"


def kill_api_under_upload(load: Load, choice: float) -> str:
    """The API dies at some moment of an upload, which the client then sends again under the same key."""
    name, rows = f"kept-{choice}", _some_rows(choice, 200)
    with _killing_api(load, choice / 2):
        answer = load.ask("POST", "/datasets", key=name, params={"name": name}, content=rows)
    assert answer.status_code in (200, 201), answer.text
    load.datasets[name] = answer.json()["id"]
    return name


def same_key_twice(load: Load, choice: float) -> str:
    """One POST that nobody waits for, and the same once more under the same key."""
    sent = Sent(len(load.jobs), "short", "none")
    load.jobs.append(sent)
    key, body = f"job-{sent.number}", load.body_of(sent)
    content = httpx.Request("POST", "http://a", json=body).content
    head = (
        f"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {key}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    hasty = threading.Thread(target=_send_and_leave, args=(load, head.encode() + content))
    hasty.start()
    with _killing_api(load, choice / 20):
        answer = load.ask("POST", "/jobs", key=key, json=body)
    hasty.join()
    assert answer.status_code == 202, answer.text
    sent.id = answer.json()["id"]
    return f"job {sent.number}"


def _send_and_leave(load: Load, data: bytes) -> None:
    try:
        with socket.create_connection(("127.0.0.1", int(load.world.environment["BURNISH_PORT"])), 5) as connection:
            connection.sendall(data)
    except OSError:
        return  # nobody was there


@contextmanager
def _killing_api(load: Load, after: float) -> Iterator[None]:
    """The API is killed so many seconds after the block began, or when it ends, if that is sooner."""
    done = threading.Event()

    def killer() -> None:
        done.wait(after)
        kill("api")(load, 0.0)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# Every fault, by name. A schedule takes them in random order, each as often as the others, before it repeats one.
FAULTS: dict[str, Fault] = {
    "kill trainer": kill("trainer"),
    "kill trainer in training": kill_training(signal.SIGKILL, of_worker=False),
    "kill worker in training": kill_training(signal.SIGKILL, of_worker=True),
    "kill training worker": kill("training", "up"),
    "kill second worker": kill("training", "second worker"),
    "kill guard of a trainer": kill("trainer guard"),
    "kill api": kill("api"),
    "kill housekeeping": kill("housekeeping"),
    "kill beat": kill("beat"),
    "kill engine controller": kill("controller"),
    "kill engine": kill("engine"),
    "kill helper": kill("helper"),
    "kill up": kill_up,
    "hand over": kill_training(signal.SIGTERM, of_worker=True),
    "rolling restart": rolling_restart,
    "stop a worker past its lease": stop_worker_past_its_lease,
    "flush the queue": flush_queue,
    "queue stopped": queue_away(signal.SIGTERM),
    "queue killed": queue_away(signal.SIGKILL),
    "database restarted": database_restart("fast"),
    "database crashed": database_restart("immediate"),
    "database sessions ended": terminate_backends,
    "disk full": fill_disk,
    "cancel": say("cancel"),
    "pause": say("pause"),
    "resume": say("resume"),
    "retry": say("retry"),
    "delete job": say("delete"),
    "delete model": delete_model,
    "upload and delete": upload_and_delete,
    "upload cut off": cut_upload,
    "api killed under an upload": kill_api_under_upload,
    "one key twice": same_key_twice,
}
