"""Commands that are the service itself: each is one function of `app.up`, imported only when it is run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import typer


def up() -> None:
    """Serve until interrupted: API, workers and engine, each restarted when it dies."""
    from app import up

    up.up()


def migrate() -> None:
    """Bring the database's schema up to date."""
    from app import up

    up.migrate()


def api() -> None:
    """Run the HTTP service alone."""
    from app import up

    up.api()


def worker(
    queue: Annotated[str, typer.Option(metavar="training|housekeeping", help="The queue it works on.")] = "training",
    gpus: Annotated[
        str | None, typer.Option(metavar="all|none|0,1", help="Its own GPUs. Default: BURNISH_GPUS, else all.")
    ] = None,
) -> None:
    """Run one worker alone."""
    if gpus is not None:
        os.environ["BURNISH_GPUS"] = gpus

    from app import up

    up.worker(queue)


def beat() -> None:
    """Run the clock of housekeeping alone."""
    from app import up

    up.beat()


def engine() -> None:
    """Run the controller of the inference engines alone."""
    from app import up

    up.engine()


def doctor() -> None:
    """Check this machine: what is there, what is missing, and how to mend it. Exit code 1 when a check fails."""
    from app import doctor
    from app.cli import output

    findings = doctor.diagnose()
    columns = [output.Column(name, name) for name in ("check", "status", "found", "mend")]
    output.print_table(columns, [{"check": name, **finding._asdict()} for name, finding in findings.items()])
    raise typer.Exit(int(any(finding.status == "fail" for finding in findings.values())))


COMMANDS: dict[str, Callable[..., Any]] = {
    "up": up,
    "doctor": doctor,
    "migrate": migrate,
    "api": api,
    "worker": worker,
    "beat": beat,
    "engine": engine,
}
