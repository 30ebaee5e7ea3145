"""Whatever is said to several jobs, and whatever their workers do meanwhile, in any order: what docs/api.md promises holds.

More, and other orders each time: BURNISH_TEST_EXAMPLES=1000.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.jobs import attempts, checkpoints
from app.jobs.lifecycle import move
from app.jobs.tables import Attempt, Checkpoint, Event, Job, Metric
from app.kit.database import reading, writing
from app.kit.leases import LeaseLost
from tests.jobs.test_lifecycle import expire_lease
from worker.reconcilers.expired_leases import requeue_expired
from worker.supervisor import STOPPED_BY

EXAMPLES = int(os.environ.get("BURNISH_TEST_EXAMPLES", "0"))
MAX_ATTEMPTS = 3  # BURNISH_MAX_ATTEMPTS by default
ENDED = ("succeeded", "failed", "cancelled")
# Verb → the states it is said to work from (docs/api.md), → those where there is nothing left to do.
FROM = {
    "cancel": ("queued", "running", "paused"), "pause": ("queued", "running"), "resume": ("paused",), "retry": ("failed",)
}  # fmt: skip
NOTHING_LEFT = {
    "cancel": ("cancelled",), "pause": ("paused",), "resume": ("queued", "running"), "retry": ("queued", "running")
}  # fmt: skip
WHICH = st.integers(0, 11)


@dataclass
class Expected:
    """What a job must look like."""

    id: str
    status: str = "queued"
    cancel: bool = False
    pause: bool = False
    outcomes: list[str | None] = field(default_factory=list)
    lost: int = 0  # since it was last tried again
    metrics: dict[int, float] = field(default_factory=dict)
    checkpoints: list[tuple[int, int]] = field(default_factory=list)  # (step, attempt), the newest first
    begun: bool = False

    def end(self, outcome: str, status: str) -> None:
        """The attempt ends, and the job is in this state."""
        self.outcomes[-1] = outcome
        self.settle(status)

    def settle(self, status: str) -> None:
        self.status, self.pause = status, False
        if status in ("succeeded", "cancelled"):
            self.checkpoints = []

    def away(self, outcome: str, otherwise: str) -> None:
        """The worker is gone: what was said meanwhile holds."""
        self.end(outcome, "cancelled" if self.cancel else "paused" if self.pause else otherwise)

    def lose(self) -> None:
        self.lost += 1
        self.away("lost", "queued" if self.lost < MAX_ATTEMPTS else "failed")


class Jobs(RuleBasedStateMachine):
    """Users over HTTP and workers in the database, on the same jobs."""

    def __init__(self, client: httpx.Client, dataset: str) -> None:
        super().__init__()
        self.client, self.dataset = client, dataset
        self.jobs: list[Expected] = []
        self.deleted: list[str] = []
        self.claims: list[tuple[Job, Expected]] = []

    @initialize()
    def three_jobs(self) -> None:
        """One that failed, one that runs and one that is paused, and no others."""
        with writing() as session:
            session.execute(delete(Job))
        for _ in range(3):
            self.create()
        self.claim()
        self.fail(0)
        self.claim()
        self.pause(2)

    # What users do.

    @precondition(lambda self: len(self.jobs) < 5)
    @rule()
    def create(self) -> None:
        answer = self.client.post("/jobs", json={"base_model": "demo-base", "dataset": self.dataset})
        assert answer.status_code == 202
        self.jobs.append(Expected(answer.json()["id"]))

    @precondition(lambda self: self.jobs)
    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        self.say("cancel", which)

    @precondition(lambda self: self.jobs)
    @rule(which=WHICH)
    def pause(self, which: int) -> None:
        self.say("pause", which)

    @precondition(lambda self: self.jobs)
    @rule(which=WHICH)
    def resume(self, which: int) -> None:
        self.say("resume", which)

    @precondition(lambda self: self.jobs)
    @rule(which=WHICH)
    def retry(self, which: int) -> None:
        self.say("retry", which)

    def say(self, verb: str, which: int) -> None:
        job = self.jobs[which % len(self.jobs)]
        before = self.seen(job.id)
        answer = self.client.post(f"/jobs/{job.id}/{verb}")
        if job.status not in FROM[verb] + NOTHING_LEFT[verb]:
            self.refused(
                answer, f"The job {job.id} is {job.status}; to {verb} it, it must be {' or '.join(FROM[verb])}."
            )
            assert self.seen(job.id) == before
            return
        assert answer.status_code == 200, answer.text
        nothing_left = job.status in NOTHING_LEFT[verb] and not (verb == "resume" and job.pause)
        if nothing_left or (job.status == "running" and getattr(job, verb, False)):
            assert self.seen(job.id) == before
        match verb:
            case "cancel":
                job.cancel = True
                if job.status != "running":
                    job.settle("cancelled")
            case "pause":
                if job.status == "queued":
                    job.settle("paused")
                job.pause = job.status == "running"
            case "resume":
                job.pause = False
                job.status = "queued" if job.status == "paused" else job.status
            case "retry" if job.status == "failed":
                job.status, job.cancel, job.lost = "queued", False, 0
        assert answer.json()["status"] == job.status

    @precondition(lambda self: self.jobs)
    @rule(which=WHICH)
    def delete(self, which: int) -> None:
        job = self.jobs[which % len(self.jobs)]
        before = self.seen(job.id)
        answer = self.client.delete(f"/jobs/{job.id}")
        if job.status in ENDED:
            assert answer.status_code == 204
            self.jobs.remove(job)
            self.deleted.append(job.id)
        else:
            self.refused(answer, f"The job {job.id} is {job.status}; to delete it, it must be {' or '.join(ENDED)}.")
            assert self.seen(job.id) == before

    @precondition(lambda self: self.deleted)
    @rule(verb=st.sampled_from(sorted(FROM)), which=WHICH)
    def say_to_a_deleted_one(self, verb: str, which: int) -> None:
        assert self.client.post(f"/jobs/{self.deleted[which % len(self.deleted)]}/{verb}").status_code == 404

    # What workers do.

    @rule()
    def claim(self) -> None:
        claimed = attempts.claim("here")
        oldest = min((job for job in self.jobs if job.status == "queued"), key=lambda job: job.id, default=None)
        assert (claimed.id if claimed else None) == (oldest.id if oldest else None)
        if claimed and oldest:
            oldest.status, oldest.begun = "running", False
            oldest.outcomes.append(None)
            assert claimed.attempt == len(oldest.outcomes)
            self.claims.append((claimed, oldest))

    def write(self, which: int, change: Callable[[Session, Job, Expected], Any]) -> Expected | None:
        """The attempt writes, if it is the current one: returns its job. Any other one is told so, and changes nothing."""
        claimed, job = self.claims[which % len(self.claims)]
        if job.status == "running" and claimed.attempt == len(job.outcomes):
            with writing() as session:
                change(session, attempts.hold(session, claimed), job)
            return job
        before = self.seen(job.id)
        with pytest.raises(LeaseLost), writing() as session:
            change(session, attempts.heartbeat(session, claimed), job)
        assert self.seen(job.id) == before
        return None

    @precondition(lambda self: self.claims)
    @rule(which=WHICH, count=st.integers(1, 3))
    def train(self, which: int, count: int) -> None:
        def said(session: Session, row: Job, job: Expected) -> None:
            first = max(job.metrics, default=0) if job.begun else (job.checkpoints or [(0, 0)])[0][0]
            events: list[dict[str, Any]] = []
            if not job.begun:
                job.metrics = {step: loss for step, loss in job.metrics.items() if step <= first}
                start = {"start_step": first, "differences": [], "rows": 20, "tokens": 9, "loss_tokens": 9}
                events.append({"type": "started", "total_steps": 100} | start)
            for step in range(first + 1, first + count + 1):
                job.metrics[step] = 10 * row.attempt + step
                measured = {"learning_rate": 1e-3, "grad_norm": 1.0, "tokens": 5, "epoch": 0.1}
                speed = {"tokens_per_second": 1.0, "eta_seconds": 1.0}
                events.append({"type": "step", "step": step, "loss": job.metrics[step]} | measured | speed)
            attempts.record(session, row, events)
            job.begun = True

        self.write(which, said)

    @precondition(lambda self: self.claims)
    @rule(which=WHICH)
    def checkpoint(self, which: int) -> None:
        def add(session: Session, row: Job, job: Expected) -> None:
            step = max(job.metrics, default=0)
            if job.begun and (step, row.attempt) not in job.checkpoints:
                checkpoints.add(session, row, step, size=1)
                job.checkpoints = sorted([*job.checkpoints, (step, row.attempt)], reverse=True)[:2]

        self.write(which, add)

    @precondition(lambda self: self.claims)
    @rule(which=WHICH)
    def stop_as_wanted(self, which: int) -> None:
        def stop(session: Session, row: Job, job: Expected) -> None:
            assert (row.cancel_requested, row.pause_requested) == (job.cancel, job.pause)
            if job.cancel:
                STOPPED_BY["cancel"](session, row)
                job.end("cancelled", "cancelled")
            elif job.pause:
                STOPPED_BY["pause"](session, row)
                job.end("paused", "paused")

        self.write(which, stop)

    @precondition(lambda self: self.claims)
    @rule(which=WHICH)
    def hand_over(self, which: int) -> None:
        if job := self.write(which, lambda session, row, _: STOPPED_BY["shutdown"](session, row)):
            job.away("handed_over", "queued")

    @precondition(lambda self: self.claims)
    @rule(which=WHICH)
    def succeed(self, which: int) -> None:
        def succeed(session: Session, row: Job, _: Expected) -> None:
            attempts.end(session, row, "succeeded")
            move(session, row, "succeed", "It answers.")

        if job := self.write(which, succeed):
            job.end("succeeded", "succeeded")

    @precondition(lambda self: self.claims)
    @rule(which=WHICH)
    def fail(self, which: int) -> None:
        if job := self.write(which, lambda session, row, _: attempts.fail(session, row, "trainer_error", "It broke.")):
            job.end("failed", "failed")

    @precondition(lambda self: self.claims)
    @rule(which=WHICH)
    def trainer_dies(self, which: int) -> None:
        if job := self.write(which, lambda session, row, _: attempts.lose(session, row, "trainer_died", "It died.")):
            job.lose()

    @precondition(lambda self: any(job.status == "running" for job in self.jobs))
    @rule(which=WHICH)
    def worker_is_lost(self, which: int) -> None:
        running = [job for job in self.jobs if job.status == "running"]
        job = running[which % len(running)]
        expire_lease(job.id)
        requeue_expired()
        job.lose()

    # What holds after each of it.

    def seen(self, id: str) -> tuple[Any, ...]:
        """All that there is of a job: what the API shows, and its rows."""
        return self.client.get(f"/jobs/{id}").json(), *(rows.get(id) for rows in self.rows([id]))

    def rows(self, ids: list[str]) -> list[dict[str, list[Any]]]:
        """By job, in order: numbers of events, (step, loss) of metrics, (step, attempt) of checkpoints."""
        columns: list[tuple[Any, ...]] = [
            (Event.number,),
            (Metric.step, Metric.data),
            (Checkpoint.step, Checkpoint.attempt),
        ]
        found: list[dict[str, list[Any]]] = []
        with reading() as session:
            for wanted in columns:
                owner = wanted[0].class_.job_id
                by_job: dict[str, list[Any]] = {}
                for id, *values in session.execute(select(owner, *wanted).where(owner.in_(ids)).order_by(wanted[0])):
                    by_job.setdefault(id, []).append(values)
                found.append(by_job)
        return found

    def refused(self, answer: httpx.Response, sentence: str) -> None:
        assert answer.status_code == 409, answer.text
        error = answer.json()["error"]
        assert (error["code"], error["message"]) == ("invalid_state", sentence)

    @invariant()
    def jobs_are_as_promised(self) -> None:
        listed = {each["id"]: each for each in self.client.get("/jobs").json()["data"]}
        assert sorted(listed) == sorted(job.id for job in self.jobs)
        events, metrics, kept = self.rows(list(listed))
        for job in self.jobs:
            shown = listed[job.id]
            flags = (shown["status"], shown["cancel_requested"], shown["pause_requested"])
            assert flags == (job.status, job.cancel, job.pause)
            assert [each["number"] for each in shown["attempts"]] == list(range(1, len(job.outcomes) + 1))
            assert [each["outcome"] for each in shown["attempts"]] == job.outcomes
            assert job.outcomes.count(None) == (job.status == "running")
            assert (shown["ended_at"] is not None) == (job.status in ENDED)
            assert (shown["error"] is not None) == (job.status == "failed")
            assert [number for (number,) in events[job.id]] == list(range(1, len(events[job.id]) + 1))
            assert [(step, data["loss"]) for step, data in metrics.get(job.id, [])] == sorted(job.metrics.items())
            assert sorted(map(tuple, kept.get(job.id, []))) == sorted(job.checkpoints)

    def teardown(self) -> None:
        """The lists of the API say the same as the rows."""
        for job in self.jobs:
            events, metrics, kept = (
                self.client.get(f"/jobs/{job.id}/{part}").json()["data"]
                for part in ("events?limit=1000", "metrics", "checkpoints")
            )
            assert [event["id"] for event in events] == list(range(1, len(events) + 1))
            assert {each["step"]: each["loss"] for each in metrics} == job.metrics
            assert [(each["step"], each["attempt"]) for each in kept] == job.checkpoints

    @invariant()
    def nothing_is_left_of_the_deleted(self) -> None:
        if self.deleted:
            assert self.client.get(f"/jobs/{self.deleted[-1]}").status_code == 404
        with reading() as session:
            for table in (Attempt, Checkpoint, Event, Metric):
                gone = select(func.count()).select_from(table).where(table.job_id.in_(self.deleted))
                assert session.scalar(gone) == 0


def test_whatever_is_said_and_done_in_any_order_jobs_are_as_promised(client: httpx.Client, dataset: str) -> None:
    run_state_machine_as_test(
        lambda: Jobs(client, dataset),
        settings=settings(
            max_examples=EXAMPLES or 5,
            stateful_step_count=25,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
