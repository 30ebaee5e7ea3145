"""Checkpoints in the database and in storage: the newest are kept, however the job ends, until it is deleted; nothing else."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.jobs import attempts, checkpoints
from app.jobs.lifecycle import move
from app.jobs.tables import Job
from app.kit import storage
from app.kit.database import reading, writing
from tests.worker.test_reconcilers import job, store
from worker.reconcilers.leftovers import remove_leftovers

__all__ = ["job"]


def keep(claimed: Job, step: int, loss: float | None = None) -> None:
    """What a supervisor does with a checkpoint that its trainer told of."""
    store(checkpoints.storage_key(claimed, step))
    with writing() as session:
        dropped = checkpoints.add(session, attempts.hold(session, claimed), step, size=1, validation_loss=loss)
    checkpoints.drop(dropped)


def stored() -> set[str]:
    return {key.rsplit("/", 1)[1] for key in storage.folders("checkpoints")}


def claim() -> Job:
    claimed = attempts.claim("here")
    assert claimed is not None
    return claimed


def listed(client: httpx.Client, job: dict[str, Any]) -> list[tuple[int, int]]:
    found = client.get(f"/jobs/{job['id']}/checkpoints").raise_for_status().json()["data"]
    return [(each["attempt"], each["step"]) for each in found]


@pytest.fixture(autouse=True)
def none_before(job: dict[str, Any]) -> None:
    remove_leftovers()
    for key in storage.folders("checkpoints"):
        storage.delete_folder(key)


def test_the_two_newest_are_kept(job: dict[str, Any], client: httpx.Client) -> None:
    claimed = claim()
    for step in (10, 20, 30):
        keep(claimed, step)
    assert listed(client, job) == [(1, 30), (1, 20)]
    remove_leftovers()
    assert stored() == {"1-20", "1-30"}


def test_the_best_is_kept_beside_them(job: dict[str, Any], client: httpx.Client) -> None:
    claimed = claim()
    for step, loss in ((10, 3.0), (20, 1.5), (30, 2.0), (40, 1.5), (50, None), (60, 2.5)):
        keep(claimed, step, loss)
    found = client.get(f"/jobs/{job['id']}/checkpoints").json()["data"]
    assert [(each["step"], each["validation_loss"]) for each in found] == [(60, 2.5), (50, None), (20, 1.5)]
    remove_leftovers()
    assert stored() == {"1-20", "1-50", "1-60"}


def test_a_validation_that_comes_after_its_checkpoint_is_told_of_there(
    job: dict[str, Any], client: httpx.Client
) -> None:
    """As where a run was killed between the two."""
    first = claim()
    for step in (5, 10):
        keep(first, step)
    with writing() as session:
        attempts.lose(session, attempts.hold(session, first), "trainer_died", "It died.")
    second = claim()
    with writing() as session:
        attempts.record(session, attempts.hold(session, second), [{"type": "validation", "step": 10, "loss": 1.25}])
    found = client.get(f"/jobs/{job['id']}/checkpoints").json()["data"]
    assert [(each["step"], each["validation_loss"]) for each in found] == [(10, 1.25), (5, None)]


def test_that_training_ended_early_is_an_event(job: dict[str, Any], client: httpx.Client) -> None:
    claimed = claim()
    early = {"type": "stopped_early", "step": 12, "validations": 3, "best_step": 6, "loss": 1.5}
    with writing() as session:
        attempts.record(session, attempts.hold(session, claimed), [early])
    events = client.get(f"/jobs/{job['id']}/events").json()["data"]
    (told,) = [event for event in events if event["type"] == "stopped_early"]
    assert told["message"] == (
        "Ended at step 12: 3 validations in a row had no lower loss. The lowest, 1.5000, is that of step 6."
    )


def test_the_next_attempt_goes_on_from_the_newest_that_is_there(job: dict[str, Any], client: httpx.Client) -> None:
    first = claim()
    keep(first, 10)
    keep(first, 20)
    with writing() as session:
        attempts.lose(session, attempts.hold(session, first), "trainer_died", "It died.")
    remove_leftovers()
    second = claim()
    assert str(checkpoints.fetch_newest(second)).endswith("1-20")
    storage.delete_folder(checkpoints.storage_key(first, 20))
    assert str(checkpoints.fetch_newest(second)).endswith("1-10")
    keep(second, 15)
    assert listed(client, job) == [(1, 20), (2, 15)]


def test_one_that_cannot_be_read_is_forgotten(job: dict[str, Any], client: httpx.Client) -> None:
    claimed = claim()
    keep(claimed, 10)
    keep(claimed, 20)
    with writing() as session:
        checkpoints.forget_newest(session, attempts.hold(session, claimed))
    assert listed(client, job) == [(1, 10)]


def test_what_is_stored_and_has_no_row_yet_stays_while_its_attempt_runs(job: dict[str, Any]) -> None:
    claimed = claim()
    store(checkpoints.storage_key(claimed, 10))
    remove_leftovers()
    assert stored() == {"1-10"}
    with writing() as session:
        attempts.lose(session, attempts.hold(session, claimed), "worker_lost", "It was lost.")
    remove_leftovers()
    assert stored() == set()


@pytest.mark.parametrize("ends", ["fail", "cancel", "succeed"])
def test_they_stay_however_the_job_ended_until_it_is_deleted(
    job: dict[str, Any], client: httpx.Client, ends: str
) -> None:
    claimed = claim()
    keep(claimed, 10)
    with writing() as session:
        row = attempts.hold(session, claimed)
        if ends == "fail":
            attempts.fail(session, row, "trainer_error", "It failed.")
        elif ends == "cancel":
            attempts.cancelled(session, row)
        else:
            move(session, row, "succeed", "It answers.")
    remove_leftovers()
    assert stored() == {"1-10"}
    client.delete(f"/jobs/{job['id']}").raise_for_status()
    remove_leftovers()
    assert stored() == set()


def test_a_resumed_attempt_measures_again_what_came_after_its_checkpoint(
    job: dict[str, Any], client: httpx.Client
) -> None:
    step = {"type": "step", "learning_rate": 0.1, "grad_norm": 1.0, "tokens": 7, "epoch": 0.5}
    step |= {"tokens_per_second": 10.0, "eta_seconds": 1.0}
    started = {"type": "started", "rows": 1, "tokens": 9, "loss_tokens": 3, "total_steps": 4, "gpus": 0}
    first = claim()
    with writing() as session:
        row = attempts.hold(session, first)
        attempts.record(session, row, [started | {"start_step": 0, "differences": []}])
        attempts.record(session, row, [step | {"step": number, "loss": 1.0} for number in (1, 2, 3)])
        attempts.lose(session, row, "trainer_died", "It died.")
    second = claim()
    with writing() as session:
        row = attempts.hold(session, second)
        attempts.record(session, row, [started | {"start_step": 2, "differences": ["threads 2, was 4"]}])
        attempts.record(session, row, [step | {"step": number, "loss": 2.0} for number in (3, 4)])
    measured = client.get(f"/jobs/{job['id']}/metrics").json()["data"]
    assert [(each["step"], each["loss"]) for each in measured] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    told = client.get(f"/jobs/{job['id']}").json()["attempts"]
    assert [(each["start_step"], each["resume"]) for each in told] == [(0, None), (2, "approximate")]
    assert told[1]["resume_reason"] == "threads 2, was 4"
    with reading() as session:
        assert [attempt.tokens for attempt in session.get_one(Job, job["id"]).attempts] == [21, 14]
