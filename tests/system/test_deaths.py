"""Whatever is killed, a job ends: it runs again, or fails with the cause, and is never `running` for ever."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.kit import storage
from demo.service import ask
from tests.conftest import DEMO_BASE, eventually
from tests.system.conftest import on_embedded
from tests.system.service import LOOK_SECONDS, Service

# 36 short steps, enough that a kill falls in the middle; nothing is deployed, for these are about training.
LONG = {"hyperparameters": {"epochs": 6, "batch_size": 8, "checkpoint_every": 3}, "deploy": {"mode": "none"}}


@pytest.fixture(scope="module")
def rows(rows: bytes) -> bytes:
    """A smaller dataset: these tests are about how jobs end, not about what they learn."""
    return b"\n".join(rows.splitlines()[:48])


def outcomes(job: dict[str, Any]) -> list[str]:
    return [attempt["outcome"] for attempt in job["attempts"]]


def saved(service: Service, id: str, count: int) -> None:
    """Waits until the running job has had so many checkpoints."""

    def newest() -> int:
        kept = service.client.get(f"/jobs/{id}/checkpoints").json()["data"]
        return max((checkpoint["step"] for checkpoint in kept), default=0)

    eventually(lambda: newest() >= 3 * count, 300, f"{count} checkpoints", LOOK_SECONDS)


def series(service: Service, id: str) -> list[tuple[int, float]]:
    """The loss of every step."""
    metrics = service.client.get(f"/jobs/{id}/metrics").json()["data"]
    return [(row["step"], row["loss"]) for row in metrics]


def went_on(job: dict[str, Any]) -> None:
    """The second attempt took over from a checkpoint of the first."""
    assert (job["status"], outcomes(job)) == ("succeeded", ["lost", "succeeded"]), job["error"]
    second = job["attempts"][1]
    assert second["start_step"] > 0
    assert (second["resume"], second["resume_reason"]) == ("exact", None)


@pytest.fixture(scope="module")
def killed(running: Service, dataset: str) -> dict[str, Any]:
    """A job whose trainer was killed after its first checkpoint, at its end."""
    id = running.create(dataset, **LONG)
    saved(running, id, 1)
    running.kill("worker.trainer")
    return running.ended(id)


def test_a_killed_trainer_s_job_goes_on(running: Service, killed: dict[str, Any]) -> None:
    went_on(killed)
    assert "SIGKILL" in killed["attempts"][0]["reason"]
    steps = [step for step, _ in series(running, killed["id"])]
    assert steps == list(range(1, killed["progress"]["total_steps"] + 1))
    kept = running.client.get(f"/jobs/{killed['id']}/checkpoints").json()["data"]
    assert (len(kept), kept[0]["step"]) == (2, killed["progress"]["total_steps"])
    own = f"checkpoints/{killed['id']}/"
    stored = {f"{own}{checkpoint['attempt']}-{checkpoint['step']}" for checkpoint in kept}

    def left() -> set[str]:
        return {folder for folder in storage.folders("checkpoints") if folder.startswith(own)}

    eventually(lambda: left() == stored, 30, "the removal of the older checkpoints")


def test_a_killed_worker_s_job_goes_on_and_its_trainer_dies_with_it(
    running: Service, dataset: str, killed: dict[str, Any]
) -> None:
    id = running.create(dataset, **LONG)
    saved(running, id, 4)
    assert len(running.client.get(f"/jobs/{id}/checkpoints").json()["data"]) <= 2
    log = running.client.get(f"/jobs/{id}/logs", headers={"Accept": "text/plain"}).text
    assert "100%" in log  # of the bar that transformers draws while it loads weights; the job runs on
    trainers = running.processes("worker.trainer")
    running.kill("--queues training")
    eventually(lambda: not any(trainer.is_running() for trainer in trainers), 15, "the trainer's death")
    job = running.ended(id)
    went_on(job)
    # Killed elsewhere, and the same run: bit for bit.
    assert series(running, id) == series(running, killed["id"])


def test_a_job_that_is_paused_and_one_whose_worker_is_stopped_go_on_where_they_were(
    running: Service, dataset: str, killed: dict[str, Any]
) -> None:
    id = running.create(dataset, **LONG)
    saved(running, id, 1)
    running.client.post(f"/jobs/{id}/pause").raise_for_status()
    eventually(lambda: running.job(id)["status"] == "paused", 30, "the pause")
    eventually(lambda: not running.trainers(id), 15, "the trainer's end")
    at = running.job(id)["progress"]["step"]
    running.client.post(f"/jobs/{id}/resume").raise_for_status()
    eventually(lambda: len(running.job(id)["attempts"]) == 2, 30, "a second attempt")
    eventually(lambda: (running.job(id)["progress"] or {}).get("step", 0) > at, 60, "a step after the pause")
    for worker in running.processes("--queues training"):
        worker.terminate()
    job = running.ended(id)
    assert (job["status"], outcomes(job)) == ("succeeded", ["paused", "handed_over", "succeeded"]), job["error"]
    first, second, third = job["attempts"]
    assert (first["start_step"], second["start_step"]) == (0, at)
    assert third["start_step"] > at
    assert {second["resume"], third["resume"]} == {"exact"}
    assert series(running, id) == series(running, killed["id"])


@on_embedded
def test_a_running_job_can_be_cancelled(running: Service, dataset: str) -> None:
    id = running.create(dataset, **LONG)
    running.training(id)
    running.client.post(f"/jobs/{id}/cancel")
    job = running.ended(id, 30)
    assert (job["status"], outcomes(job)) == ("cancelled", ["cancelled"])
    eventually(lambda: not running.trainers(id), 15, "the trainer's end")


@on_embedded
def test_a_dataset_cannot_go_while_a_job_uses_it(running: Service, rows: bytes) -> None:
    dataset = running.upload(rows + b"\n")  # other bytes: the other tests keep theirs
    id = running.create(dataset, **LONG)
    refused = running.client.delete(f"/datasets/{dataset}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    running.client.post(f"/jobs/{id}/cancel")
    running.ended(id, 60)
    assert running.client.delete(f"/datasets/{dataset}").status_code == 204


@on_embedded
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
    # The servers alone: their guards are to end what is left of them.
    found = running.processes("--served-model-name")
    servers = [each for each in found if not any("kit/processes.py" in word for word in each.cmdline())]
    below = [child for server in servers for child in server.children(recursive=True)]
    assert servers
    for server in servers:
        server.kill()
    assert ask(running.client, name, "Hello") == before
    eventually(
        lambda: not any(each.is_running() for each in [*servers, *below]), 20, "nothing of the killed engine lives"
    )


@pytest.mark.parametrize("part", ["app.cli api", "--queues housekeeping", "--quiet beat", "worker.engine"])
def test_a_killed_part_is_started_again(running: Service, part: str) -> None:
    before = {process.pid for process in running.processes(part)}
    running.kill(part)
    eventually(lambda: any(process.pid not in before for process in running.processes(part)), 30, f"a new {part}")
    eventually(running.is_up, 60, "the API")
