"""A job as it goes on: a live bar in a terminal, a line for each event anywhere else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, Any, Protocol

import typer

from app.cli import output
from app.cli.client import Patience, Service, segment
from app.cli.failure import Failure
from app.cli.output import clean, duration_shown, moment_shown

if TYPE_CHECKING:
    from rich.console import Console

POLL_SECONDS = 0.4
EXIT_CODES = {"succeeded": 0, "failed": 1, "cancelled": 2}
# Beside a bar, which shows the rest, only these are told in words.
TOLD_BESIDE_A_BAR = frozenset({"warning", "requeued", "validation", "stopped_early", "scorecard", "cancel_requested"})


class Display(Protocol):
    """Shows how far a job is."""

    def show(self, job: dict[str, Any], events: list[dict[str, Any]]) -> None:
        """The job now, and what happened to it since the last call."""

    def remark(self, text: str) -> None:
        """A sentence about the job that is no event of it."""


class Lines:
    """A line for each event."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def show(self, job: dict[str, Any], events: list[dict[str, Any]]) -> None:
        for event in events:
            print(_line(event), file=self._stream, flush=True)

    def remark(self, text: str) -> None:
        output.say(text)


class Bar:
    """A bar that says phase, step, loss, speed and the time that is left."""

    def __init__(self, console: Console, stack: ExitStack) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[told]}"))
        self._console = console
        self._progress = stack.enter_context(Progress(*columns, console=console, expand=True))
        self._task = self._progress.add_task("queued", total=None, told="")

    def show(self, job: dict[str, Any], events: list[dict[str, Any]]) -> None:
        for event in events:
            if event["type"] in TOLD_BESIDE_A_BAR:
                self._console.print(clean(event["message"]))
        now = job["progress"] or {}
        running = job["status"] == "running"
        phase = now.get("phase", "running") if running else job["status"]
        # Only training is measured in steps; before and after it the bar pulses, so that one sees that it goes on.
        total = None if running and phase != "training" else now.get("total_steps")
        step = now.get("step") or 0
        self._progress.update(self._task, description=phase, completed=step, total=total, told=told(now))

    def remark(self, text: str) -> None:
        self._console.print(clean(text))


def told(progress: dict[str, Any]) -> str:
    """Step, loss, speed and time left, as far as they are known."""
    step, total = progress.get("step"), progress.get("total_steps")
    values = {
        "{}": f"{step}/{total}" if total else None,
        "loss {:.4f}": progress.get("loss"),
        "{:.0f} tokens/s": progress.get("tokens_per_second"),
        "{} left": duration_shown(left) if (left := progress.get("eta_seconds")) is not None else None,
    }
    return "  ".join(pattern.format(value) for pattern, value in values.items() if value is not None)


def why_idle(job: dict[str, Any]) -> str | None:
    """Why nothing happens to the job now, and what to do about it; None while it runs."""
    if job["status"] == "paused":
        return f"The job is paused{_at_step(job)}. It goes on after: burnish jobs resume {job['id']}"
    if job["status"] == "queued" and job["queue"]:
        return f"The job is queued. It waits for {job['queue']['waiting_for']}. See: burnish workers"
    return None


def _at_step(job: dict[str, Any]) -> str:
    step = (job["progress"] or {}).get("step")
    return f" at step {step}" if step else ""


def watch(service: Service, id: str, console: Console) -> dict[str, Any]:
    """Shows the job on the console until it has ended; returns it then."""
    with leaving_it_running(id), ExitStack() as stack:
        return _watch(service, id, Bar(console, stack) if console.is_terminal else Lines(console.file))


@contextmanager
def leaving_it_running(id: str) -> Iterator[None]:
    """Ctrl-C in the block ends the command, and says that the job goes on."""
    try:
        yield
    except KeyboardInterrupt:
        output.say(f"\nThe job goes on. Watch it again: burnish jobs watch {id}   End it: burnish jobs cancel {id}")
        raise typer.Exit(130) from None


def _watch(service: Service, id: str, display: Display) -> dict[str, Any]:
    # By its id: a job that fails loses its name.
    path = f"/jobs/{service.get(f'/jobs/{segment(id)}')['id']}"
    last, patience = 0, Patience(output.say)
    before, said = None, None
    while True:
        try:
            job: dict[str, Any] = service.get(path)
            # Read after the job: when that has ended, nothing follows these.
            events = list(service.pages(f"{path}/events", "id", last))
        except Failure as failure:
            patience.lost(failure)
            continue
        patience.well()
        last = events[-1]["id"] if events else last
        display.show(job, events)
        if job["status"] in EXIT_CODES:
            return job
        idle = why_idle(job)
        # A job is queued for a moment in any case: only what lasts is worth a line, and only once.
        if idle and idle == before and idle != said:
            display.remark(idle)
            said = idle
        before = idle
        time.sleep(POLL_SECONDS)


def follow(service: Service, id: str, what: str) -> Iterator[dict[str, Any]]:
    """Every entry of the job's `events` or `logs` until it has ended, as they come; a stream that breaks off is taken up where
    it was."""
    job = f"/jobs/{service.get(f'/jobs/{segment(id)}')['id']}"
    last, patience = 0, Patience(output.say)
    path = f"{job}/{what}"
    while True:
        try:
            with service.events("GET", path, last=last) as stream:
                patience.well()
                for sent in stream:
                    entry = json.loads(sent.data)
                    last = entry["id"]
                    yield entry
            if service.get(job)["status"] in EXIT_CODES:
                for entry in service.pages(path, "id", last, rows=100):  # which a stream that was cut off did not bring
                    last = entry["id"]
                    yield entry
                return
            time.sleep(POLL_SECONDS)  # the service ended the stream and not the job: it is being restarted
        except Failure as failure:
            patience.lost(failure)


def conclude(job: dict[str, Any]) -> None:
    """Says how the ended job went, and ends the command with the exit code for it."""
    status, error = job["status"], job["error"]
    if status == "failed":
        raise Failure(f"The job failed: {error['message']}", hint=error["hint"])
    if status == "cancelled":
        output.say("The job was cancelled.")
    elif job["deploy"]["mode"] == "none":
        output.say(f"Stored as '{job['name']}'.", style="bold green")
    else:
        output.say(f"'{job['name']}' answers. Ask it: burnish chat {job['name']}", style="bold green")
    raise typer.Exit(EXIT_CODES[status])


def print_event(event: dict[str, Any], as_json: bool = False) -> None:
    """One event as a line of text, or of JSON."""
    print(json.dumps(event, ensure_ascii=False) if as_json else _line(event), flush=True)


def _line(event: dict[str, Any]) -> str:
    return f"{moment_shown(event['created_at'])}  {event['type']}  {output.cell('message', event['message'])}"
