"""A worker's part, done by hand: moves jobs and models along in the database."""

from __future__ import annotations

from typing import Any

from app.jobs import attempts
from app.jobs.lifecycle import move
from app.jobs.tables import Job
from app.kit.database import writing
from app.models.tables import Model


def claim(id: str) -> Job:
    """The queued job, now running; others that tests left behind are claimed on the way."""
    while (job := attempts.claim("here")) is not None:
        if job.id == id:
            return job
    raise AssertionError(f"{id} is not queued")


def report(job: Job, *events: dict[str, Any]) -> None:
    """What the trainer would say."""
    with writing() as session:
        attempts.record(session, attempts.hold(session, job), list(events))


def train(job: Job, step: int, total: int = 10) -> None:
    """A step that the trainer made."""
    begun = {"type": "started", "rows": 20, "tokens": 400, "loss_tokens": 200, "total_steps": total}
    begun |= {"start_step": step - 1, "differences": []}
    measured = {"loss": 2.0 / step, "learning_rate": 0.001, "grad_norm": 1.0, "tokens": 40, "epoch": step / total}
    speed = {"tokens_per_second": 5100.0, "eta_seconds": 65.0}
    report(job, {"type": "phase", "phase": "training"}, begun, {"type": "step", "step": step, **measured, **speed})


def compare(job: Job) -> None:
    """What the outcome reached beside its base."""
    side = {
        "loss": 2.5,
        "accuracy": 0.0,
        "reward_accuracy": None,
        "stop_rate": 0.125,
        "repetition_rate": 0.5,
        "text_loss": 3.0,
    }
    tuned = side | {"loss": 0.5, "accuracy": 0.75, "stop_rate": 1.0, "repetition_rate": 0.0, "text_loss": 3.125}
    report(job, {"type": "scorecard", "base": side, "tuned": tuned, "rows": 20, "prompts": 16, "new_tokens": 32})


def succeed(job: Job) -> None:
    """The end that everybody hopes for."""
    with writing() as session:
        row = attempts.hold(session, job)
        attempts.end(session, row, "succeeded")
        move(session, row, "succeed", "The model answers.")


def fail(job: Job) -> None:
    """An end with a cause and a hint."""
    with writing() as session:
        attempts.fail(
            session, attempts.hold(session, job), "out_of_memory", "The GPU is full.", "Use a smaller batch_size."
        )


def cancel(job: Job) -> None:
    """The end that was asked for."""
    with writing() as session:
        attempts.cancelled(session, attempts.hold(session, job))


def change_model(name: str, **fields: Any) -> None:
    """Writes what a download or a deployment would."""
    with writing() as session:
        model = session.query(Model).filter_by(name=name).one()
        for field, value in fields.items():
            setattr(model, field, value)
