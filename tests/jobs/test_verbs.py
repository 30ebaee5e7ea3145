"""Cancel, pause, resume, retry and delete: from every state, twice, and while a worker has the job."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.jobs import attempts, checkpoints
from app.jobs.tables import Attempt, Checkpoint, Event, Job, Metric
from app.kit.database import reading, writing
from tests.datasets.helpers import jsonl, new_row, refusal
from tests.jobs.test_lifecycle import expire_lease, job
from worker.reconcilers.expired_leases import requeue_expired

__all__ = ["job"]

VERBS = ("cancel", "pause", "resume", "retry")
# Verb → state → where it leads (the same state: nothing happens); a state that is not there refuses.
LEADS: dict[str, dict[str, str]] = {
    "cancel": {"queued": "cancelled", "paused": "cancelled", "cancelled": "cancelled"},
    "pause": {"queued": "paused", "paused": "paused"},
    "resume": {"queued": "queued", "paused": "queued"},
    "retry": {"queued": "queued", "failed": "queued"},
    "delete": {"succeeded": "", "failed": "", "cancelled": ""},
}
STATES = ("queued", "paused", "succeeded", "failed", "cancelled")


def put(id: str, **fields: Any) -> None:
    with writing() as session:
        row = session.get_one(Job, id)
        for name, value in fields.items():
            setattr(row, name, value)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("verb", LEADS)
def test_a_verb_does_what_the_table_says_and_twice_is_as_once(
    client: httpx.Client, job: dict[str, Any], verb: str, state: str
) -> None:
    put(job["id"], status=state)
    url = f"/jobs/{job['id']}"
    if state not in LEADS[verb]:
        error = refusal(client.delete(url) if verb == "delete" else client.post(f"{url}/{verb}"), 409, "invalid_state")
        assert f"is {state}" in error["message"]
        assert client.get(url).json()["status"] == state
        return
    if verb == "delete":
        assert client.delete(url).status_code == 204
        refusal(client.get(url), 404, "job_not_found")
        return
    for _ in range(2):
        answer = client.post(f"{url}/{verb}")
        assert (answer.status_code, answer.json()["status"]) == (200, LEADS[verb][state])


def test_a_running_job_pauses_by_its_supervisor_and_goes_on_from_its_step(
    client: httpx.Client, job: dict[str, Any]
) -> None:
    url = f"/jobs/{job['id']}"
    claimed = attempts.claim("here")
    assert claimed is not None
    for _ in range(2):
        asked = client.post(f"{url}/pause").json()
        assert (asked["status"], asked["pause_requested"]) == ("running", True)
    with writing() as session:
        assert attempts.heartbeat(session, claimed).pause_requested
        checkpoints.add(session, attempts.hold(session, claimed), 7, size=1)
        attempts.paused(session, attempts.hold(session, claimed))
    shown = client.get(url).json()
    assert (shown["status"], shown["pause_requested"]) == ("paused", False)
    assert shown["attempts"][0]["outcome"] == "paused"
    assert attempts.claim("other") is None
    assert client.post(f"{url}/resume").json()["status"] == "queued"
    again = attempts.claim("other")
    assert again is not None
    with reading() as session:
        assert [each.step for each in checkpoints.newest_first(session, again.id)] == [7]


def test_a_pause_can_be_taken_back_before_it_happened(client: httpx.Client, job: dict[str, Any]) -> None:
    attempts.claim("here")
    client.post(f"/jobs/{job['id']}/pause")
    shown = client.post(f"/jobs/{job['id']}/resume").json()
    assert (shown["status"], shown["pause_requested"]) == ("running", False)


def test_a_pause_that_was_said_to_a_lost_worker_holds(client: httpx.Client, job: dict[str, Any]) -> None:
    attempts.claim("here")
    client.post(f"/jobs/{job['id']}/pause")
    expire_lease(job["id"])
    requeue_expired()
    shown = client.get(f"/jobs/{job['id']}").json()
    assert (shown["status"], shown["pause_requested"]) == ("paused", False)


def fail(client: httpx.Client, job: dict[str, Any]) -> None:
    claimed = attempts.claim("here")
    assert claimed is not None
    with writing() as session:
        checkpoints.add(session, attempts.hold(session, claimed), 5, size=1)
        attempts.fail(session, attempts.hold(session, claimed), "out_of_memory", "It was too large.")
    assert client.get(f"/jobs/{job['id']}").json()["error"]["code"] == "out_of_memory"


def test_a_retry_goes_on_from_the_last_checkpoint_with_attempts_anew(client: httpx.Client, job: dict[str, Any]) -> None:
    fail(client, job)
    shown = client.post(f"/jobs/{job['id']}/retry").json()
    assert (shown["status"], shown["error"], shown["ended_at"]) == ("queued", None, None)
    for number in (2, 3):  # as many may be lost as ever
        claimed = attempts.claim("here")
        assert claimed is not None
        assert claimed.attempt == number
        with reading() as session:
            assert [each.step for each in checkpoints.newest_first(session, claimed.id)] == [5]
        with writing() as session:
            attempts.lose(session, attempts.hold(session, claimed), "trainer_died", "It died.")
        assert client.get(f"/jobs/{job['id']}").json()["status"] == "queued"


def test_a_retry_is_not_ended_by_a_wish_that_came_too_late(client: httpx.Client, job: dict[str, Any]) -> None:
    put(job["id"], status="failed", cancel_requested=True, pause_requested=True)
    shown = client.post(f"/jobs/{job['id']}/retry").json()
    assert (shown["status"], shown["cancel_requested"], shown["pause_requested"]) == ("queued", False, False)


def test_a_retry_needs_what_the_job_is_made_of(client: httpx.Client, job: dict[str, Any]) -> None:
    client.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    own = client.post("/datasets", content=jsonl([new_row()])).raise_for_status().json()["id"]
    job = client.post("/jobs", json={"base_model": "demo-base", "dataset": own}).raise_for_status().json()
    fail(client, job)
    client.delete(f"/datasets/{own}").raise_for_status()
    assert own in refusal(client.post(f"/jobs/{job['id']}/retry"), 409, "in_use")["message"]


def test_a_retry_needs_its_name(client: httpx.Client, job: dict[str, Any]) -> None:
    fail(client, job)
    other = {"base_model": "demo-base", "dataset": job["dataset"], "name": job["name"]}
    client.post("/jobs", json=other).raise_for_status()
    refusal(client.post(f"/jobs/{job['id']}/retry"), 409, "name_taken")
    assert client.get(f"/jobs/{job['id']}").json()["status"] == "failed"


def test_nothing_is_left_of_a_deleted_job(client: httpx.Client, job: dict[str, Any]) -> None:
    fail(client, job)
    client.delete(f"/jobs/{job['id']}").raise_for_status()
    with reading() as session:
        for table in (Attempt, Checkpoint, Event, Metric):
            assert session.query(table).filter_by(job_id=job["id"]).count() == 0


def test_a_running_job_is_not_deleted(client: httpx.Client, job: dict[str, Any]) -> None:
    attempts.claim("here")
    refusal(client.delete(f"/jobs/{job['id']}"), 409, "invalid_state")
