"""Commands that run the service itself: each is one function of `app.up`, imported only when it is run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import typer


def up() -> None:
    """Run the whole service until Ctrl-C: API, workers and engines. What dies is started again."""
    from app import up

    up.up()


def migrate() -> None:
    """Update the database's schema."""
    from app import up

    up.migrate()


def api() -> None:
    """Run the HTTP API only."""
    from app import up

    up.api()


def worker(
    queue: Annotated[str, typer.Option(metavar="training|housekeeping", help="The queue it works on.")] = "training",
    gpus: Annotated[
        str | None, typer.Option(metavar="all|none|0,1", help="Its own GPUs. Default: BURNISH_GPUS, else all.")
    ] = None,
) -> None:
    """Run one worker only."""
    if gpus is not None:
        os.environ["BURNISH_GPUS"] = gpus

    from app import up

    up.worker(queue)


def beat() -> None:
    """Run only the clock that starts each round of housekeeping."""
    from app import up

    up.beat()


def engine() -> None:
    """Run only the controller of the inference engines."""
    from app import up

    up.engine()


def doctor() -> None:
    """Check this machine: what works, what is missing, and how to fix it. Exit code 1 when a check fails."""
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
