"""GET /jobs/{id}/logs: a list, a stream that goes on until the job has ended, and plain text; nothing is lost or doubled."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse

from app.jobs import attempts, logs
from app.jobs.tables import Job
from app.kit.database import writing
from app.kit.leases import LeaseLost
from tests.conftest import Backend
from tests.jobs.test_lifecycle import expire_lease, job
from worker.log_tail import log_file
from worker.reconcilers.expired_leases import requeue_expired
from worker.supervisor import Beat

__all__ = ["job"]


@pytest.fixture
def claimed(job: dict[str, Any]) -> Job:
    found = attempts.claim("here")
    assert found is not None
    return found


def say(claimed: Job, *texts: str) -> None:
    for text in texts:
        with writing() as session:
            logs.add(session, attempts.hold(session, claimed), text)


def fail(claimed: Job) -> None:
    with writing() as session:
        attempts.fail(session, attempts.hold(session, claimed), "trainer_error", "It broke.")


def stream(client: httpx.Client, id: str, last: int | None = None) -> list[tuple[str, str]]:
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with connect_sse(client, "GET", f"/jobs/{id}/logs", headers=headers) as source:
        return [(event.id, json.loads(event.data)["text"]) for event in source.iter_sse()]


def test_a_list_is_paged_and_filtered_by_attempt(client: httpx.Client, claimed: Job) -> None:
    path = f"/jobs/{claimed.id}/logs"
    assert client.get(path).json() == {"object": "list", "data": [], "has_more": False}
    say(claimed, "one\n", "two\nthree\n")
    expire_lease(claimed.id)
    requeue_expired()
    second = attempts.claim("there")
    assert second is not None
    say(second, "again\n")
    found = client.get(path).json()["data"]
    assert [(each["id"], each["attempt"], each["text"]) for each in found] == [
        (1, 1, "one\n"), (2, 1, "two\nthree\n"), (3, 2, "again\n"),
    ]  # fmt: skip
    assert found[0]["object"] == "log"
    first = client.get(path, params={"limit": 1}).json()
    assert ([each["id"] for each in first["data"]], first["has_more"]) == ([1], True)
    assert [each["id"] for each in client.get(path, params={"after": 1, "attempt": 1}).json()["data"]] == [2]
    assert client.get(path, params={"attempt": 2}, headers={"Accept": "text/plain"}).text == "again\n"
    with pytest.raises(LeaseLost):
        say(claimed, "too late\n")


def test_a_stream_brings_every_line_and_ends_with_the_job(client: httpx.Client, claimed: Job) -> None:
    seen: list[tuple[str, str]] = []
    say(claimed, "one\n")
    with httpx.Client(base_url=client.base_url, timeout=60) as other:
        reader = threading.Thread(target=lambda: seen.extend(stream(other, claimed.id)))
        reader.start()
        say(claimed, "two\n", "three\n")
        fail(claimed)
        reader.join(30)
    assert seen == [("1", "one\n"), ("2", "two\n"), ("3", "three\n")]
    assert stream(client, claimed.id, last=2) == seen[2:]
    assert stream(client, claimed.id, last=3) == []


def test_plain_text_is_all_of_it(client: httpx.Client, claimed: Job) -> None:
    say(claimed, *(f"line {number}\n" for number in range(50)))
    answer = client.get(f"/jobs/{claimed.id}/logs", headers={"Accept": "text/plain"})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.splitlines() == [f"line {number}" for number in range(50)]


def test_a_heartbeat_writes_what_is_new_and_the_end_the_rest(client: httpx.Client, claimed: Job) -> None:
    beat, log = Beat(claimed, threading.Event()), log_file(claimed)
    log.write_bytes(b"one\ntwo \0\xff\nthr")
    beat()
    log.write_bytes(b"one\ntwo \0\xff\nthree\n" + b"x" * 200_000)
    beat()
    beat.write_last_lines()
    beat.write_last_lines()
    fail(claimed)
    text = client.get(f"/jobs/{claimed.id}/logs", headers={"Accept": "text/plain"}).text
    assert text.splitlines()[:3] == ["one", "two \ufffd\ufffd", "three"]
    assert "".join(text.splitlines()[3:]) == "x" * 200_000


def test_what_another_attempt_overtook_writes_nothing(claimed: Job, client: httpx.Client) -> None:
    beat = Beat(claimed, threading.Event())
    log_file(claimed).write_bytes(b"late\n")
    expire_lease(claimed.id)
    requeue_expired()
    with pytest.raises(LeaseLost):
        beat.write_last_lines()
    assert client.get(f"/jobs/{claimed.id}/logs").json()["data"] == []


def test_the_log_goes_with_the_job(client: httpx.Client, claimed: Job, backend: Backend) -> None:
    say(claimed, "one\n")
    fail(claimed)
    client.delete(f"/jobs/{claimed.id}").raise_for_status()
    assert client.get(f"/jobs/{claimed.id}/logs").json()["error"]["code"] == "job_not_found"
