"""The other processes of a run on several GPUs. The first one starts them, is who is spoken to, and they end with it.

They are trainers of the same spec that say nothing unless they fail. When one fails its word is passed on and the run fails; when
one dies the first process ends as that one did, so whoever watches it sees what became of the run.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from subprocess import PIPE, Popen

from app.kit.processes import python, spawn
from worker.trainer.events import Emit

# The exit statuses of a trainer.
FINISHED, FAILED, STOPPED, LEFT_ALONE = 0, 1, 3, 4
_SECONDS_TO_SPEAK = 30.0


def meeting(out: Path) -> Path:
    """The file by which the processes of a run that writes OUT/ find each other."""
    return out.with_name(f"{out.name}.meeting")


class Others:
    """Starts ranks 1, 2, ... of a run of so many `processes`."""

    def __init__(self, spec: Path, out: Path, processes: int, emit: Emit) -> None:
        meeting(out).unlink(missing_ok=True)  # of an earlier run
        self._emit = emit
        self._speaking = threading.Lock()
        self._ending = threading.Event()
        self._watchers = []
        for rank in range(1, processes):
            command = python("worker.trainer", str(spec), str(out), str(rank))
            # What is left of the run when the first process is gone has nothing to finish.
            process = spawn(command, stdout=PIPE, grace_seconds=0.0)
            watcher = threading.Thread(target=self._watch, args=(rank, process), daemon=True)
            watcher.start()
            self._watchers.append(watcher)

    def let_speak(self, *, wait: bool) -> None:
        """To be called before the first process says that it failed: does not return where another one is the cause. `wait`: it
        must be, and may not have ended yet."""
        self._ending.set()
        for watcher in self._watchers if wait else []:
            watcher.join(_SECONDS_TO_SPEAK)
        self._speaking.acquire()  # for good: the run fails once

    def _watch(self, rank: int, process: Popen[bytes]) -> None:
        assert process.stdout is not None
        said = [json.loads(line) for line in process.stdout]
        code = process.wait()
        if code == LEFT_ALONE and not self._ending.wait(_SECONDS_TO_SPEAK):
            os._exit(LEFT_ALONE)  # it waits for what will never come
        if code in (FINISHED, STOPPED, LEFT_ALONE):
            return
        self._speaking.acquire()
        if said:
            self._emit(**said[-1])
        else:
            code = 128 - code if code < 0 else code
            print(
                f"Process {rank} of the run, counted from 0, ended with exit code {code}.", file=sys.stderr, flush=True
            )
        os._exit(code)
