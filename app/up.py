"""The service's processes: each started by one function here, all of them together by `up`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from subprocess import Popen
from typing import NoReturn

from app.kit import gpus
from app.kit.guards import is_loopback
from app.kit.home import make_home
from app.kit.processes import python, spawn, stop
from app.settings import get_settings

# What `up` runs, each in a process of its own that is started again when it ends.
PROCESSES: dict[str, list[str]] = {
    "api": python("app.cli", "api"),
    "training": python("app.cli", "worker", "--queue", "training"),
    "housekeeping": python("app.cli", "worker", "--queue", "housekeeping"),
    "beat": python("app.cli", "beat"),
    "engine": python("app.cli", "engine"),
}
STOP_SECONDS = 25.0
# A round, downloads and deliveries go on beside each other.
HOUSEKEEPING_THREADS = 4
# A process that lived this long has recovered: its next restart is immediate again.
HEALTHY_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 30.0


def migrate() -> None:
    """Brings the database's schema up to date."""
    from alembic import command

    from app.migrations import alembic_config

    make_home()
    command.upgrade(alembic_config(), "head")


def api() -> None:
    """Serves HTTP in this process, until it is asked to end."""
    import uvicorn

    settings = get_settings()
    require_key(settings.host)
    make_home()
    uvicorn.run(
        "app.main:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        access_log=False,
        timeout_graceful_shutdown=5,
    )


def require_key(host: str) -> None:
    """Ends the program where strangers could reach the address, and no key keeps them out."""
    from app.projects.access import needs_key

    if not is_loopback(host) and not needs_key():
        sys.exit(
            f"BURNISH_HOST={host} is not a loopback address, and there is no key that would keep strangers out. "
            "Make one with `burnish keys create --admin`, or set BURNISH_ADMIN_KEY; or use 127.0.0.1."
        )


def worker(queue: str) -> NoReturn:
    """Becomes the Celery worker of one queue, `training` (a thread per slot) or `housekeeping`."""
    settings = get_settings()
    make_home()
    try:
        threads = gpus.slots(gpus.own_gpus(settings.gpus)) if queue == "training" else HOUSEKEEPING_THREADS
    except (ValueError, gpus.GpusUnreadable) as error:
        sys.exit(
            f"{error}. `burnish worker --gpus` or BURNISH_GPUS says which GPUs it has; `burnish doctor` says more."
        )
    arguments = ["worker", "--queues", queue, "--pool", "threads", "--loglevel", "INFO"]
    arguments += ["--hostname", f"{queue}@%h", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    _become(python("worker", *arguments, "--concurrency", str(threads)))


def beat() -> NoReturn:
    """Becomes the clock of housekeeping, which asks for a round of the reconcilers every few seconds."""
    schedule = str(make_home() / "beat-schedule")
    _become(python("worker", "beat", "--schedule", schedule, "--pidfile=", "--loglevel", "WARNING"))


def engine() -> NoReturn:
    """Becomes the engine controller."""
    make_home()
    _become(python("worker.engine"))


def _become(command: list[str]) -> NoReturn:
    os.execv(command[0], command)


def up() -> None:
    """Migrates, then keeps every process of the service running until SIGINT or SIGTERM; then ends them all."""
    settings = get_settings()
    migrate()
    require_key(settings.host)
    logs = settings.home.resolve() / "logs"
    logs.mkdir(exist_ok=True)
    # Waited for, not handled: a handler that sets an event deadlocks when a second signal interrupts the first.
    ends = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    ending = threading.Event()
    print(
        f"Burnish serves http://{settings.host}:{settings.port} (docs at /docs). Logs are in {logs}. Ctrl-C ends it.",
        flush=True,
    )
    keepers = [threading.Thread(target=_keep, args=(name, logs, ending)) for name in PROCESSES]
    for keeper in keepers:
        keeper.start()
    signal.sigwait(ends)
    ending.set()
    for keeper in keepers:
        keeper.join()


def _keep(name: str, logs: Path, ending: threading.Event) -> None:
    """Starts a process again whenever it ends, with a growing pause while it keeps failing."""
    pause = 0.0
    while not ending.wait(pause):
        started = time.monotonic()
        try:
            process = _start(name, logs)
        except OSError as error:  # no memory, no disk: it may pass
            pause = min(max(2 * pause, 0.5), LONGEST_PAUSE_SECONDS)
            print(f"{name} cannot be started ({error}); trying again in {pause:.0f} s", flush=True)
            continue
        while process.poll() is None and not ending.wait(0.2):
            pass
        if ending.is_set():
            stop(process, STOP_SECONDS)
            return
        lived = time.monotonic() - started
        pause = 0.0 if lived > HEALTHY_SECONDS else min(max(2 * pause, 0.5), LONGEST_PAUSE_SECONDS)
        print(f"{name} ended with exit code {process.returncode}; starting it again. See {logs / name}.log", flush=True)


def _start(name: str, logs: Path) -> Popen[bytes]:
    with (logs / f"{name}.log").open("ab") as log:
        return spawn(PROCESSES[name], stdout=log, stderr=log, grace_seconds=STOP_SECONDS)
