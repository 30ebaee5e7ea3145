"""A run of several processes ends when any of them does, and goes on as if nothing had been, bit for bit."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.jobs.spec import TrainerSpec
from tests.resume.harness import newest_checkpoint
from tests.trainer.several import Event, process_of, start

Make = Callable[..., TrainerSpec]

# Dropout, which each process draws for itself; more steps than there are checkpoints; the best of the validations is kept.
SHAPE: dict[str, Any] = {
    "method": {"dropout": 0.2}, "validation": {"fraction": 0.1, "every": 2, "keep": "best"},
    "hyperparameters": {"epochs": 2, "checkpoint_every": 3},
}  # fmt: skip


def attempt(spec: TrainerSpec, folder: Path, ending: tuple[int, int] | None = None) -> tuple[list[Event], int]:
    """What a run says, and its exit status; `ending`: the process of this rank is killed after this step."""
    process, events = start(spec, folder), list[Event]()
    family: list[psutil.Process] = []
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            events.append(json.loads(line))
            if ending and events[-1]["type"] == "step" and events[-1]["step"] == ending[1]:
                family = psutil.Process(process.pid).children(recursive=True)
                process_of(process, ending[0]).send_signal(signal.SIGKILL)
    status = process.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    return events, status


def test_killed_in_any_process_it_goes_on_exactly(make_spec: Make, tmp_path: Path) -> None:
    spec = make_spec(processes=2, **SHAPE)
    whole, status = attempt(spec, tmp_path / "whole")
    assert status == 0, (tmp_path / "whole/log").read_text()
    series: dict[tuple[str, int], float] = {}
    for number, ending in enumerate([(1, 5), (0, 8), None]):
        found, status = attempt(spec, tmp_path / str(number), ending)
        # Whoever is killed, the first process ends as that one did.
        assert status == {None: 0, (1, 5): 128 + signal.SIGKILL, (0, 8): -signal.SIGKILL}[ending]
        assert "failed" not in [event["type"] for event in found]
        if ending == (1, 5):
            assert "Process 1 of the run" in (tmp_path / "0/log").read_text().splitlines()[-1]
        [started] = [event for event in found if event["type"] == "started"]
        assert started["differences"] == []
        assert (number > 0) == (started["start_step"] > 0)
        series = {key: loss for key, loss in series.items() if key[1] <= started["start_step"]} | losses(found)
        newest = newest_checkpoint(tmp_path / str(number) / "out")
        assert newest is not None
        spec = spec.model_copy(update={"resume_from": str(newest)})
    assert series == losses(whole)
    [one, other] = (tmp_path / run / "out/adapter/adapter_model.safetensors" for run in ("whole", "2"))
    assert other.read_bytes() == one.read_bytes()


def losses(events: list[Event]) -> dict[tuple[str, int], float]:
    return {
        (event["type"], event["step"]): event["loss"] for event in events if event["type"] in ("step", "validation")
    }


def test_a_checkpoint_of_several_processes(make_spec: Make, tmp_path: Path) -> None:
    """With another number of processes a run goes on and says so; where one of them fails the first one says why."""
    spec = make_spec(processes=2, hyperparameters={"max_steps": 3, "checkpoint_every": 2})
    attempt(spec, tmp_path / "two")
    checkpoint = tmp_path / "two/out/checkpoints/step-2"
    resumed = spec.model_copy(update={"resume_from": str(checkpoint)})
    events, status = attempt(resumed.model_copy(update={"processes": 1}), tmp_path / "one")
    assert status == 0, (tmp_path / "one/log").read_text()
    [started] = [event for event in events if event["type"] == "started"]
    assert (started["start_step"], started["differences"]) == (2, ["processes 1, was 2"])

    (checkpoint / "rank-1/rng_state.pth").write_bytes(b"of another kind")
    events, status = attempt(resumed, tmp_path / "damaged")
    assert status == 1
    [failed] = [event for event in events if event["type"] == "failed"]
    assert events[-1] == failed
    assert failed["code"] == "checkpoint_unreadable"
    assert str(checkpoint) in failed["message"]


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.rare)])  # a supervisor asks the first
def test_asked_to_stop_all_end_with_the_same_step(make_spec: Make, tmp_path: Path, rank: int) -> None:
    process = start(make_spec(processes=2, hyperparameters={"epochs": 1000}), tmp_path)
    assert process.stdout is not None
    events, family = list[Event](), list[psutil.Process]()
    with process.stdout:
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["type"] == "step" and events[-1]["step"] == 3:
                family = psutil.Process(process.pid).children(recursive=True)
                process_of(process, rank).send_signal(signal.SIGTERM)
    assert process.wait() == 3, (tmp_path / "log").read_text()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert events[-1]["type"] == "checkpoint"
    assert events[-1]["step"] in (3, 4, 5)
