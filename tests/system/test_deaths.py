"""Whatever is killed, a job ends: it runs again, or fails with the cause, and is never `running` for ever."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from demo.service import ask
from tests.conftest import DEMO_BASE, eventually
from tests.system.service import Service

# Enough steps that a kill falls in the middle; nothing is deployed, for these are about training.
LONG = {"hyperparameters": {"epochs": 6}, "deploy": {"mode": "none"}}


@pytest.fixture(scope="module")
def rows(rows: bytes) -> bytes:
    """A smaller dataset: these tests are about how jobs end, not about what they learn."""
    return b"\n".join(rows.splitlines()[:160])


def outcomes(job: dict[str, Any]) -> list[str]:
    return [attempt["outcome"] for attempt in job["attempts"]]


def test_a_killed_trainer_s_job_runs_again(running: Service, dataset: str) -> None:
    id = running.create(dataset, **LONG)
    running.training(id)
    running.kill("worker.trainer")
    job = running.ended(id)
    assert (job["status"], outcomes(job)) == ("succeeded", ["lost", "succeeded"])
    assert "SIGKILL" in job["attempts"][0]["reason"]
    steps = [row["step"] for row in running.client.get(f"/jobs/{id}/metrics").json()["data"]]
    assert steps == list(range(1, job["progress"]["total_steps"] + 1))


def test_a_killed_worker_s_job_runs_again_and_its_trainer_dies_with_it(running: Service, dataset: str) -> None:
    id = running.create(dataset, **LONG)
    running.training(id)
    trainers = running.processes("worker.trainer")
    running.kill("--queues training")
    eventually(lambda: not any(trainer.is_running() for trainer in trainers), 15, "the trainer's death")
    job = running.ended(id)
    assert (job["status"], outcomes(job)) == ("succeeded", ["lost", "succeeded"])


def test_a_running_job_can_be_cancelled(running: Service, dataset: str) -> None:
    id = running.create(dataset, **LONG)
    running.training(id)
    running.client.post(f"/jobs/{id}/cancel")
    job = running.ended(id, 30)
    assert (job["status"], outcomes(job)) == ("cancelled", ["cancelled"])
    eventually(lambda: not running.processes("worker.trainer"), 15, "the trainer's end")


def test_a_dataset_cannot_go_while_a_job_uses_it(running: Service, rows: bytes) -> None:
    dataset = running.upload(rows + b"\n")  # other bytes: the other tests keep theirs
    id = running.create(dataset, **LONG)
    refused = running.client.delete(f"/datasets/{dataset}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    running.client.post(f"/jobs/{id}/cancel")
    running.ended(id, 60)
    assert running.client.delete(f"/datasets/{dataset}").status_code == 204


def test_a_loss_that_is_not_finite_ends_the_job_with_advice(running: Service, dataset: str, tmp_path: Path) -> None:
    """By a broken weight: what overflows at a high learning rate differs from processor to processor."""
    folder = shutil.copytree(DEMO_BASE, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    answer = running.client.post("/models", json={"name": "broken", "source": str(folder)})
    assert answer.status_code == 201, answer.text
    job = running.ended(running.create(dataset, base_model="broken"))
    assert (job["status"], job["error"]["code"]) == ("failed", "loss_not_finite")
    assert "learning_rate" in job["error"]["hint"]
    assert outcomes(job) == ["failed"]


def test_a_killed_engine_comes_back_with_its_adapters(running: Service, dataset: str) -> None:
    job = running.ended(running.create(dataset, hyperparameters={"max_steps": 5}))
    assert job["status"] == "succeeded", job["error"]
    name = job["model"]["name"]
    before = ask(running.client, name, "Hello")
    running.kill("--served-model-name")
    assert ask(running.client, name, "Hello") == before


@pytest.mark.parametrize("part", ["app.cli api", "--queues housekeeping", "worker.celery_app beat", "worker.engine"])
def test_a_killed_part_is_started_again(running: Service, part: str) -> None:
    before = {process.pid for process in running.processes(part)}
    running.kill(part)
    eventually(lambda: any(process.pid not in before for process in running.processes(part)), 30, f"a new {part}")
    eventually(running.is_up, 60, "the API")
