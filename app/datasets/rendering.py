"""The processes that render rows for the API, kept warm: `python -m worker.renderer`.

Chat templates are rendered by transformers alone, which the API's own process does not load. A process starts at the first
request that finds none free, and answers one request at a time; one that dies or takes too long is replaced by the next.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from subprocess import PIPE, Popen
from typing import Any

from app.kit.errors import Unavailable
from app.kit.processes import KILL_NOW, spawn, stop
from app.settings import REPOSITORY

log = logging.getLogger(__name__)

PROCESSES = 2
# A template is a stranger's program: it may never end.
ANSWER_SECONDS = 600.0
WAIT_SECONDS = 60.0
STOP_SECONDS = 2.0

# What a process may know of the environment: nothing of the service's settings, and no GPU.
KEPT_VARIABLES = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TZ")
KEPT_PREFIXES = ("LC_", "OMP_")

_free_places = threading.BoundedSemaphore(PROCESSES)
_lock = threading.Lock()
_running: set[Popen[bytes]] = set()
_idle: list[Popen[bytes]] = []


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Sends a request of `worker/renderer/__main__.py` to a free process and returns its answer. Blocks.

    Raises `Unavailable` (`renderer_unavailable`) where the process dies of it, does not answer in time, or none gets free.
    """
    if not _free_places.acquire(timeout=WAIT_SECONDS):
        raise _unavailable("All processes that render rows are busy.")
    try:
        process = _take()
        answer = _exchange(process, json.dumps(request).encode() + b"\n")
        if answer is None:
            _end(process)
            raise _unavailable("The process that renders rows died of this request, or took too long.")
        with _lock:
            _idle.append(process)
        return answer
    finally:
        _free_places.release()


def close() -> None:
    """Ends every process; a request that is being answered fails."""
    with _lock:
        ending = list(_running)
        _idle.clear()
    for process in ending:
        _end(process)


def _take() -> Popen[bytes]:
    """A process that nobody uses: an idle one that is alive, or a new one."""
    with _lock:
        while _idle:
            process = _idle.pop()
            if process.poll() is None:
                return process
            log.warning("a renderer ended with exit code %s while it was idle", process.returncode)
            _running.discard(process)
        kept = {name: value for name, value in os.environ.items() if name in KEPT_VARIABLES}
        kept |= {name: value for name, value in os.environ.items() if name.startswith(KEPT_PREFIXES)}
        process = spawn(
            [sys.executable, "-m", "worker.renderer"],
            # Which of very many alike rows a check compares depends on the order of hashes: let it be the same each time.
            env=kept | {"CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0"},
            cwd=REPOSITORY,
            stdin=PIPE,
            stdout=PIPE,
            grace_seconds=STOP_SECONDS,
        )
        _running.add(process)
        return process


def _exchange(process: Popen[bytes], line: bytes) -> dict[str, Any] | None:
    """The answer to a request; None where the process ends instead, or is ended for taking too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = threading.Timer(ANSWER_SECONDS, process.send_signal, [KILL_NOW])
    deadline.daemon = True
    deadline.start()
    try:
        process.stdin.write(line)
        process.stdin.flush()
        answer = process.stdout.readline()
        return json.loads(answer) if answer.endswith(b"\n") else None
    except BrokenPipeError:
        return None
    finally:
        deadline.cancel()


def _end(process: Popen[bytes]) -> None:
    with _lock:
        _running.discard(process)
    stop(process, STOP_SECONDS)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was not sent yet cannot be sent any more
                continue


def _unavailable(message: str) -> Unavailable:
    hint = "Try again in a few seconds; if it happens again, the API's log says why."
    return Unavailable(message, code="renderer_unavailable", hint=hint)
