"""Processes that do for the API what its own process must not, kept warm. They read requests and print answers, a line each.

A process starts at the first request that finds none idle and serves one request at a time; one that dies or takes too long
is replaced by the next.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping
from subprocess import PIPE, Popen

from app.kit.errors import Unavailable
from app.kit.processes import KILL_NOW, spawn, stop
from app.settings import REPOSITORY

log = logging.getLogger(__name__)

STOP_SECONDS = 2.0
KEPT_IDLE = 2

# What a process may know of the environment: nothing of the service's settings, and no GPU.
KEPT_VARIABLES = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TZ")
KEPT_PREFIXES = ("LC_", "OMP_")


class HelperDied(Exception):
    """The process ended before its answer did, or was ended for taking too long."""


class Helper:
    """A process that is in use. `idle` is whether it has answered all that it was asked."""

    def __init__(self, process: Popen[bytes]) -> None:
        self.process = process
        self.idle = True

    def send(self, line: bytes) -> None:
        """Writes a line. Raises `HelperDied`."""
        assert self.process.stdin is not None
        self.idle = False
        try:
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise HelperDied from error

    def answer(self, seconds: float) -> bytes:
        """Waits for the line that answers. Raises `HelperDied`, at the latest after so many seconds."""
        assert self.process.stdout is not None
        deadline = threading.Timer(seconds, self.process.send_signal, [KILL_NOW])
        deadline.daemon = True
        deadline.start()
        try:
            line = self.process.stdout.readline()
        finally:
            deadline.cancel()
        if not line.endswith(b"\n"):
            raise HelperDied
        self.idle = True
        return line


class Helpers:
    """The processes `python -m module`, at most `places` of them in use at once; `environment` is added to theirs."""

    def __init__(self, module: str, places: int, environment: Mapping[str, str]) -> None:
        self.places = places
        self._module, self._environment = module, environment
        self._free = places
        self._freed = threading.Condition()
        self._idle: list[Helper] = []

    def take(self, wait_seconds: float, leaving: int = 0) -> Helper | None:
        """A process for whoever calls alone, until it is given back; None where in that time no more than `leaving` places
        get free."""
        with self._freed:
            if not self._freed.wait_for(lambda: self._free > leaving, wait_seconds):
                return None
            self._free -= 1
            while self._idle:
                helper = self._idle.pop()
                if helper.process.poll() is None:
                    return helper
                log.warning("%s ended with exit code %s while it was idle", self._module, helper.process.returncode)
        try:
            return Helper(self._spawn())
        except BaseException:
            self._leave()
            raise

    def give_back(self, helper: Helper) -> None:
        """Keeps the process for the next request, or ends it where it still works on this one: nothing of it is alive then."""
        with self._freed:
            kept = helper.idle and len(self._idle) < KEPT_IDLE
            if kept:
                self._idle.append(helper)
        if not kept:
            _end(helper.process)
        self._leave()

    def _leave(self) -> None:
        with self._freed:
            self._free += 1
            self._freed.notify_all()

    def _spawn(self) -> Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if name in KEPT_VARIABLES}
        kept |= {name: value for name, value in os.environ.items() if name.startswith(KEPT_PREFIXES)}
        return spawn(
            [sys.executable, "-m", self._module],
            env=kept | {"CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"} | dict(self._environment),
            cwd=REPOSITORY,
            stdin=PIPE,
            stdout=PIPE,
            grace_seconds=STOP_SECONDS,
        )


def unavailable(code: str, message: str) -> Unavailable:
    """The error for what no process could do now."""
    hint = "Try again in a few seconds; if it happens again, the API's log says why."
    return Unavailable(message, code=code, hint=hint)


def _end(process: Popen[bytes]) -> None:
    stop(process, STOP_SECONDS)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was not sent yet cannot be sent any more
                continue
