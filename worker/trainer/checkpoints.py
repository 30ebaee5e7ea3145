"""Checkpoints: all that a run needs to go on from a step as if it had never stopped."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from worker.trainer.artifacts import sync

STATE = "run.json"
# Where no number of steps is asked for, this much time passes between two: what a crash costs at most.
SECONDS_BETWEEN = 120.0


class RunState(BaseModel):
    """What the Trainer's own files do not hold. `made_with` is what the bits depend on: versions, hardware, micro-batch.

    `pending_validation`: the step ends an epoch that was not validated yet.
    """

    step: int
    loss: float
    validation_loss: float | None
    pending_validation: bool
    made_with: dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """Where checkpoints are written, how often (None: by time), and the one to go on from."""

    folder: Path
    every: int | None
    resume_from: Path | None
    made_with: dict[str, Any]

    def read(self) -> RunState | None:
        """The state of the run that is resumed. Raises `OSError` and `ValueError` for a checkpoint that is not whole."""
        if self.resume_from is None:
            return None
        return RunState.model_validate_json((self.resume_from / STATE).read_bytes())


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
    sync(target.parent)


def _shown(value: Any) -> str:
    return "unknown" if value is None else str(value)
