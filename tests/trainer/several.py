"""Runs of several processes: real ones from the command line, and a pair that does one run after the other."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from app.jobs import estimate
from app.jobs.spec import TrainerSpec
from tests.conftest import REPOSITORY
from tests.trainer.memory import limit
from worker.trainer import ranks
from worker.trainer.failures import Stopped
from worker.trainer.run import run
from worker.trainer.stopping import StopSignal

Event = dict[str, Any]


class Trouble(NamedTuple):
    """What happens to the process of this rank: a stop is asked of it after so many steps, or its memory ends at so many padded
    tokens. `tokens`: of a micro-batch, of both."""

    rank: int = 0
    stop_after: int | None = None
    memory: int | None = None
    tokens: int = 64


def _serve(rank: int, jobs: Connection) -> None:
    """A process of the pair: does runs until there are no more."""
    torch.set_num_threads(1)
    while (job := jobs.recv()) is not None:
        jobs.send(_do(rank, *job))


def _do(rank: int, spec: TrainerSpec, out: Path, trouble: Trouble) -> list[Event]:
    events, steps, stop = list[Event](), 0, StopSignal()

    def emit(type: str, **fields: Any) -> None:
        nonlocal steps
        events.append({"type": type, **fields})
        steps += type == "step"
        if rank == trouble.rank and steps == trouble.stop_after:
            stop.requested = True

    ranks.join(rank, 2, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(estimate.MICRO_BATCH_TOKENS, "cpu", trouble.tokens)
        if trouble.memory is not None and rank == trouble.rank:
            limit(patch, trouble.memory)
        try:
            run(spec, out, emit, stop)
        except Stopped:
            events.append({"type": "stopped"})
        finally:
            if ranks.count() > 1:
                torch.distributed.destroy_process_group()
    return events


class Pair:
    """Two processes that do runs together, one after the other."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends, self._processes = list[Any](), list[Any]()
        for rank in range(2):
            own, other = context.Pipe()
            process = context.Process(target=_serve, args=(rank, other), daemon=True)
            process.start()
            other.close()  # so that the end of the process is seen
            self._ends.append(own)
            self._processes.append(process)

    def do(self, spec: TrainerSpec, out: Path, trouble: Trouble = Trouble()) -> list[list[Event]]:
        """What each of them says."""
        out.parent.mkdir(exist_ok=True)
        for end in self._ends:
            end.send((spec, out, trouble))
        return [end.recv() for end in self._ends]

    def end(self) -> None:
        """Ends both."""
        for end, process in zip(self._ends, self._processes, strict=True):
            if process.is_alive():
                end.send(None)
            process.join()


def start(spec: TrainerSpec, folder: Path) -> subprocess.Popen[str]:
    """The first process of a run, which writes `folder`/out and `folder`/log."""
    folder.mkdir(exist_ok=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "worker.trainer", str(folder / "spec.json"), str(folder / "out")]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=REPOSITORY)


def process_of(first: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The run's process of that rank."""
    own = psutil.Process(first.pid)
    others = [each for each in own.children(recursive=True) if each.cmdline()[1:4] == ["-P", "-m", "worker.trainer"]]
    return own if rank == 0 else next(each for each in others if each.cmdline()[-1] == str(rank))
