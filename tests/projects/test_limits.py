"""Limits of projects and keys: what is over one is refused in words, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import update

from app.jobs import attempts
from app.jobs.lifecycle import ENDED
from app.jobs.tables import Job
from app.kit.database import reading, writing
from app.projects import limits, stored
from app.settings import get_settings
from tests.datasets.helpers import jsonl, new_row, refusal
from tests.projects.conftest import As, Keys


@dataclass(frozen=True)
class Limited:
    """A new project with two keys, and a way to set limits."""

    project: str
    clients: list[httpx.Client]
    keys: list[str]
    admin: httpx.Client

    def limit(self, **amounts: int | None) -> None:
        self.admin.patch(f"/projects/{self.project}", json={"limits": amounts}).raise_for_status()

    def upload(self) -> httpx.Response:
        return self.clients[0].post("/datasets", content=jsonl([new_row()]))

    def job(self, dataset: str) -> httpx.Response:
        return self.clients[0].post("/jobs", json={"base_model": "demo-base", "dataset": dataset})


@pytest.fixture
def limited(keys: Keys, client_of: As) -> Iterator[Limited]:
    admin = client_of(keys.admin)
    project = admin.post("/projects", json={"name": f"limited-{uuid4().hex[:8]}"}).raise_for_status().json()
    made = [admin.post("/keys", json={"project": project["id"], "role": "write"}).json() for _ in range(2)]
    yield Limited(project["id"], [client_of(key["key"]) for key in made], [key["id"] for key in made], admin)
    with writing() as session:  # no other test shall find its jobs to claim
        session.execute(update(Job).where(Job.status.not_in(ENDED)).values(status="cancelled"))


def test_there_is_no_limit_until_one_is_set(limited: Limited) -> None:
    answer = limited.clients[0].get("/jobs").raise_for_status()
    assert not any(name.startswith("x-ratelimit") for name in answer.headers)
    assert set(limited.admin.get(f"/projects/{limited.project}").json()["limits"].values()) == {None}


def test_requests_of_a_project_are_counted_over_its_keys(limited: Limited) -> None:
    limited.limit(requests_per_minute=3)
    first, second = limited.clients
    left = [client.get("/jobs").headers["x-ratelimit-remaining-requests"] for client in (first, second, first)]
    assert left == ["2", "1", "0"]
    answer = second.get("/jobs")
    assert "3 requests a minute" in refusal(answer, 429, "rate_limit_exceeded")["message"]
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert answer.headers["x-ratelimit-limit-requests"] == "3"
    assert answer.headers["x-ratelimit-reset-requests"] == f"{answer.headers['Retry-After']}s"
    assert limited.admin.get("/jobs").status_code == 200  # another project's
    limited.limit(requests_per_minute=None)
    assert second.get("/jobs").status_code == 200


def test_requests_of_a_key_are_counted_by_themselves(limited: Limited) -> None:
    limited.admin.patch(f"/keys/{limited.keys[0]}", json={"limits": {"requests_per_minute": 1}}).raise_for_status()
    assert limited.clients[0].get("/jobs").status_code == 200
    refusal(limited.clients[0].get("/jobs"), 429, "rate_limit_exceeded")
    assert limited.clients[1].get("/jobs").status_code == 200


def test_of_many_at_once_as_many_pass_as_may(limited: Limited) -> None:
    limited.limit(requests_per_minute=5)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: limited.clients[0].get("/jobs").status_code, range(20)))
    assert (answers.count(200), answers.count(429)) == (5, 15)


def test_a_project_without_tokens_asks_nothing_until_the_minute_is_over(limited: Limited) -> None:
    limited.limit(tokens_per_minute=100)
    body = {"model": "demo-base", "messages": []}
    rates = (limits.Rates(limited.project, limits.ProjectLimits(tokens_per_minute=100)),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(get_settings(), "engine_wait_seconds", 0.1)
        answer = limited.clients[0].post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.headers["x-ratelimit-remaining-tokens"]) == (503, "100")
        limits.spend("tokens", rates, 130)
        answer = limited.clients[1].post("/v1/chat/completions", json=body)
    refusal(answer, 429, "rate_limit_exceeded")
    assert answer.headers["x-ratelimit-remaining-tokens"] == "0"
    assert int(answer.headers["Retry-After"]) >= 1
    assert limited.clients[1].get("/jobs").status_code == 200  # which needs none


def test_a_queue_that_is_away_stops_nobody(limited: Limited, monkeypatch: pytest.MonkeyPatch) -> None:
    limited.limit(requests_per_minute=1)
    monkeypatch.setattr(limits, "_counters", lambda: limits._storage("redis://127.0.0.1:9", socket_timeout=1))
    assert [limited.clients[0].get("/jobs").status_code for _ in range(3)] == [200, 200, 200]


def test_an_upload_over_the_project_s_limit_is_refused(limited: Limited) -> None:
    limited.limit(upload_bytes=10)
    assert "10 bytes" in refusal(limited.upload(), 413, "too_large")["message"]
    limited.limit(upload_bytes=None)
    assert limited.upload().status_code == 201


def test_storage_that_is_full_takes_no_more(limited: Limited) -> None:
    first = limited.upload().raise_for_status().json()
    with reading() as session:
        full = stored.stored_bytes(session, limited.project)
    assert full == first["bytes"]
    limited.limit(storage_bytes=full + 1)
    refusal(limited.upload(), 409, "limit_reached")
    assert len(limited.clients[0].get("/datasets").json()["data"]) == 1
    limited.limit(storage_bytes=full)
    assert str(full) in refusal(limited.job(first["id"]), 409, "limit_reached")["message"]
    limited.clients[0].delete(f"/datasets/{first['id']}").raise_for_status()
    assert limited.upload().status_code == 201


def _both(call: Callable[[int], httpx.Response]) -> list[int]:
    with ThreadPoolExecutor(6) as pool:
        return [answer.status_code for answer in pool.map(call, range(6))]


def test_uploads_at_once_do_not_pass_the_limit_together(limited: Limited) -> None:
    size = len(jsonl([new_row()]))
    limited.limit(storage_bytes=2 * size + size // 2)
    assert sorted(_both(lambda _: limited.upload())) == [201, 201, 409, 409, 409, 409]
    with reading() as session:
        assert stored.stored_bytes(session, limited.project) == 2 * size


def test_jobs_at_once_do_not_pass_the_limit_together(limited: Limited) -> None:
    dataset = limited.upload().json()["id"]
    limited.limit(queued_jobs=2)
    assert sorted(_both(lambda _: limited.job(dataset))) == [202, 202, 409, 409, 409, 409]
    refusal(limited.job(dataset), 409, "limit_reached")
    for job in limited.clients[0].get("/jobs", params={"status": "queued"}).json()["data"][:1]:
        limited.clients[0].post(f"/jobs/{job['id']}/cancel").raise_for_status()
    assert limited.job(dataset).status_code == 202


def _claimed() -> list[str]:
    """Claims whatever may run; the projects of it."""
    found = []
    while (job := attempts.claim("test")) is not None:
        found.append(job.project_id)
    return found


def test_a_job_over_the_limit_waits_for_its_turn_and_holds_up_no_other(
    limited: Limited, keys: Keys, client_of: As
) -> None:
    _claimed()
    dataset = limited.upload().json()["id"]
    limited.limit(running_jobs=1)
    for _ in range(3):
        limited.job(dataset).raise_for_status()
    ours = client_of(keys.ours["write"])
    other = ours.post("/datasets", content=jsonl([new_row()])).json()["id"]
    ours.post("/jobs", json={"base_model": "demo-base", "dataset": other}).raise_for_status()
    assert sorted(claimed := _claimed()) == sorted([limited.project, *set(claimed) - {limited.project}])
    assert len(claimed) == 2
    with writing() as session:
        running = session.query(Job).filter_by(project_id=limited.project, status="running").one()
        attempts.cancelled(session, running)
    assert _claimed() == [limited.project]


def test_claims_at_once_do_not_pass_the_limit_together(limited: Limited) -> None:
    _claimed()
    dataset = limited.upload().json()["id"]
    limited.limit(running_jobs=2)
    for _ in range(6):
        limited.job(dataset).raise_for_status()
    with ThreadPoolExecutor(6) as pool:
        claimed = [job for job in pool.map(lambda _: attempts.claim("test"), range(6)) if job is not None]
    assert len(claimed) == 2


@pytest.mark.parametrize(
    ("named", "status"),
    [
        ({"requests_per_minute": 0}, 422),
        ({"storage_bytes": -1}, 422),
        ({"unknown": 1}, 422),
        ({"running_jobs": 2**40}, 422),
    ],
)
def test_a_limit_that_is_none_is_refused(limited: Limited, named: dict[str, Any], status: int) -> None:
    assert limited.admin.patch(f"/projects/{limited.project}", json={"limits": named}).status_code == status


def test_only_what_is_named_changes(limited: Limited) -> None:
    limited.limit(queued_jobs=7, storage_bytes=100)
    limited.limit(queued_jobs=None)
    shown = limited.admin.get(f"/projects/{limited.project}").json()["limits"]
    assert {name: value for name, value in shown.items() if value is not None} == {"storage_bytes": 100}
    made = limited.admin.post("/keys", json={"role": "read", "limits": {"tokens_per_minute": 9}}).json()
    assert made["limits"] == {"requests_per_minute": None, "tokens_per_minute": 9}
