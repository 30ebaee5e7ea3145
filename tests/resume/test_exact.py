"""A run that was killed and resumed is the run that was not: the same losses, the same validations, the same weights, bit
for bit."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from app.jobs import estimate
from app.jobs.combinations import STAGES as KINDS
from app.jobs.spec import JobSpec, TrainerSpec
from tests.conftest import THOROUGH
from tests.resume.harness import Course, Killed, attempt, disturbed, newest_checkpoint, undisturbed
from tests.trainer.conftest import contrary
from tests.trainer.memory import limit
from tests.trainer.rows_of_the_table import ALL, job
from worker.supervisor import LOSSES
from worker.trainer import checkpoints, precision, run
from worker.trainer.determinism import SUMS_DIFFER
from worker.trainer.failures import Failure

Make = Callable[..., TrainerSpec]

# What a run may have that must not be lost: 42 rows in batches of 8 are 6 steps an epoch, 5 with rows held out.
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"hyperparameters": {"epochs": 2, "checkpoint_every": 2}},
    "dropout": {"method": {"dropout": 0.2}, "hyperparameters": {"epochs": 2, "checkpoint_every": 1}},
    "validation": {
        "method": {"dropout": 0.1}, "validation": {"fraction": 0.1}, "check": {"scorecard": True},
        "hyperparameters": {"epochs": 3, "checkpoint_every": 3}
    },
    "within an epoch": {
        "method": {"dropout": 0.1}, "validation": {"fraction": 0.1}, "hyperparameters": {"epochs": 1.5, "checkpoint_every": 2}
    },
    "packed": {
        "method": {"dropout": 0.1}, "validation": {"fraction": 0.1}, "hyperparameters": {"packing": True, "checkpoint_every": 2}
    },
    "few checkpoints": {"method": {"dropout": 0.1}, "hyperparameters": {"epochs": 3, "checkpoint_every": 1000}},
}  # fmt: skip
# Their validations soon get worse.
BEST, EARLY = "the best of many", "ended early"
SHAPES[BEST] = {
    "method": {"dropout": 0.1}, "validation": {"dataset": "ds_other", "every": 2, "keep": "best"},
    "hyperparameters": {"epochs": 2, "checkpoint_every": 3},
}  # fmt: skip
SHAPES[EARLY] = {
    "method": {"dropout": 0.1}, "validation": {"dataset": "ds_other", "every": 1, "patience": 3}, "hyperparameters": {"epochs": 4},
}  # fmt: skip
# Mixes rows of another file in: here of the same one.
MIXED = "general rows mixed in"
SHAPES[MIXED] = {
    "method": {"dropout": 0.1}, "validation": {"fraction": 0.1}, "replay": {"dataset": "ds_general", "fraction": 0.3},
    "hyperparameters": {"checkpoint_every": 2},
}  # fmt: skip
# Goes on training an adapter that another run made.
FURTHER = "an adapter"
SHAPES[FURTHER] = {"method": {"dropout": 0.1}, "hyperparameters": {"epochs": 2, "checkpoint_every": 2}}
# Some of its steps are left out, because their gradients overflow.
SCALED = "fp16"
SHAPES[SCALED] = {
    "method": {"dropout": 0.1}, "hyperparameters": {"precision": "fp16", "epochs": 2, "checkpoint_every": 3}
}  # fmt: skip
# Every stage and every method is killed too.
TABLE = {name: changes for name, changes in ALL.items() if name not in ("sft", "packed")}
# They keep no more between their steps than another row does, which is killed each time.
ALIKE = ("dpo with hinge", "dpo with ipo", "dpo with simpo", "rl with rloo", "rslora", "qlora fp4", "qlora int8")
KILLED_RUNS = 20 if THOROUGH else 3  # of each shape
# Of the places where a run can be ended, every n-th is.
EVERY_STOP, EVERY_KILL = (2, 4) if THOROUGH else (4, 8)


@pytest.fixture(autouse=True)
def small_micro_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A step's rows are run in several micro-batches, whose gradients add up."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(estimate.MICRO_BATCH_TOKENS, "cpu", 64)
    yield
    signal.signal(signal.SIGTERM, before)


def assert_same(found: Course, expected: Course) -> None:
    assert found.losses == expected.losses
    assert found.validations == expected.validations
    assert found.weights == expected.weights
    assert found.scorecard == expected.scorecard
    for name in ("loss", "validation_loss", "best_step", "best_validation_loss", "stopped_early", "step"):
        assert found.last[name] == expected.last[name]


def assert_interesting(shape: str, whole: Course) -> None:
    """The outcome is not simply the last step's where it is to be the best one's."""
    if shape in (BEST, EARLY):
        assert whole.last["best_step"] < whole.last["step"]
        assert whole.last["stopped_early"] is (shape == EARLY)


@pytest.mark.parametrize("shape", SHAPES)
def test_killed_at_any_event_it_goes_on_as_if_nothing_had_been(
    make_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    spec = make_spec(**SHAPES[shape])
    if shape == SCALED:  # there is no GPU here, but CPUs compute it too
        monkeypatch.setattr(precision, "computes_fp16", lambda: True)
        restless = partial(torch.amp.GradScaler, init_scale=2.0**16, growth_interval=2)
        monkeypatch.setattr(torch.amp, "GradScaler", restless)
    if shape == FURTHER:
        undisturbed(make_spec(hyperparameters={"max_steps": 4}), tmp_path / "before")
        spec = spec.model_copy(update={"adapter": str(tmp_path / "before/adapter")})
    if shape in (BEST, EARLY):
        spec = spec.model_copy(update={"validation_rows": contrary(tmp_path / "contrary.parquet")})
    if shape == MIXED:
        spec = spec.model_copy(update={"replay_rows": spec.rows})
    expected, events = undisturbed(spec, tmp_path / "whole")
    assert_interesting(shape, expected)
    if shape == SCALED:
        norms = [event["grad_norm"] for event in events if event["type"] == "step"]
        assert None in norms
        assert any(norms)
    chance = random.Random(shape)
    for number in range(KILLED_RUNS):
        kills = [chance.randint(1, len(events)) for _ in range(chance.choice((1, 1, 2)))]
        found = disturbed(spec, tmp_path / str(number), kills)
        assert_same(found, expected)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.rare if name in ALIKE else ()) for name in TABLE]
)
def test_so_does_every_stage_and_every_method(
    make_spec: Make, rows_of: Callable[[str], str], base_of: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    stage = JobSpec.model_validate(TABLE[name]).stage
    # An epoch of reinforcement learning has more steps, and each of them writes answers.
    changes = job(TABLE[name], epochs=1 if stage == "rl" else 2, checkpoint_every=2)
    rows, base = rows_of(KINDS[stage].rows), str(base_of(stage))
    spec = make_spec(base_model=base, rows=rows, validation={"fraction": 0.1}, **changes)
    expected, events = undisturbed(spec, tmp_path / "whole")
    chance = random.Random(name)
    # Two checkpoints are behind a kill here, and steps that come to nothing.
    late = [number for number, event in enumerate(events, 1) if event.get("step", 0) > 4]
    for number in range(max(1, KILLED_RUNS // 10)):
        found = disturbed(spec, tmp_path / str(number), [chance.choice(late)])
        assert found.resumed_at[-1] > 0
        assert_same(found, expected)


@pytest.mark.parametrize(("stage", "preflight"), [("sft", False), ("kto", False), ("sft", True)])
def test_it_goes_on_with_the_micro_batches_that_memory_had_left_it(
    make_spec: Make,
    rows_of: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    preflight: bool,
) -> None:
    """What the model said before it was trained is measured with those of the first attempt's beginning."""
    if preflight:  # of each attempt
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    monkeypatch.setitem(estimate.MICRO_BATCH_TOKENS, "cpu", 512)
    limit(monkeypatch, 200, only_training=True)
    rows = rows_of("chat" if stage == "sft" else "labels")
    spec = make_spec(stage=stage, rows=rows, **SHAPES["dropout"])
    expected, events = undisturbed(spec, tmp_path / "whole")
    warned = [number for number, event in enumerate(events, 1) if event["type"] == "warning"]
    for number, kill in enumerate(range(warned[0], len(events), EVERY_KILL)):
        found = disturbed(spec, tmp_path / str(number), [kill])
        assert_same(found, expected)
    newest = newest_checkpoint(tmp_path / "whole")
    assert newest is not None
    state = checkpoints.read_state(newest)
    assert state.micro_batch_tokens < state.made_with["micro_batch_tokens"] == 512
    events.clear()
    resumed = spec.model_copy(update={"resume_from": str(newest)})
    attempt(resumed, tmp_path / "again", Course(), lambda event, _: events.append(event))
    assert [event["differences"] for event in events if event["type"] == "started"] == [[]]


@pytest.mark.parametrize("shape", ["validation", "within an epoch", BEST, EARLY])
def test_asked_to_stop_it_goes_on_from_that_very_step(make_spec: Make, tmp_path: Path, shape: str) -> None:
    spec = make_spec(**SHAPES[shape])
    if shape in (BEST, EARLY):
        spec = spec.model_copy(update={"validation_rows": contrary(tmp_path / "contrary.parquet")})
    expected, events = undisturbed(spec, tmp_path / "whole")
    assert_interesting(shape, expected)
    steps = [number for number, event in enumerate(events, 1) if event["type"] == "step"]
    for number in range(0, len(steps) - 1, EVERY_STOP):
        found = disturbed(spec, tmp_path / str(number), [steps[number]], stops=True)
        assert_same(found, expected)
        # It is said before the step's own checks are over, so the step itself or the next one is the last.
        assert found.resumed_at[1] in (number + 1, number + 2)


@pytest.mark.parametrize("where", ["replace", "sync", "write"])
def test_killed_while_it_saves_it_goes_on_from_the_one_before(
    make_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    spec = make_spec(**SHAPES["dropout"])
    expected, _ = undisturbed(spec, tmp_path / "whole")
    saves = 0

    def die(*arguments: Any, **options: Any) -> Any:
        nonlocal saves
        saves += 1
        if saves == 5:
            raise Killed
        return original(*arguments, **options)

    holder, name = {
        "replace": (os, "replace"), "sync": (checkpoints, "sync"), "write": (checkpoints.RunState, "model_dump_json")
    }[where]  # fmt: skip
    original = getattr(holder, name)
    found = Course()
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, die)
        with pytest.raises(Killed):
            attempt(spec, tmp_path / "first", found, lambda event, _: None)
    checkpoint = newest_checkpoint(tmp_path / "first")
    assert checkpoint is not None
    resumed = spec.model_copy(update={"resume_from": str(checkpoint)})
    attempt(resumed, tmp_path / "second", found, lambda event, _: None)
    assert_same(found, expected)


def test_a_machine_that_differs_goes_on_and_says_so(make_spec: Make, tmp_path: Path) -> None:
    spec = make_spec(**SHAPES["dropout"])
    undisturbed(spec, tmp_path / "whole")
    checkpoint = tmp_path / "whole/checkpoints/step-3"
    events = list[dict[str, Any]]()
    resumed = spec.model_copy(update={"resume_from": str(checkpoint), "threads": 2})
    attempt(resumed, tmp_path / "again", Course(), lambda event, _: events.append(event))
    (started,) = [event for event in events if event["type"] == "started"]
    assert started["start_step"] == 3
    assert started["differences"] == ["threads 2, was 1"]


@pytest.mark.parametrize(("halved", "has"), [(1, 32), (9, 1)])
def test_after_a_kill_for_memory_it_goes_on_with_less_and_says_so(
    make_spec: Make, tmp_path: Path, halved: int, has: int
) -> None:
    def resumed(out: str, checkpoint: Path | None) -> dict[str, dict[str, Any]]:
        told = dict[str, dict[str, Any]]()
        changes = {"resume_from": str(checkpoint), "halved": halved}
        attempt(
            spec.model_copy(update=changes),
            tmp_path / out,
            Course(),
            lambda event, _: told.update({event["type"]: event}),
        )
        return told

    spec = make_spec(**SHAPES["dropout"])
    expected, _ = undisturbed(spec, tmp_path / "whole")
    told = resumed("less", tmp_path / "whole/checkpoints/step-3")
    assert told["started"]["differences"] == [f"micro_batch_tokens {has}, was 64"]
    assert told["warning"]["message"].endswith(f"micro-batches of up to {has} padded tokens.")
    assert told["finished"]["loss"] == pytest.approx(expected.last["loss"], rel=0.05)  # dropout is drawn otherwise
    # Again, without another kill: as it was by then, exactly.
    told = resumed("again", newest_checkpoint(tmp_path / "less"))
    assert told["started"]["differences"] == []
    assert "warning" not in told


@pytest.mark.parametrize(("deterministic", "reasons"), [(True, []), (False, [SUMS_DIFFER])])
def test_on_a_gpu_a_run_is_resumed_exactly_only_where_it_is_deterministic(
    make_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool, reasons: list[str]
) -> None:
    spec = make_spec(hyperparameters={"max_steps": 2, "checkpoint_every": 1, "deterministic": deterministic})
    undisturbed(spec, tmp_path / "whole")
    events = list[dict[str, Any]]()
    resumed = spec.model_copy(update={"resume_from": str(tmp_path / "whole/checkpoints/step-1")})
    # There is no GPU here: only the question whether sums repeat is answered as if there were.
    monkeypatch.setattr(run, "repeats_sums", torch.are_deterministic_algorithms_enabled)
    attempt(resumed, tmp_path / "again", Course(), lambda event, _: events.append(event))
    (started,) = [event for event in events if event["type"] == "started"]
    assert started["differences"] == reasons
    torch.use_deterministic_algorithms(False)


def test_one_of_an_older_version_goes_on(make_spec: Make, tmp_path: Path) -> None:
    spec = make_spec(**SHAPES["dropout"])
    expected, _ = undisturbed(spec, tmp_path / "whole")
    state = tmp_path / "whole/checkpoints/step-3/run.json"
    known = ("step", "loss", "validation_loss", "pending_validation", "made_with")
    state.write_text(json.dumps({name: json.loads(state.read_text())[name] for name in known}))
    found = Course()
    resumed = spec.model_copy(update={"resume_from": str(state.parent)})
    attempt(resumed, tmp_path / "again", found, lambda *_: None)
    assert found.weights == expected.weights


FILES = (
    "run.json",
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "adapter/adapter_model.safetensors",
)


@pytest.fixture
def checkpoint(make_spec: Make, tmp_path: Path) -> Path:
    undisturbed(make_spec(hyperparameters={"max_steps": 2, "checkpoint_every": 1}), tmp_path / "whole")
    return tmp_path / "whole/checkpoints/step-1"


def failure_to_resume(make_spec: Make, checkpoint: Path) -> Failure:
    spec = make_spec(hyperparameters={"max_steps": 2, "checkpoint_every": 1}, resume_from=str(checkpoint))
    with pytest.raises(Failure) as caught:
        attempt(spec, checkpoint.parent / "out", Course(), lambda *_: None)
    return caught.value


def test_a_checkpoint_with_a_damaged_or_missing_file_is_refused(make_spec: Make, checkpoint: Path) -> None:
    for name in FILES:
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[: len(whole) // 2])
        failure = failure_to_resume(make_spec, checkpoint)
        assert (failure.code, str(checkpoint) in failure.message) == ("checkpoint_unreadable", True), name
        (checkpoint / name).unlink()
        assert failure_to_resume(make_spec, checkpoint).code == "checkpoint_unreadable", name
        (checkpoint / name).write_bytes(whole)


def test_a_disk_that_fails_while_a_checkpoint_is_read_does_not_condemn_the_checkpoint(
    make_spec: Make, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(torch, "load", fail)
    assert failure_to_resume(make_spec, checkpoint).code == "checkpoint_read_failed"
    assert "checkpoint_read_failed" in LOSSES


def test_a_checkpoint_that_is_not_whole_is_refused(make_spec: Make, tmp_path: Path) -> None:
    spec = make_spec(resume_from=str(tmp_path / "nothing"))
    with pytest.raises(Failure, match="checkpoint"):
        attempt(spec, tmp_path / "out", Course(), lambda event, _: None)
