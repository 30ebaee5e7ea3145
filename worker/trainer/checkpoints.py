"""Checkpoints: all that a run needs to go on from a step as if it had never stopped."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from worker.trainer.artifacts import sync, sync_entry
from worker.trainer.failures import Failure, of_the_machine

STATE = "run.json"
# Where no number of steps is asked for, this much time passes between two: what a crash costs at most.
SECONDS_BETWEEN = 120.0
# Errors of a disk or a network file system that another read may be spared. They say nothing of the file.
_MAY_PASS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOTCONN}
)


class RunState(BaseModel):
    """What the Trainer's own files do not hold. `made_with` is what the bits depend on: versions, hardware, micro-batch.

    `pending_validation`: the step was to be validated, and was not yet. `best_loss` and `best_step` are those of the lowest
    validation loss so far, `without_gain` counts the validations since then. `micro_batch_tokens` is what a
    micro-batch has come to by then; the one in `made_with` is that of the first step; so many of the kernel's kills for want of
    memory have `halved` both. What has a default is not in checkpoints that an older version made.
    """

    step: int
    loss: float
    validation_loss: float | None
    pending_validation: bool
    micro_batch_tokens: int | None = None
    halved: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    without_gain: int = 0
    made_with: dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """Where checkpoints are written, how often (None: by time), and the one to go on from.

    `save(model, folder, state)` writes what is learned so far, as it can be served, into the folder `kind` of a checkpoint;
    `load(model, folder)` puts it back. The Trainer's own files lie beside that.
    """

    folder: Path
    every: int | None
    resume_from: Path | None
    made_with: dict[str, Any]
    kind: str
    save: Callable[[Any, Path, RunState], None]
    load: Callable[[Any, Path], None]


def read_state(folder: Path) -> RunState:
    """The state of a checkpoint's run. Raises `Failure` if the checkpoint is incomplete or damaged."""
    with reading(folder):
        # The Trainer reads the first where nothing can name the cause, and does without the others if they are missing.
        json.loads((folder / TRAINER_STATE_NAME).read_bytes())
        for name in (OPTIMIZER_NAME, SCHEDULER_NAME, "rng_state.pth"):
            (folder / name).stat()
        return RunState.model_validate_json((folder / STATE).read_bytes())


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turns any error of the block into the `Failure` to read the checkpoint in `folder`."""
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        raise unreadable_checkpoint(folder, error) from error


def unreadable_checkpoint(folder: Path, error: Exception) -> Failure:
    """The failure to read the checkpoint in `folder`: `checkpoint_unreadable` if its files are damaged or missing, and the next
    attempt takes an older one; `checkpoint_read_failed` if the disk or network failed, and the next attempt reads it again."""
    message = f"The checkpoint {folder} cannot be read: {error}"
    may_pass = isinstance(error, OSError) and error.errno in _MAY_PASS
    code = "checkpoint_read_failed" if may_pass else "checkpoint_unreadable"
    return of_the_machine(error) or Failure(code, message, "This is a fault of the service, not of the job.")


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was, in words: `threads 2, was 4`."""
    return [
        f"{name} {_shown(now.get(name))}, was {_shown(before.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if json.dumps(before.get(name)) != json.dumps(now.get(name))
    ]


def commit(staged: Path, target: Path, state: RunState) -> None:
    """Makes the complete folder `staged` the checkpoint `target`: written to the disk first, then renamed."""
    (staged / STATE).write_text(state.model_dump_json(indent=1), encoding="utf-8")
    sync(staged)
    os.replace(staged, target)
    sync_entry(target.parent)  # and not what is below: earlier checkpoints are taken from there meanwhile


def _shown(value: Any) -> str:
    return "unknown" if value is None else str(value)
