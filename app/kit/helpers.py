"""Processes that do for the API what its own process must not, kept warm. They read requests and print answers, a line each.

A process starts at the first request that finds none idle and serves one request at a time; one that dies or takes too long
is replaced by the next.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from subprocess import PIPE, Popen, TimeoutExpired
from typing import TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread

from app.kit.errors import Unavailable
from app.kit.full_disk import EXIT_CODE
from app.kit.processes import KILL_NOW, python, spawn, stop

log = logging.getLogger(__name__)

STOP_SECONDS = 2.0
KEPT_IDLE = 2
# Threads in which the requests of one project wait for helpers. Further ones wait without a thread.
THREADS_OF_A_PROJECT = 4

# What a process may know of the environment: nothing of the service's settings, and no GPU.
KEPT_VARIABLES = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "TZ")
KEPT_PREFIXES = ("LC_", "OMP_")


Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class HelperDied(Exception):
    """The process ended before its answer did."""


class HelperLate(HelperDied):
    """The process was killed because its answer took too long."""


class Helper:
    """A process that is in use, by `owner` if that is counted. `idle` is whether it has answered all that it was asked."""

    def __init__(self, process: Popen[bytes], owner: str | None = None) -> None:
        self.process, self.owner = process, owner
        self.idle = True

    def send(self, line: bytes) -> None:
        """Writes a line. Raises `HelperDied`, and `OSError` if the process ended because the disk is full."""
        assert self.process.stdin is not None
        self.idle = False
        try:
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._end() from error

    def answer(self, seconds: float) -> bytes:
        """Waits for the line that answers. Kills the process after so many seconds.

        Raises `HelperDied`, `HelperLate`, and `OSError` if the process ended because the disk is full.
        """
        assert self.process.stdout is not None
        late = threading.Event()

        def kill() -> None:
            late.set()
            self.process.send_signal(KILL_NOW)

        deadline = threading.Timer(seconds, kill)
        deadline.daemon = True
        deadline.start()
        try:
            line = self.process.stdout.readline()
        finally:
            deadline.cancel()
        if not line.endswith(b"\n"):
            raise HelperLate if late.is_set() else self._end()
        self.idle = True
        return line

    def _end(self) -> Exception:
        """Why the process ended."""
        try:
            code = self.process.wait(STOP_SECONDS)
        except TimeoutExpired:
            return HelperDied()
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if code == EXIT_CODE else HelperDied()


class Helpers:
    """The processes `python -m module`, at most `places` of them in use at once, at most `of_one` of these by one owner (a
    project); `environment` is added to theirs."""

    def __init__(self, module: str, places: int, environment: Mapping[str, str], of_one: int | None = None) -> None:
        self.places, self.of_one = places, of_one or places
        self._module, self._environment = module, environment
        self._free = places
        self._held = Counter[str | None]()
        self._freed = threading.Condition()
        self._idle: list[Helper] = []

    def take(self, wait_seconds: float, leaving: int = 0, owner: str | None = None) -> Helper | None:
        """Returns a process that the caller has alone until it gives it back. Blocks.

        Returns None if no place is free for it within that time. `leaving` places stay free for others, both of all places
        and of those that one owner may have.
        """

        def has_place() -> bool:
            own = self.places if owner is None else self.of_one - self._held[owner]
            return min(self._free, own) > leaving

        with self._freed:
            if not self._freed.wait_for(has_place, wait_seconds):
                return None
            self._free -= 1
            self._held[owner] += 1
            while self._idle:
                helper = self._idle.pop()
                if helper.process.poll() is None:
                    helper.owner = owner
                    return helper
                log.warning("%s ended with exit code %s while it was idle", self._module, helper.process.returncode)
        try:
            return Helper(self._spawn(), owner)
        except BaseException:
            self._leave(owner)
            raise

    def give_back(self, helper: Helper) -> None:
        """Keeps the process for the next request, or ends it where it still works on this one: nothing of it is alive then."""
        owner = helper.owner
        with self._freed:
            kept = helper.idle and len(self._idle) < KEPT_IDLE
            if kept:
                self._idle.append(helper)
        if not kept:
            _end(helper.process)
        self._leave(owner)

    def _leave(self, owner: str | None) -> None:
        with self._freed:
            self._free += 1
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]
            self._freed.notify_all()

    def _spawn(self) -> Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if name in KEPT_VARIABLES}
        kept |= {name: value for name, value in os.environ.items() if name.startswith(KEPT_PREFIXES)}
        return spawn(
            python(self._module),
            env=kept | {"CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"} | dict(self._environment),
            stdin=PIPE,
            stdout=PIPE,
            grace_seconds=STOP_SECONDS,
        )


# Limiters live as long as a request uses them.
_limiters = WeakValueDictionary[str, CapacityLimiter]()


async def run_apart(project_id: str, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Calls `work`, which may wait for a helper, in one of the project's own threads, and returns its result.

    The threads that answer everything else stay free, and so do those of other projects.
    """
    limiter = _limiters.get(project_id)
    if limiter is None:
        limiter = _limiters[project_id] = CapacityLimiter(THREADS_OF_A_PROJECT)
    return await to_thread.run_sync(work, *arguments, limiter=limiter)


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
