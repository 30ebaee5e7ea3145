"""One column of parts and the service on top of them, with every process that was ever seen of it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from demo.service import free_port, is_up
from tests.chaos.parts import Disk, Postgres, Program, Redis
from tests.conftest import eventually

MAX_ATTEMPTS = 6
LEASE_SECONDS = 5.0
SETTINGS = {
    "BURNISH_ENGINE": "embedded",
    "BURNISH_LEASE_SECONDS": str(LEASE_SECONDS),
    "BURNISH_STOP_GRACE_SECONDS": "5",
    "BURNISH_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
    "BURNISH_TRAINER_THREADS": "1",
    "BURNISH_MIN_FREE_BYTES": str(128 * 2**20),  # of the gigabyte that its home has
    "OMP_NUM_THREADS": "1",
}
LOOK_SECONDS = 1.0

Is = Callable[[list[str]], bool]


def _has(*words: str) -> Is:
    return lambda command: not _is_guard(command) and all(word in " ".join(command) for word in words)


def _is_guard(command: list[str]) -> bool:
    return any(word.endswith("app/kit/processes.py") for word in command)


# What a process is called → how its command is told from others.
ROLES: dict[str, Is] = {
    "api": _has("app.cli api"),
    "training": _has("-m worker", "--queues training"),
    "housekeeping": _has("-m worker", "--queues housekeeping"),
    "beat": _has("--quiet beat"),
    "controller": lambda command: not _is_guard(command) and command[-2:] == ["-m", "worker.engine"],
    "engine": _has("worker.engine.embedded_server"),
    "trainer": _has("-m worker.trainer"),
    "trainer guard": lambda command: _is_guard(command) and "worker.trainer" in command,
    "helper": lambda command: (
        not _is_guard(command)
        and bool({"worker.renderer", "app.datasets.examiner", "app.datasets.converter"} & {*command})
    ),
}


def trains(trainer: psutil.Process, job: str) -> bool:
    """Whether a trainer is at work on the job: one that waited for it does not name it in its command, but writes its log."""
    try:
        return Path(os.readlink(f"/proc/{trainer.pid}/fd/2")).name.startswith(f"{job}-")
    except OSError:  # it has ended
        return False


def is_role(process: psutil.Process, role: str) -> bool:
    """Whether a process is what the role calls. Raises `psutil.Error` where it has gone."""
    return ROLES[role](process.cmdline())


@dataclass
class World:
    """`up` and a second training worker, on the parts of one column."""

    column: str
    folder: Path
    disk: Disk
    environment: dict[str, str]
    postgres: Postgres | None = None
    redis: Redis | None = None
    programs: dict[str, Program] = field(default_factory=dict)
    seen: dict[psutil.Process, str] = field(default_factory=dict)
    kept: bool = False
    _ending: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['BURNISH_PORT']}"

    def client(self, seconds: float = 30) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=seconds, trust_env=False, verify=False)

    def processes(self, role: str, program: str | None = None) -> list[psutil.Process]:
        """Those of the service, or of one of its programs, that have this role, the oldest first."""
        found = []
        for process in self._below(program):
            try:
                if is_role(process, role):
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def _below(self, program: str | None = None) -> list[psutil.Process]:
        names = [program] if program else list(self.programs)
        return [process for name in names for process in self.programs[name].below()]

    def orphans(self) -> list[str]:
        """Commands of processes that were the service's and are nobody's now."""
        owned = set(self._below())
        return [command for process, command in list(self.seen.items()) if process not in owned and _lives(process)]

    def look(self) -> None:
        """Remembers who is there, until the world ends."""
        while not self._ending.wait(LOOK_SECONDS):
            for process in self._below():
                try:
                    self.seen.setdefault(process, " ".join(process.cmdline()))
                except psutil.Error:
                    continue

    def start(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BURNISH_")}
        environment = kept | self.environment
        logs = self.folder / "logs"
        logs.mkdir()
        self.programs["up"] = Program([sys.executable, "-m", "app.cli", "up"], environment, logs / "up.log")
        threading.Thread(target=self.look, daemon=True).start()
        eventually(lambda: is_up(self.url), 120, "the API")
        command = [sys.executable, "-m", "app.cli", "worker", "--queue", "training"]
        self.programs["second worker"] = Program(command, environment, logs / "second-worker.log")

    def keep(self) -> None:
        """Keeps the logs, and the database where it is a file."""
        self.kept = True
        self.disk.free()
        shutil.copytree(self.disk.path / "logs", self.folder / "logs", dirs_exist_ok=True)
        for file in self.disk.path.glob("burnish.db*"):
            shutil.copy(file, self.folder)
        print(f"Logs are kept in {self.folder}", flush=True)

    def end(self) -> list[str]:
        """Ends everything. Returns the commands of processes that did not end."""
        while self.programs:
            self.programs.popitem()[1].end()
        self._ending.set()
        owned = [process for process in self.seen if _lives(process)]
        _, left = psutil.wait_procs(owned, 10)
        return [self.seen[process] for process in left if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def world(column: str) -> Iterator[World]:
    """A world that runs. Its folder is removed, unless its logs are to be kept or the block raises."""
    folder = Path(tempfile.mkdtemp(prefix=f"burnish-chaos-{column}-"))
    with ExitStack() as stack:
        disk = Disk(folder / "home")
        stack.callback(disk.end)
        made = World(
            column, folder, disk, SETTINGS | {"BURNISH_HOME": str(disk.path), "BURNISH_PORT": str(free_port())}
        )
        if column == "production":
            made.postgres, made.redis = Postgres(), Redis(folder)
            stack.callback(made.postgres.end)
            stack.callback(made.redis.end)
            made.environment |= {"BURNISH_DATABASE_URL": made.postgres.url, "BURNISH_BROKER_URL": made.redis.url}
        stack.callback(made.end)
        try:
            made.start()
            yield made
        except BaseException:
            made.keep()
            raise
    if not made.kept:
        shutil.rmtree(folder)
