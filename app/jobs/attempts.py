"""One attempt at a job, in the database: how it is claimed, kept, written to and ended. Every write is fenced by its number."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.jobs.lifecycle import add_event, move
from app.jobs.room import BOUNDLESS, Room, is_enough
from app.jobs.scorecards import sentence
from app.jobs.tables import Attempt, Checkpoint, Job, Metric
from app.kit.database import lease_until, utc_now, writing
from app.kit.leases import LeaseLost, in_state
from app.kit.leases import claim as claim_row
from app.kit.leases import hold as hold_row
from app.models.tables import Model
from app.projects.tables import Project
from app.settings import get_settings
from app.usage import service as usage
from app.usage import totals
from app.usage.service import Used

log = logging.getLogger(__name__)


# The line of queued jobs; of those that are equal, the oldest goes first.
LINE = (Job.priority.desc(),)

# What is kept of a step and of a validation; the stage decides which of the last ones there are.
MEASURED = (
    "step", "loss", "learning_rate", "grad_norm", "tokens", "epoch", "reward_accuracy", "reward_margin", "kl", "reward",
    "answer_tokens",
)  # fmt: skip
VALIDATED = ("loss", "reward_accuracy", "reward")


def claim(worker: str, whole: Room = BOUNDLESS, free: Room = BOUNDLESS) -> Job | None:
    """The first in line that `worker` could run, now running under a new attempt of it.

    None where there is none, or where it needs more of what the worker has as a `whole` than is `free` now: no job behind
    it goes first, or a large one would wait for ever.
    """
    with writing() as session:

        def fits(job: Job) -> bool:
            return session.scalar(select(Job.id).where(Job.id == job.id, is_enough(free))) is not None

        eligible = and_(claimable(session, lock=True), is_enough(whole))
        job = claim_row(session, Job, eligible, get_settings().lease_seconds, order=LINE, fits=fits)
        if job is None:
            return None
        session.add(Attempt(job_id=job.id, number=job.attempt, worker=worker, started_at=utc_now()))
        job.progress = {"phase": "loading"}
        move(session, job, "claim", f"Attempt {job.attempt} started.", attempt=job.attempt, worker=worker)
        return job


def claimable(session: Session, *, lock: bool = False) -> ColumnElement[bool]:
    """Queued jobs of projects that run fewer than they may. With `lock` the projects that have such a limit are locked, so
    that two workers never take the last place of one together."""
    may_run = Project.limits["running_jobs"].as_integer()
    query = select(Project.id, may_run).where(may_run.is_not(None)).order_by(Project.id)
    limited = session.execute(query.with_for_update(key_share=True) if lock else query).all()
    counts = select(Job.project_id, func.count()).where(in_state(Job, "running")).group_by(Job.project_id)
    running = dict(session.execute(counts).all()) if limited else {}
    full = [project for project, most in limited if running.get(project, 0) >= most]
    return and_(in_state(Job, "queued"), Job.project_id.not_in(full))


def seconds_used(job: Job) -> float:
    """How long the job ran before its present attempt, since it was last tried again by hand."""
    ended = [each for each in job.attempts if each.ended_at and each.number > job.retried_after]
    return sum((each.ended_at - each.started_at).total_seconds() for each in ended if each.ended_at)


def killed_for_memory(job: Job) -> int:
    """How many of the job's attempts the kernel ended for want of memory."""
    return sum(attempt.code == "killed_for_memory" for attempt in job.attempts)


def published(session: Session, job: Job) -> Model | None:
    """The model that an earlier attempt at the job stored, if one did."""
    return session.get(Model, job.model_id) if job.model_id else None


@contextmanager
def renewing(job: Job) -> Iterator[None]:
    """Renews the lease while the block does something long that cannot be interrupted: a copy, a request to an engine."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(get_settings().lease_seconds / 3):
            try:
                with writing() as session:
                    heartbeat(session, job)
            except LeaseLost:
                return
            except DBAPIError as error:
                log.warning("%s: the lease was not renewed (%s); trying again", job.id, error)

    renewer = threading.Thread(target=renew, daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()


def hold(session: Session, job: Job) -> Job:
    """The locked row, while the attempt that `job` was claimed with is the current one. Raises `LeaseLost`."""
    return hold_row(session, Job, job.id, job.attempt, "running")


def heartbeat(session: Session, job: Job) -> Job:
    """Renews the lease. Returns the locked row, whose `cancel_requested` is the wanted state. Raises `LeaseLost`."""
    row = hold(session, job)
    row.lease_expires_at = lease_until(session, get_settings().lease_seconds)
    return row


def record(session: Session, row: Job, events: list[dict[str, Any]]) -> None:
    """Writes what the trainer reported to the held row: metrics, progress and events, in order."""
    steps: list[dict[str, Any]] = []
    for event in events:
        fields = {key: value for key, value in event.items() if key != "type"}
        match event["type"]:
            case "phase":
                _progress(row, phase=fields["phase"])
                add_event(session, row, "phase", f"Now {fields['phase']}.", **fields)
            case "started":
                _start(session, row, fields)
                _progress(row, total_steps=fields["total_steps"])
                text = "{rows} rows, {tokens} tokens of which {loss_tokens} carry loss, {total_steps} steps."
                add_event(session, row, "progress", text.format(**fields), **fields)
            case "preflight":
                add_event(session, row, "preflight", _preflight_told(fields), **fields)
            case "step":
                steps.append({key: fields[key] for key in MEASURED if key in fields})
                before, total = (row.progress or {}).get("step", 0), (row.progress or {}).get("total_steps") or 1
                attempt = _attempt(row)
                attempt.tokens += fields["tokens"]
                attempt.steps += 1
                attempt.step_seconds += fields.get("seconds", 0.0)
                _progress(
                    row, **{key: fields[key] for key in ("step", "epoch", "loss", "tokens_per_second", "eta_seconds")}
                )
                if before * 100 // total != fields["step"] * 100 // total:  # at most a hundred of these
                    add_event(
                        session,
                        row,
                        "progress",
                        f"Step {fields['step']} of {total}, loss {fields['loss']:.4f}.",
                        **fields,
                    )
            case "validation":
                found = {f"validation_{key}": fields[key] for key in VALIDATED if key in fields}
                for step in steps:
                    if step["step"] == fields["step"]:
                        step |= found
                        break
                else:
                    metric = session.get(Metric, (row.id, fields["step"]))
                    if metric:
                        metric.data = metric.data | found
                    # Of a run that was killed between the two the checkpoint may be there first.
                    unknown = (Checkpoint.step == fields["step"], Checkpoint.validation_loss.is_(None))
                    saved = update(Checkpoint).where(Checkpoint.job_id == row.id, *unknown)
                    session.execute(saved.values(validation_loss=fields["loss"]))
                add_event(
                    session,
                    row,
                    "validation",
                    f"Validation loss {fields['loss']:.4f} after step {fields['step']}.",
                    **fields,
                )
            case "stopped_early":
                text = "Ended at step {step}: {validations} validations in a row had no lower loss. The lowest, {loss:.4f}, is "
                text += "that of step {best_step}."
                add_event(session, row, "stopped_early", text.format(**fields), **fields)
            case "scorecard":
                row.scorecard = fields
                add_event(session, row, "scorecard", sentence(fields), **fields)
            case "warning":
                add_event(session, row, "warning", fields["message"])
    if steps:
        rows = [
            {
                "job_id": row.id,
                "step": step["step"],
                "data": {key: value for key, value in step.items() if key != "step"},
            }
            for step in steps
        ]
        session.execute(insert(Metric), rows)


def _preflight_told(fields: dict[str, Any]) -> str:
    """What the trainer found out before its first step, in words."""
    found = []
    if fields["estimated_memory_bytes"] is not None:
        found.append(f"A step should need about {fields['estimated_memory_bytes'] / 2**30:.1f} GiB.")
    if fields["peak_memory_bytes"] is not None:
        found.append(f"The longest rows fit: {fields['peak_memory_bytes'] / 2**30:.1f} GiB at the peak.")
    return " ".join(found) or "How much memory a step needs is not known."


def _start(session: Session, row: Job, fields: dict[str, Any]) -> None:
    """The trainer has begun, at a step of which the checkpoint told: what was measured after it is measured again."""
    attempt, step = _attempt(row), fields.get("start_step", 0)
    attempt.gpus, attempt.start_step = fields.get("gpus", 0), step
    session.execute(delete(Metric).where(Metric.job_id == row.id, Metric.step > step))
    if not step:
        return
    differences = fields["differences"]
    attempt.resume = "approximate" if differences else "exact"
    attempt.resume_reason = "; ".join(differences) or None
    how = f"approximately ({attempt.resume_reason})" if differences else "exactly"
    add_event(session, row, "resumed", f"Goes on {how} from step {step}.", step=step, resume=attempt.resume)


def recall(session: Session, row: Job) -> None:
    """Shows on the held row how far the training came: an earlier attempt brought it to its end, and this one only deploys."""
    newest = select(Metric).where(Metric.job_id == row.id).order_by(Metric.step.desc()).limit(1)
    if last := session.scalars(newest).first():
        _progress(row, step=last.step, total_steps=last.step, **{key: last.data[key] for key in ("epoch", "loss")})


def _attempt(row: Job) -> Attempt:
    """The attempt that the held row is under."""
    return next(attempt for attempt in row.attempts if attempt.number == row.attempt)


def _progress(row: Job, **fields: Any) -> None:
    row.progress = (row.progress or {}) | fields


def end(session: Session, row: Job, outcome: str, reason: str | None = None, code: str | None = None) -> None:
    """Writes how the held row's attempt ended, and what it used. What comes after it in the
    transaction takes no lock that others take before they end attempts: all of them add to the same totals."""
    attempt = _attempt(row)
    attempt.ended_at, attempt.outcome, attempt.reason, attempt.code = utc_now(), outcome, reason, code
    seconds = (attempt.ended_at - attempt.started_at).total_seconds()
    used = Used(trained_tokens=attempt.tokens, gpu_seconds=seconds * attempt.gpus)
    usage.add(session, row.project_id, row.key_id, row.name, used)
    totals.add(
        session,
        {
            ("attempts", outcome): 1,
            ("steps", ""): attempt.steps,
            ("step_seconds", ""): attempt.step_seconds,
            ("tokens", ""): attempt.tokens,
        },
    )


def fail(session: Session, row: Job, code: str, message: str, hint: str | None = None) -> None:
    """Ends the held row's job as failed, for a cause that another attempt would meet again."""
    end(session, row, "failed", message, code)
    row.error = {"code": code, "message": message, "hint": hint}
    move(session, row, "fail", message, code=code, hint=hint)


def lose(session: Session, row: Job, code: str, message: str, hint: str | None = None) -> None:
    """Ends the held row's attempt as lost: the job runs again, or fails when that happened `max_attempts` times."""
    end(session, row, "lost", message, code)
    lost = sum(attempt.outcome == "lost" and attempt.number > row.retried_after for attempt in row.attempts)
    if _as_asked(session, row, "the attempt had been lost"):
        return
    if lost < get_settings().max_attempts:
        row.progress = None
        move(session, row, "requeue", f"Attempt {row.attempt} was lost: {message} The job runs again.", reason=message)
    else:
        hint = hint or f"GET /jobs/{row.id}/logs has what its trainers wrote."
        hint += f" It happened {lost} times. POST /jobs/{row.id}/retry tries again from the last checkpoint."
        row.error = {"code": code, "message": message, "hint": hint}
        move(session, row, "fail", f"Given up after {lost} lost attempts. {message}", code=code)


def hand_over(session: Session, row: Job) -> None:
    """Gives the held row's job back to the queue, because its worker is asked to end."""
    end(session, row, "handed_over", "The worker was stopped.")
    if _as_asked(session, row, "the worker had been stopped"):
        return
    row.progress = None
    move(session, row, "requeue", "The worker was stopped; the job goes on when there is one.", reason="worker stopped")


def _as_asked(session: Session, row: Job, why: str) -> bool:
    """Cancels or pauses a job whose attempt ended before it could do so itself. False where neither was asked for."""
    if row.cancel_requested:
        move(session, row, "cancel", f"Cancelled; {why}.")
    elif row.pause_requested:
        pause(session, row, f"Paused; {why}.")
    else:
        return False
    return True


def paused(session: Session, row: Job) -> None:
    """Gives the held row's slot up until the job is resumed."""
    end(session, row, "paused")
    pause(session, row, f"Paused at step {(row.progress or {}).get('step', 0)}.")


def pause(session: Session, row: Job, message: str) -> None:
    """Moves a locked row that has no attempt, or none any more."""
    move(session, row, "pause", message)


def ran_out(session: Session, row: Job) -> None:
    """Fails the held row's job, which ran for as long as it may."""
    step = (row.progress or {}).get("step", 0)
    fail(
        session,
        row,
        "max_seconds_exceeded",
        f"It had not ended after max_seconds ({row.max_seconds}), at step {step}.",
        f"POST /jobs/{row.id}/retry goes on from that step, for as long again.",
    )


def cancelled(session: Session, row: Job) -> None:
    """Ends the held row's job as cancelled."""
    end(session, row, "cancelled")
    move(session, row, "cancel", f"Cancelled at step {(row.progress or {}).get('step', 0)}.")
