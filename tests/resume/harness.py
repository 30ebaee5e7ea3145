"""Runs that are killed and go on: what every stage and method must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.jobs.spec import TrainerSpec
from worker.trainer.failures import Stopped
from worker.trainer.run import run
from worker.trainer.stopping import StopSignal

Event = dict[str, Any]


class Killed(BaseException):
    """Nothing after this is done: as far as files go, the process was killed."""


@dataclass
class Course:
    """What a run, or the attempts at one, came to: the series that count, and the weights."""

    losses: dict[int, float] = field(default_factory=dict)
    validations: dict[int, float] = field(default_factory=dict)
    weights: bytes = b""
    scorecard: Event | None = None
    last: Event = field(default_factory=dict)
    resumed_at: list[int] = field(default_factory=list)


def attempt(spec: TrainerSpec, out: Path, course: Course, at: Callable[[Event, StopSignal], None]) -> None:
    """One attempt, added to the course as a supervisor does: what a step measured later counts. `at` is called with each
    event, and may raise `Killed` or ask for a stop."""
    stop = StopSignal()

    def emit(type: str, **fields: Any) -> None:
        event = {"type": type, **fields}
        at(event, stop)
        if type == "started":
            course.resumed_at.append(fields["start_step"])
            for series in (course.losses, course.validations):
                for step in [step for step in series if step > fields["start_step"]]:
                    del series[step]
        if type == "step":
            course.losses[fields["step"]] = fields["loss"]
        if type == "validation":
            course.validations[fields["step"]] = fields["loss"]
        if type == "scorecard":
            course.scorecard = event
        course.last = event

    run(spec, out, emit, stop)
    [weights] = [path for path in out.glob("*/*.safetensors") if path.parent.name != "checkpoints"][:1]
    course.weights = weights.read_bytes()


def newest_checkpoint(out: Path) -> Path | None:
    """The committed checkpoint of the highest step."""
    found = {int(path.name.removeprefix("step-")): path for path in (out / "checkpoints").glob("step-*")}
    return found[max(found)] if found else None


def undisturbed(spec: TrainerSpec, out: Path) -> tuple[Course, list[Event]]:
    """The course of a run that nothing happens to, and its events."""
    course, events = Course(), list[Event]()
    attempt(spec, out, course, lambda event, _: events.append(event))
    return course, events


def disturbed(spec: TrainerSpec, out: Path, kills: list[int], stops: bool = False) -> Course:
    """The course of a run whose n-th attempt is killed at its `kills[n]`-th event (or, with `stops`, asked to stop then),
    each going on from the newest checkpoint; the attempt after the last of them runs to its end."""
    course = Course()
    for number, kill in enumerate([*kills, None]):
        seen = 0

        def at(event: Event, stop: StopSignal, kill: int | None = kill) -> None:
            nonlocal seen
            seen += 1
            if seen == kill and not stops:
                raise Killed
            if seen == kill:
                stop.requested = True

        earlier = (newest_checkpoint(out / str(before)) for before in range(number - 1, -1, -1))
        newest = next(filter(None, earlier), None)
        resumed = spec.model_copy(update={"resume_from": str(newest) if newest else None})
        try:
            attempt(resumed, out / str(number), course, at)
        except (Killed, Stopped):
            continue
        return course
    raise AssertionError("the last attempt did not come to its end")
