"""Validation while a model trains: when, what is kept, and when it has been enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import Run, chat, contrary, write_rows
from tests.trainer.test_run import of_type
from worker.trainer.failures import Failure


def weights(folder: Path) -> bytes:
    return (folder / "adapter/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("every", "settings", "steps"),
    [
        (2, {"epochs": 1}, [2, 4, 5]),
        (5, {"epochs": 1.5}, [5, 8]),
        (100, {"epochs": 2}, [10]),
        ("epoch", {"epochs": 2}, [5, 10]),
    ],
)
def test_rows_are_validated_on_as_often_as_was_asked_with_a_checkpoint_each_time(
    train: Run, every: Any, settings: dict[str, float], steps: list[int]
) -> None:
    events = train(hyperparameters=settings, validation={"fraction": 0.1, "every": every})
    found = {event["step"]: event["loss"] for event in of_type(events, "validation")}
    assert [event["step"] for event in of_type(events, "validation")] == steps
    kept = {event["step"]: event["validation_loss"] for event in of_type(events, "checkpoint")}
    assert {step: loss for step, loss in kept.items() if loss is not None} == found
    told = [event["type"] for event in events if event.get("step") == steps[0]]
    assert told[:3] == ["step", "validation", "checkpoint"]


def test_the_best_is_the_outcome_where_it_is_to_be_kept(train: Run, tmp_path: Path) -> None:
    validation = {"dataset": "ds_other", "every": 1, "keep": "best"}
    others = contrary(tmp_path / "contrary.parquet")
    events = train(
        hyperparameters={"epochs": 4}, validation=validation, validation_rows=others, deploy={"mode": "none"}
    )
    losses = {event["step"]: event["loss"] for event in of_type(events, "validation")}
    best = min(losses, key=lambda step: losses[step])
    assert best < len(losses) == 24
    out = tmp_path / "out"
    assert weights(out) == weights(out / f"checkpoints/step-{best}") != weights(out / "checkpoints/step-24")
    # Whoever goes on from the last checkpoint has them too; the best one's own are not there twice.
    assert weights(out / "checkpoints/step-24/best") == weights(out)
    assert not (out / f"checkpoints/step-{best}/best").exists()
    result = json.loads((out / "manifest.json").read_text())["result"]
    assert (result["best_step"], result["best_validation_loss"]) == (best, losses[best])
    assert (result["steps"], result["validation_loss"], result["stopped_early"]) == (24, losses[24], False)


def test_the_last_is_the_outcome_by_default(train: Run, tmp_path: Path) -> None:
    train(hyperparameters={"epochs": 4}, validation={"fraction": 0.1, "every": 1})
    out = tmp_path / "out"
    assert weights(out) == weights(out / "checkpoints/step-20")
    assert not list(out.glob("checkpoints/*/best"))


def test_training_ends_when_the_loss_falls_no_more(train: Run, tmp_path: Path) -> None:
    validation = {"dataset": "ds_other", "every": 1, "patience": 3}
    others = contrary(tmp_path / "contrary.parquet")
    events = train(hyperparameters={"epochs": 4}, validation=validation, validation_rows=others)
    losses = {event["step"]: event["loss"] for event in of_type(events, "validation")}
    (early,) = of_type(events, "stopped_early")
    best = early["best_step"]
    assert list(losses) == list(range(1, best + 4))
    assert min(losses.values()) == losses[best] == early["loss"]
    assert early["step"] == len(of_type(events, "step")) == best + 3 < 24
    result = json.loads((tmp_path / "out/manifest.json").read_text())["result"]
    assert (result["stopped_early"], result["steps"]) == (True, best + 3)
    assert weights(tmp_path / "out") == weights(tmp_path / f"out/checkpoints/step-{best}")


def test_while_the_loss_falls_training_goes_on(train: Run) -> None:
    events = train(hyperparameters={"epochs": 2}, validation={"fraction": 0.1, "every": 2, "patience": 1})
    assert not of_type(events, "stopped_early")
    assert (events[-1]["step"], events[-1]["stopped_early"]) == (10, False)


def test_rows_of_which_nothing_is_left_to_validate_on_fail(train: Run, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "none.parquet", [chat("long " * 90, "b")])
    with pytest.raises(Failure, match="validate on") as caught:
        train(validation_rows=path, validation={"dataset": "ds_other"}, hyperparameters={"max_length": 64})
    assert caught.value.code == "no_trainable_rows"
