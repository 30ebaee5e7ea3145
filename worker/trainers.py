"""Trainer processes: what they may know of the environment, and the spares that wait with their imports done.

A spare runs one job and ends, so that nothing is carried from job to job. Where none is there the trainer starts cold, which
does the same a few seconds later.
"""

from __future__ import annotations

import json
import logging
import os
import sysconfig
import threading
from collections import Counter
from pathlib import Path
from subprocess import PIPE, Popen
from typing import NamedTuple

import app
import worker
from app.kit.processes import python, spawn, stop
from app.settings import get_settings
from worker.slots import Slots

log = logging.getLogger(__name__)

# What a trainer may know of the environment: nothing of the service's settings, so no credential.
KEPT_VARIABLES = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "TZ")
KEPT_PREFIXES = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "NCCL_", "PYTORCH_", "TORCH_", "TRITON_")


class _Spare(NamedTuple):
    process: Popen[bytes]
    code: int  # of `_code()` when it was started
    gpu: str  # the only GPU that it sees, by its id; "" if it sees none


_spares: list[_Spare] = []
_lock = threading.Lock()


def environment() -> dict[str, str]:
    """A trainer's environment variables."""
    kept = {
        name: value for name, value in os.environ.items() if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }
    fixed = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "PYTHONUNBUFFERED": "1"}
    if not any(name.endswith("_ALLOC_CONF") for name in kept):
        # Micro-batches differ in size, and fixed segments fragment a GPU's memory until a batch that would fit does not.
        fixed["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return kept | fixed


def start(spec: Path, out: Path, log_path: Path, gpus: list[str]) -> Popen[bytes]:
    """Start a trainer on this spec and these GPUs. A spare that waits for just these does it, if there is one.

    Its events come on `stdout`, its errors go to `log_path`.
    """
    with log_path.open("wb"):
        pass
    line = {"spec": str(spec), "out": str(out), "log": str(log_path)}
    while (spare := _take(gpus)) is not None:
        try:
            assert spare.stdin is not None
            with spare.stdin as stdin:
                stdin.write(json.dumps(line).encode() + b"\n")
        except BrokenPipeError:  # it died this moment
            continue
        spare.stdin = None  # as of one that was started cold; `communicate` would flush it
        return spare
    with log_path.open("wb") as stderr:
        return spawn(
            python("worker.trainer", str(spec), str(out)), env=environment(),
            stdout=PIPE, stderr=stderr, grace_seconds=get_settings().stop_grace_seconds,
        )  # fmt: skip


def keep_warm(slots: Slots) -> None:
    """Start spares until each training slot has one: one on each GPU, and slots beyond the GPUs on the CPU.

    To be called when no job is loading, with which they would compete for the cores.
    """
    # A process sees the GPUs that CUDA_VISIBLE_DEVICES named when it began, so each spare is made for one of them.
    wanted = [*slots.working_gpus(), *[""] * slots.count][: slots.count]
    with _lock:
        try:
            _drop_unusable()
            missing = Counter(wanted) - Counter(spare.gpu for spare in _spares)
            _spares.extend(_Spare(_spawn_spare(gpu), _code(), gpu) for gpu in missing.elements())
        except OSError as error:  # no memory, no disk: a job starts cold, or says so
            log.warning("no trainer can be kept warm: %s", error)


def _take(gpus: list[str]) -> Popen[bytes] | None:
    """A spare that sees just these GPUs. A job on several has none: each of its processes sees another one."""
    with _lock:
        _drop_unusable()
        spare = next((spare for spare in _spares if [spare.gpu] == (gpus or [""])), None)
        if spare is None:
            return None
        _spares.remove(spare)
        return spare.process


def _drop_unusable() -> None:
    """Ends the spares that died, and those that would import the rest of what they need from other versions."""
    code = _code()
    for spare in [spare for spare in _spares if spare.process.poll() is not None or spare.code != code]:
        _spares.remove(spare)
        log.warning("a waiting trainer is replaced: it ended, or the code changed since it was started")
        stop(spare.process, 0)
        for pipe in (spare.process.stdin, spare.process.stdout):
            if pipe is not None:
                pipe.close()


def _spawn_spare(gpu: str) -> Popen[bytes]:
    # The home says in the list of processes whose spare it is.
    command = python("worker.trainer", "--wait", str(get_settings().home.resolve()))
    return spawn(
        command, env=environment() | {"CUDA_VISIBLE_DEVICES": gpu},
        stdin=PIPE, stdout=PIPE, grace_seconds=get_settings().stop_grace_seconds,
    )  # fmt: skip


def _code() -> int:
    """Changes when a package is installed or a file of the service is replaced, in nanoseconds."""
    files = (path for package in (app, worker) for path in Path(package.__path__[0]).rglob("*.py"))
    return max(path.stat().st_mtime_ns for path in (Path(sysconfig.get_path("purelib")), *files))
