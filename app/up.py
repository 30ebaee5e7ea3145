"""The service's processes: each started by one function here, all of them together by `up`."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx

from app.kit import gpus, logs, tracing
from app.kit.address import check_free, local_url
from app.kit.extras import INSTALL_TRAINING, missing_for_training
from app.kit.guards import is_exposed, is_loopback
from app.kit.home import make_home
from app.kit.home_lock import hold_home
from app.kit.processes import python, spawn, stop
from app.settings import Settings, get_settings, networks

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
# Between two looks whether the API answers, while the service starts.
LOOK_SECONDS = 0.1
ENDS = (signal.SIGINT, signal.SIGTERM)


def migrate() -> None:
    """Brings the database's schema up to date."""
    from alembic import command

    from app.migrations import alembic_config

    make_home()
    command.upgrade(alembic_config(), "head")


def api() -> None:
    """Serves HTTP in this process, until it is asked to end."""
    import uvicorn

    from app.monitoring import latency

    settings = get_settings()
    logs.configure()
    require_port(settings.host, settings.port)
    require_key()
    tracing.configure("api")
    latency.share(make_home() / "metrics")
    uvicorn.run("app.main:create_app", factory=True, **server_options())


def server_options() -> dict[str, Any]:
    """What uvicorn is told: where to listen, which proxies to believe, below which path a proxy serves the service."""
    settings = get_settings()
    trusted = [str(network) for network in networks(settings.trusted_proxies)]
    return {
        "host": settings.host,
        "port": settings.port,
        "access_log": False,
        "log_config": None,
        "timeout_graceful_shutdown": 5,
        # Said in both cases: by default uvicorn believes whoever is on this machine, or FORWARDED_ALLOW_IPS.
        "proxy_headers": bool(trusted),
        "forwarded_allow_ips": trusted,
        "root_path": urlsplit(settings.public_url).path,
    }


def require_port(host: str, port: int) -> None:
    """Ends the program with a sentence if it cannot listen there."""
    try:
        check_free(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sys.exit(f"Port {port} of {host} is taken by another program. Stop it, or set BURNISH_PORT to a free port.")
        sys.exit(
            f"Burnish cannot listen on {host}:{port} ({error.strerror}). "
            "Set BURNISH_HOST to an address of this machine, and BURNISH_PORT to a port that you may use."
        )


def require_key() -> None:
    """Ends the program if strangers could reach the service and no key keeps them out."""
    from app.projects.access import has_key

    settings = get_settings()
    if is_exposed(settings) and not has_key():
        if is_loopback(settings.host):
            cause, other = f"BURNISH_PUBLIC_URL={settings.public_url} is reached from other machines", "unset it"
        else:
            cause, other = f"BURNISH_HOST={settings.host} is not a loopback address", "use 127.0.0.1"
        sys.exit(
            f"{cause}, and there is no key to keep strangers out. "
            f"Make one with `burnish keys create --admin`, or set BURNISH_ADMIN_KEY; or {other}."
        )


def worker(queue: str) -> NoReturn:
    """Becomes the Celery worker of one queue, `training` (a thread per slot) or `housekeeping`."""
    settings = get_settings()
    make_home()
    missing = missing_for_training()
    if queue == "training" and missing:
        sys.exit(f"This worker cannot train, since packages are missing: {', '.join(missing)}. {INSTALL_TRAINING}")
    try:
        threads = gpus.slots(gpus.own_gpus(settings.gpus)) if queue == "training" else HOUSEKEEPING_THREADS
    except (ValueError, gpus.GpusUnreadable) as error:
        sys.exit(
            f"{error}. `burnish worker --gpus` or BURNISH_GPUS says which GPUs it has; `burnish doctor` says more."
        )
    arguments = ["worker", "--queues", queue, "--pool", "threads"]
    arguments += ["--hostname", f"{queue}@%h", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    _become(python("worker", "--quiet", *arguments, "--concurrency", str(threads)))


def beat() -> NoReturn:
    """Becomes the clock of housekeeping, which asks for a round of the reconcilers every few seconds."""
    _become(python("worker", "--quiet", "beat", "--schedule", str(make_home() / "beat-schedule"), "--pidfile="))


def engine() -> NoReturn:
    """Becomes the engine controller."""
    make_home()
    _become(python("worker.engine"))


def _become(command: list[str]) -> NoReturn:
    os.execv(command[0], command)


def up() -> None:
    """Keeps every process of the service running until SIGINT or SIGTERM, then ends them all.

    Ends the program with a sentence: before it changes anything, if another `up` has the home or another program the port;
    after it has stopped everything, if a process ends before the API answers.
    """
    settings = get_settings()
    with hold_home():
        require_port(settings.host, settings.port)
        migrate()
        require_key()
        _run(settings)


@dataclass
class _Run:
    """What `up` and the threads that keep its processes tell each other."""

    folder: Path  # of the logs
    ending: threading.Event = field(default_factory=threading.Event)
    serving: threading.Event = field(default_factory=threading.Event)
    failure: str | None = None  # the first process that ended before the API answered


def _run(settings: Settings) -> None:
    folder = settings.home.resolve() / "logs"
    folder.mkdir(exist_ok=True)
    missing = missing_for_training()
    if missing:
        print(f"Training is off, since packages are missing: {', '.join(missing)}. {INSTALL_TRAINING}", flush=True)
    # Waited for, not handled: a handler that sets an event deadlocks when a second signal interrupts the first.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    print(f"Burnish starts. Logs are in {folder}.", flush=True)
    run = _Run(folder)
    names = [name for name in PROCESSES if name != "training" or not missing]
    keepers = [threading.Thread(target=_keep, args=(name, run)) for name in names]
    for keeper in keepers:
        keeper.start()
    url = local_url(settings.host, settings.port)
    ended = None
    while ended is None and run.failure is None and not _answers(url):
        ended = signal.sigtimedwait(ENDS, LOOK_SECONDS)
    failure = run.failure
    if ended is None and failure is None:
        run.serving.set()
        print(f"Burnish serves {url} (docs at /docs). Ctrl-C ends it.", flush=True)
        signal.sigwait(ENDS)
    run.ending.set()
    for keeper in keepers:
        keeper.join()
    if failure is not None:
        sys.exit(failure)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _keep(name: str, run: _Run) -> None:
    """Starts a process again whenever it ends, with a growing pause while it keeps failing."""
    pause = 0.0
    while not run.ending.wait(pause):
        started = time.monotonic()
        try:
            process = _start(name, run.folder)
        except OSError as error:  # no memory, no disk: it may pass
            pause = min(max(2 * pause, 0.5), LONGEST_PAUSE_SECONDS)
            print(f"{name} cannot be started ({error}); trying again in {pause:.0f} s", flush=True)
            continue
        while process.poll() is None and not run.ending.wait(0.2):
            pass
        if run.ending.is_set():
            stop(process, STOP_SECONDS)
            return
        lived = time.monotonic() - started
        pause = 0.0 if lived > HEALTHY_SECONDS else min(max(2 * pause, 0.5), LONGEST_PAUSE_SECONDS)
        ended, log = f"{name} ended with exit code {process.returncode}", f"{run.folder / name}.log"
        if run.serving.is_set():
            print(f"{ended}; starting it again. See {log}", flush=True)
        elif run.failure is None:
            run.failure = f"Burnish could not start: {ended}. See {log}"


def _start(name: str, folder: Path) -> Popen[bytes]:
    return spawn(PROCESSES[name], log=folder / f"{name}.log", grace_seconds=STOP_SECONDS)
