"""A job's states: the one table, the claim, the fence, and what becomes of attempts whose worker is lost."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from app.jobs import attempts
from app.jobs.tables import Job
from app.kit.database import writing
from app.kit.leases import LeaseLost
from app.settings import get_settings
from worker.reconcilers.expired_leases import requeue_expired


@pytest.fixture
def job(client: httpx.Client, dataset: str) -> dict[str, Any]:
    """A queued job, the only one."""
    with writing() as session:
        session.execute(update(Job).where(Job.status.in_(("queued", "running"))).values(status="failed"))
    return dict(client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset}).json())


def expire_lease(id: str) -> None:
    with writing() as session:
        row = session.get_one(Job, id)
        assert row.lease_expires_at is not None
        row.lease_expires_at = row.lease_expires_at.replace(year=2000)


def test_one_of_many_claimers_gets_a_job(job: dict[str, Any]) -> None:
    claimed: list[Job | None] = []
    claimers = [threading.Thread(target=lambda: claimed.append(attempts.claim("here"))) for _ in range(8)]
    for claimer in claimers:
        claimer.start()
    for claimer in claimers:
        claimer.join()
    assert [row.id for row in claimed if row] == [job["id"]]


def test_a_lost_worker_s_job_runs_again_and_the_old_attempt_can_write_nothing(
    client: httpx.Client, job: dict[str, Any]
) -> None:
    first = attempts.claim("first")
    assert first is not None
    expire_lease(job["id"])
    requeue_expired()
    assert client.get(f"/jobs/{job['id']}").json()["status"] == "queued"
    second = attempts.claim("second")
    assert second is not None
    with pytest.raises(LeaseLost), writing() as session:
        attempts.heartbeat(session, first)
    with writing() as session:
        attempts.heartbeat(session, second)
    seen = client.get(f"/jobs/{job['id']}").json()
    assert [(a["number"], a["outcome"]) for a in seen["attempts"]] == [(1, "lost"), (2, None)]


def test_a_live_lease_is_left_alone(client: httpx.Client, job: dict[str, Any]) -> None:
    attempts.claim("alive")
    requeue_expired()
    assert client.get(f"/jobs/{job['id']}").json()["status"] == "running"


def test_a_stopped_worker_hands_its_job_over(client: httpx.Client, job: dict[str, Any]) -> None:
    claimed = attempts.claim("stopped")
    assert claimed is not None
    with writing() as session:
        attempts.hand_over(session, attempts.hold(session, claimed))
    seen = client.get(f"/jobs/{job['id']}").json()
    assert (seen["status"], [attempt["outcome"] for attempt in seen["attempts"]]) == ("queued", ["handed_over"])
    assert attempts.claim("next") is not None


def test_a_job_that_is_lost_again_and_again_fails_with_the_cause(client: httpx.Client, job: dict[str, Any]) -> None:
    for _ in range(get_settings().max_attempts):
        assert attempts.claim("doomed") is not None
        expire_lease(job["id"])
        requeue_expired()
    assert attempts.claim("nobody") is None
    seen = client.get(f"/jobs/{job['id']}").json()
    assert (seen["status"], seen["error"]["code"]) == ("failed", "worker_lost")
    assert len(seen["attempts"]) == get_settings().max_attempts


def test_cancel_is_idempotent_and_legal_only_where_the_table_says(client: httpx.Client, job: dict[str, Any]) -> None:
    claimed = attempts.claim("here")
    assert claimed is not None
    for _ in range(2):
        answer = client.post(f"/jobs/{job['id']}/cancel").json()
        assert (answer["status"], answer["cancel_requested"]) == ("running", True)
    with writing() as session:
        row = attempts.heartbeat(session, claimed)
        assert row.cancel_requested
        attempts.cancelled(session, row)
    assert client.post(f"/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
    assert [event["type"] for event in client.get(f"/jobs/{job['id']}/events").json()["data"]] == [
        "created", "started", "cancel_requested", "cancelled",
    ]  # fmt: skip


def test_an_ended_job_cannot_be_cancelled(client: httpx.Client, job: dict[str, Any]) -> None:
    claimed = attempts.claim("here")
    assert claimed is not None
    with writing() as session:
        attempts.fail(session, attempts.hold(session, claimed), "trainer_error", "It broke.")
    answer = client.post(f"/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state")
    assert "failed" in answer.json()["error"]["message"]
    assert client.get(f"/jobs/{job['id']}").json()["attempts"][0]["reason"] == "It broke."


def test_what_the_trainer_says_becomes_metrics_progress_and_events(client: httpx.Client, job: dict[str, Any]) -> None:
    claimed = attempts.claim("here")
    assert claimed is not None
    step = {
        "type": "step",
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        "tokens": 50,
        "epoch": 0.5,
        "tokens_per_second": 10.0,
        "eta_seconds": 2.0,
    }
    started = {"type": "started", "total_steps": 2, "rows": 20, "tokens": 100, "loss_tokens": 40}
    with writing() as session:
        row = attempts.heartbeat(session, claimed)
        attempts.record(
            session, row, [{"type": "phase", "phase": "training"}, started, step | {"step": 1, "loss": 3.0}]
        )
    with writing() as session:
        row = attempts.heartbeat(session, claimed)
        said = [
            step | {"step": 2, "loss": 2.0},
            {"type": "validation", "step": 2, "loss": 2.5},
            {"type": "warning", "message": "cut"},
        ]
        attempts.record(session, row, said)
    metrics = client.get(f"/jobs/{job['id']}/metrics").json()["data"]
    assert [(m["step"], m["loss"], m["validation_loss"]) for m in metrics] == [(1, 3.0, None), (2, 2.0, 2.5)]
    assert client.get(f"/jobs/{job['id']}/metrics", params={"after": 1}).json()["data"] == metrics[1:]
    progress = client.get(f"/jobs/{job['id']}").json()["progress"]
    assert (progress["phase"], progress["step"], progress["total_steps"], progress["loss"]) == ("training", 2, 2, 2.0)
    events = client.get(f"/jobs/{job['id']}/events").json()["data"]
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert {"phase", "progress", "validation", "warning"} <= {event["type"] for event in events}
    # Its model was stored; the attempt after this one only deploys it, and still tells how far the training came.
    with writing() as session:
        attempts.hand_over(session, attempts.hold(session, claimed))
    again = attempts.claim("elsewhere")
    assert again is not None
    with writing() as session:
        attempts.recall(session, attempts.hold(session, again))
    progress = client.get(f"/jobs/{job['id']}").json()["progress"]
    assert (progress["step"], progress["total_steps"], progress["loss"]) == (2, 2, 2.0)
