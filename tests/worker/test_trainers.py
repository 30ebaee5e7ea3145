"""Trainers that wait for a job with their imports done: the same run as a cold one, and nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.jobs.spec import TrainerSpec
from app.kit.processes import stop
from tests.conftest import REPOSITORY, eventually, settings_of
from tests.trainer.conftest import base, make_spec, rows, tokenizer
from worker import trainers
from worker.slots import Slots

__all__ = ["base", "make_spec", "rows", "tokenizer"]

ONE_SLOT = Slots([], 1)
# What a GPU machine's torch is while a spare imports, but that initializing CUDA fails.
WITHOUT_CUDA = """
import torch
def fail(*_, **__):
    raise AssertionError("CUDA was initialized")
torch.version.cuda, torch.cuda.is_available, torch.cuda.device_count = "13.0", lambda: True, lambda: 1
torch.cuda._lazy_init = torch._C._cuda_init = fail
from worker.trainer.waiting import import_all
import_all()
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> Iterator[Path]:
    with settings_of({"BURNISH_HOME": str(tmp_path)}):
        yield tmp_path
        end_spares()


def end_spares() -> None:
    while trainers._spares:
        stop(trainers._spares.pop().process, 0)


def run(spec: TrainerSpec, folder: Path) -> tuple[list[float], bytes]:
    """The losses and the weights of a run by `trainers.start`."""
    folder.mkdir()
    (folder / "spec.json").write_text(spec.model_dump_json())
    process = trainers.start(folder / "spec.json", folder / "out", folder / "log", [])
    output, _ = process.communicate()
    assert process.returncode == 0, (folder / "log").read_text()
    events = [json.loads(line) for line in output.splitlines()]
    losses = [event["loss"] for event in events if event["type"] == "step"]
    return losses, (folder / "out/adapter/adapter_model.safetensors").read_bytes()


def waiting() -> psutil.Process:
    """The trainer, under its guard, of the one spare."""
    (spare,) = trainers._spares
    return eventually(lambda: next(iter(psutil.Process(spare.process.pid).children()), None), 10, "a spare")


def test_a_warm_trainer_s_run_is_a_cold_one_s(make_spec: Callable[..., TrainerSpec], tmp_path: Path) -> None:
    spec = make_spec(method={"dropout": 0.1})
    cold = run(spec, tmp_path / "cold")
    trainers.keep_warm(ONE_SLOT)
    waiting()
    warm = run(spec, tmp_path / "warm")
    assert trainers._spares == []
    assert warm == cold
    assert cold[0]


def test_a_spare_that_was_killed_is_replaced_and_until_then_a_job_starts_cold(
    make_spec: Callable[..., TrainerSpec], tmp_path: Path
) -> None:
    trainers.keep_warm(ONE_SLOT)
    process = trainers._spares[0].process
    waiting().kill()
    process.wait(10)
    assert run(make_spec(), tmp_path / "cold")[0]
    trainers.keep_warm(ONE_SLOT)
    assert trainers._spares[0].process.pid != process.pid


def test_a_spare_of_other_code_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers.keep_warm(ONE_SLOT)
    process = trainers._spares[0].process
    monkeypatch.setattr(trainers, "_code", lambda: 0)
    assert trainers._take([]) is None
    assert process.poll() is not None


def test_asked_to_end_while_it_waits_it_ends_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    trainers.keep_warm(ONE_SLOT)
    process = trainers._spares[0].process
    waiting()
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert "Traceback" not in capfd.readouterr().err


def test_it_ends_with_its_worker(tmp_path: Path) -> None:
    program = (
        "import sys; from worker import slots, trainers; trainers.keep_warm(slots.Slots([], 1)); "
        "print('up', flush=True); sys.stdin.read()"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    below: list[Any] = eventually(
        lambda: [p for p in psutil.Process(worker.pid).children(recursive=True) if str(tmp_path) in p.cmdline()], 10
    )
    worker.kill()
    worker.communicate()
    eventually(lambda: not any(p.is_running() for p in below), 30, "the spare's end")


def test_it_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURNISH_SECRET_KEY", "s3cr3t")
    trainers.keep_warm(ONE_SLOT)
    spare = waiting()
    eventually(lambda: "--wait" in spare.cmdline(), 10)
    assert "PATH" in spare.environ()
    assert "s3cr3t" not in str(spare.environ())


def test_a_spare_initializes_no_cuda_while_it_waits() -> None:
    environment = trainers.environment() | {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    command = [sys.executable, "-c", WITHOUT_CUDA]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_gpu_memory_grows_by_expandable_segments_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert trainers.environment()["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    assert "PYTORCH_ALLOC_CONF" not in trainers.environment()
