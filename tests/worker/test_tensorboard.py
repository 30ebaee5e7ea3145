"""TensorBoard's files, read back by its own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.jobs.tables import Job
from tests.conftest import settings_of
from worker.tensorboard import Board

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def tell(folder: Path, attempt: int, *events: dict[str, Any]) -> None:
    with settings_of({"BURNISH_HOME": str(folder / "home"), "BURNISH_TENSORBOARD": str(folder / "boards")}):
        board = Board(Job(id="job_1", name="mine", attempt=attempt))
        for event in events:
            board.write([event])
        board.close()


def step(number: int, loss: float, **more: float) -> dict[str, Any]:
    speed = {"tokens": 10, "epoch": 0.1, "tokens_per_second": 5.0}
    return {"type": "step", "step": number, "loss": loss, "learning_rate": 0.1, "grad_norm": 1.0, **speed, **more}


def drawn(folder: Path) -> dict[str, list[tuple[int, float]]]:
    read = accumulators.EventAccumulator(str(folder / "boards/job_1-mine")).Reload()
    return {name: [(each.step, each.value) for each in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_steps_and_validations_are_drawn(tmp_path: Path) -> None:
    began = {"type": "started", "start_step": 0}
    validated = {"type": "validation", "step": 2, "loss": 1.5}
    tell(tmp_path, 1, began, step(1, 3.0), step(2, 2.0, reward_margin=0.5), validated, {"type": "finished"})
    found = drawn(tmp_path)
    assert found["train/loss"] == [(1, 3.0), (2, 2.0)]
    assert found["train/reward_margin"] == [(2, 0.5)]
    assert found["validation/loss"] == [(2, 1.5)]
    assert {"train/learning_rate", "train/grad_norm", "train/tokens", "train/epoch"} <= found.keys()


def test_steps_that_are_done_again_are_drawn_once(tmp_path: Path) -> None:
    tell(tmp_path, 1, {"type": "started", "start_step": 0}, *(step(n, 10.0 + n) for n in range(1, 6)))
    tell(tmp_path, 2, {"type": "started", "start_step": 3}, *(step(n, 20.0 + n) for n in range(4, 8)))
    losses = [(1, 11.0), (2, 12.0), (3, 13.0), (4, 24.0), (5, 25.0), (6, 26.0), (7, 27.0)]
    assert drawn(tmp_path)["train/loss"] == losses


def test_nothing_is_written_where_it_is_not_wanted_or_cannot_be(tmp_path: Path) -> None:
    with settings_of({"BURNISH_HOME": str(tmp_path / "home")}):
        board = Board(Job(id="job_1", name="mine", attempt=1))
        board.write([{"type": "started", "start_step": 0}, step(1, 3.0)])
        board.close()
    assert not any(tmp_path.rglob("*tfevents*"))
    (tmp_path / "boards").write_text("a file")
    tell(tmp_path, 1, {"type": "started", "start_step": 0}, step(1, 3.0))
