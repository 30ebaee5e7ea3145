"""General rows that are mixed in: how many, which, and that they keep a model from forgetting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.jobs.combinations import STAGES
from tests.trainer.conftest import Run, chat, write_rows
from tests.trainer.test_run import of_type
from worker.trainer.data.rows import draw


@pytest.fixture
def general(tmp_path: Path) -> str:
    """60 conversations about something else."""
    return write_rows(tmp_path / "general.parquet", [chat(f"Name fruit {i}.", f"Apple {i}") for i in range(60)])


def mixed(train: Run, general: str, fraction: float, **changes: Any) -> list[dict[str, Any]]:
    return train(replay_rows=general, replay={"dataset": "ds_general", "fraction": fraction}, **changes)


def test_its_share_of_the_rows_is_what_was_asked(train: Run, general: str) -> None:
    events = mixed(train, general, 0.25, hyperparameters={"batch_size": 1, "max_steps": 1})
    (started,) = of_type(events, "started")
    assert (started["rows"], started["replay_rows"], started["examples"]) == (42, 14, 56)
    assert not of_type(events, "warning")


def test_all_of_it_is_taken_where_that_is_less_and_the_job_says_so(train: Run, general: str) -> None:
    events = mixed(train, general, 0.9, hyperparameters={"max_steps": 1})
    assert of_type(events, "started")[0]["replay_rows"] == 60
    (warning,) = of_type(events, "warning")
    assert warning["message"].startswith("60 rows of replay are mixed in")
    assert "378 rows" in warning["message"]


def test_only_the_job_s_own_rows_are_held_out(train: Run, general: str) -> None:
    own = train(out="one", validation={"fraction": 0.5}, hyperparameters={"max_steps": 1})
    events = mixed(train, general, 0.5, out="two", validation={"fraction": 0.5}, hyperparameters={"max_steps": 1})
    for started in (*of_type(own, "started"), *of_type(events, "started")):
        assert (started["rows"], started["validation_rows"]) == (21, 21)


def test_the_same_rows_are_drawn_each_time_and_others_by_another_seed(general: str) -> None:
    assert draw(general, 10, 1) == draw(general, 10, 1) != draw(general, 10, 2)
    assert len(draw(general, 10, 1)) == 10
    assert draw(general, 100, 1) == set(range(60))


@pytest.mark.parametrize("stage", ["pt", "dpo", "kto", "rm", "rl"])
def test_it_goes_with_every_stage(train: Run, rows_of: Callable[[str], str], stage: str) -> None:
    rows = rows_of(STAGES[stage].rows)
    changes = {"rl": {"reward": "json_valid", "max_new_tokens": 4, "group_size": 2}}.get(stage, {})
    settings = {"batch_size": 4, "max_steps": 2, **changes}
    events = mixed(train, rows, 0.25, stage=stage, rows=rows, hyperparameters=settings)
    (started,) = of_type(events, "started")
    assert started["replay_rows"] == round(started["rows"] / 3)
    assert len(of_type(events, "step")) == 2


def test_what_is_mixed_in_is_not_forgotten(train: Run, general: str, tmp_path: Path) -> None:
    """A model that knows the general rows is trained on others, with and without them."""
    known = train(out="known", rows=general, hyperparameters={"epochs": 6})
    adapter = {"adapter": str(tmp_path / "known/adapter")}
    others = {"validation_rows": general, "validation": {"dataset": "ds_general"}}
    changes = adapter | others | {"hyperparameters": {"epochs": 3}}
    forgot = of_type(train(out="alone", **changes), "validation")[-1]["loss"]
    kept = of_type(mixed(train, general, 0.3, out="mixed", **changes), "validation")[-1]["loss"]
    assert of_type(known, "step")[-1]["loss"] < kept < 0.7 * forgot
