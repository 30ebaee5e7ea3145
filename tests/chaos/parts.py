"""The parts under attack: real programs of the test's own, each of which can be killed, stopped and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import psycopg
import redis

from demo.service import free_port
from tests.conftest import REPOSITORY

IS_ROOT = os.geteuid() == 0
DISK_BYTES = 2**30
# What a tmpfs is filled with at a time.
BALLAST = bytes(2**20)


class Program:
    """A command that is started again whenever it ends, as an init system would do it."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.command, self.environment, self.log = command, environment, log
        self.process = self._start()
        self._ending = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command, env=self.environment, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
            )

    def _keep(self) -> None:
        while not self._ending.wait(0.2):
            if self.process.poll() is not None and not self._ending.wait(0.5):
                self.process = self._start()

    def below(self) -> list[psutil.Process]:
        """The process and everything that it started."""
        try:
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self, seconds: float = 40) -> None:
        """Asks it to end, and waits until it has. Raises `subprocess.TimeoutExpired`, with the process killed."""
        self._ending.set()
        self._keeper.join()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


class Redis:
    """A server that keeps nothing: what it holds is lost whenever it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, start_new_session=True)
        while True:
            try:
                redis.Redis(port=self.port, socket_timeout=1).ping()
                return
            except redis.RedisError:
                assert self.process.poll() is None, "redis-server ended at its start"
                time.sleep(0.05)

    def end(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(20)

    def flush(self) -> None:
        redis.Redis(port=self.port, socket_timeout=5).flushall()


class Postgres:
    """A cluster with the durability that production has. Root may not run one, so the user `postgres` does then."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="burnish-chaos-postgres-"))
        self._as_user = ["runuser", "-u", "postgres", "--"] if IS_ROOT else []
        if IS_ROOT:
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", f"--pgdata={self._data}")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=on"
        self._control("start", "-o", options)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def restart(self, mode: str) -> None:
        """`fast` ends every session; `immediate` is a crash, from which it recovers."""
        self._control("restart", "-m", mode)

    def end(self) -> None:
        self._control("stop", "-m", "fast")
        shutil.rmtree(self.folder)

    def terminate_backends(self) -> int:
        """Ends every other session's connection. Returns how many."""
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
        with psycopg.connect(self.url, autocommit=True) as connection:
            return len(connection.execute(others).fetchall())

    def _control(self, verb: str, *arguments: str) -> None:
        self._run("pg_ctl", f"--pgdata={self._data}", "-w", "-l", str(self.folder / "log"), verb, *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as_user, _postgres_program(program), *arguments],
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, f"{program}: {done.stderr}"


def _postgres_program(name: str) -> str:
    """Where Debian puts it, which is not on the path; the newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return str(found[-1]) if found else shutil.which(name) or name


class Disk:
    """A small file system for the service's home, where this machine lets one be mounted; else a plain directory, which
    cannot be filled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "burnish-chaos", str(path)]
        self.can_fill = IS_ROOT and subprocess.run(mount, capture_output=True).returncode == 0

    def fill(self) -> None:
        """Leaves not a byte."""
        with (self.path / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(BALLAST) == len(BALLAST):
                    pass
            except OSError:
                return

    def free(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)

    def end(self) -> None:
        if self.can_fill:
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)
