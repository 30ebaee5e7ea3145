"""A whole attempt, by the supervisor and a trainer of its own: what it tells is what the job and its files say."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx
import psutil
import pytest

from app.jobs.estimate import MICRO_BATCH_TOKENS
from app.kit import storage
from app.kit.gpus import Gpu
from app.kit.processes import spawn
from tests.conftest import on_embedded
from tests.datasets.helpers import jsonl
from tests.jobs.conftest import dataset
from tests.jobs.test_lifecycle import job
from tests.worker.test_trainers import end_spares
from worker import memory, trainers
from worker.slots import Slots, own_slots
from worker.supervisor import train_next

__all__ = ["dataset", "job"]


@on_embedded
def test_what_was_mixed_in_kept_and_compared_is_told(
    client: httpx.Client, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    rows = jsonl([{"instruction": f"name {n}", "output": f"fruit {n}"} for n in range(8)])
    general = client.post("/datasets", content=rows).raise_for_status().json()
    body = {
        "base_model": "demo-base",
        "dataset": job["dataset"],
        "validation": {"fraction": 0.2, "every": 1, "patience": 1},
        "replay": {"dataset": general["id"], "fraction": 0.2},
        "hyperparameters": {
            "epochs": 20,
            "batch_size": 8,
            "learning_rate": 0.2,
            "scheduler": "constant",
            "keep_checkpoints": 1,
        },
        "deploy": {"mode": "none"},
    }
    made = client.post("/jobs", json=body).raise_for_status().json()
    monkeypatch.setattr(trainers, "keep_warm", lambda slots: None)
    assert train_next(own_slots(), threading.Event())

    told = client.get(f"/jobs/{made['id']}").json()
    assert told["status"] == "succeeded", told["error"]
    events = {event["type"]: event["data"] for event in client.get(f"/jobs/{made['id']}/events").json()["data"]}
    best = events["stopped_early"]["best_step"]
    assert told["progress"]["step"] == events["stopped_early"]["step"] == best + 1
    kept = client.get(f"/jobs/{made['id']}/checkpoints").json()["data"]
    assert [each["step"] for each in kept] == [best + 1, best]
    assert kept[1]["validation_loss"] < kept[0]["validation_loss"]

    manifest = json.loads((storage.fetch_folder(f"artifacts/{made['id']}/1") / "manifest.json").read_text())
    assert manifest["provenance"]["replay"] == {name: general[name] for name in ("id", "name", "sha256")}
    assert manifest["data"]["replay_rows"] == 4
    assert (manifest["result"]["stopped_early"], manifest["result"]["best_step"]) == (True, best)
    assert manifest["scorecard"] == told["scorecard"]
    assert told["scorecard"]["tuned"]["loss"] == pytest.approx(kept[1]["validation_loss"], abs=1e-3)


def test_an_attempt_that_the_kernel_ended_for_memory_is_followed_by_one_that_needs_less(
    client: httpx.Client, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    body = {"base_model": "demo-base", "dataset": job["dataset"], "hyperparameters": {"max_steps": 2}}
    body |= {"check": {"scorecard": False}, "deploy": {"mode": "none"}}
    made = client.post("/jobs", json=body).raise_for_status().json()
    monkeypatch.setattr(trainers, "keep_warm", lambda slots: None)
    counter = tmp_path / "memory.events"
    counter.write_text("oom_kill 0\n")
    monkeypatch.setattr(memory, "_COUNTERS", (counter,))
    with monkeypatch.context() as patch:
        # What the kernel does: the trainer is gone without a word, and counted.
        dies = f"echo oom_kill 1 > {counter}; kill -9 $$"
        patch.setattr(trainers, "start", lambda *_: spawn(["/bin/sh", "-c", dies], stdout=PIPE, grace_seconds=1))
        assert train_next(own_slots(), threading.Event())
    assert train_next(own_slots(), threading.Event())

    told = client.get(f"/jobs/{made['id']}").json()
    assert told["status"] == "succeeded", told["error"]
    assert [each["code"] for each in told["attempts"]] == ["killed_for_memory", None]
    events = client.get(f"/jobs/{made['id']}/events").json()["data"]
    [warning] = [event["message"] for event in events if event["type"] == "warning"]
    half = MICRO_BATCH_TOKENS["cpu"] // 2
    assert warning.endswith(f"micro-batches of up to {half} padded tokens.")
    manifest = json.loads((storage.fetch_folder(f"artifacts/{made['id']}/2") / "manifest.json").read_text())
    assert manifest["made_with"]["micro_batch_tokens"] == half


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[Slots]:
    """Slots of a worker with two GPUs, and a trainer that waits on each. There are none here, so both compute on the CPU; the
    ids are the machine's, on which other tests may run."""
    slots = Slots([Gpu(number, f"GPU-{number}-{os.getpid()}", "Test", 24.0 + 56 * number) for number in range(2)], 2)
    trainers.keep_warm(slots)
    yield slots
    end_spares()


def spares() -> dict[str, int]:
    """The process of the trainer that waits on each GPU."""
    return {spare.gpu: spare.process.pid for spare in trainers._spares}


@on_embedded
def test_a_waiting_trainer_sees_its_slot_s_gpu_and_takes_jobs_of_that_gpu_alone(
    client: httpx.Client, job: dict[str, Any], two_gpus: Slots
) -> None:
    client.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    small, large = [gpu.uuid for gpu in two_gpus.own.values()]
    waiting = spares()
    for gpu, pid in waiting.items():
        assert psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] == gpu
    body = {
        "base_model": "demo-base",
        "dataset": job["dataset"],
        "hyperparameters": {"max_steps": 1},
        "resources": {"gpus": 1, "memory_gb": 40},
        "check": {"scorecard": False},
        "deploy": {"mode": "none"},
    }
    made = client.post("/jobs", json=body).raise_for_status().json()
    assert train_next(two_gpus, threading.Event())
    told = client.get(f"/jobs/{made['id']}").json()
    assert told["status"] == "succeeded", told["error"]
    after = spares()
    assert after[small] == waiting[small]
    assert after[large] != waiting[large]


@on_embedded
def test_a_job_of_two_gpus_is_trained_by_two_processes_and_by_no_waiting_trainer(
    client: httpx.Client, job: dict[str, Any], two_gpus: Slots
) -> None:
    waiting = spares()
    client.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    body = {
        "base_model": "demo-base",
        "dataset": job["dataset"],
        "hyperparameters": {"max_steps": 2, "batch_size": 4},
        "resources": {"gpus": 2},
        "check": {"scorecard": False},
        "deploy": {"mode": "none"},
    }
    made = client.post("/jobs", json=body).raise_for_status().json()
    assert train_next(two_gpus, threading.Event())
    assert spares() == waiting

    told = client.get(f"/jobs/{made['id']}").json()
    assert told["status"] == "succeeded", told["error"]
    manifest = json.loads((storage.fetch_folder(f"artifacts/{made['id']}/1") / "manifest.json").read_text())
    assert manifest["made_with"]["processes"] == 2
