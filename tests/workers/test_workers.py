"""Workers tell what they have and do; an unfit one claims nothing and says why; readiness means that jobs are being claimed."""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from sqlalchemy import delete

from app.jobs import waiting
from app.kit import gpus
from app.kit.database import writing
from app.kit.gpus import Gpu
from app.settings import get_settings
from app.workers.tables import Worker
from tests.conftest import eventually
from tests.datasets.helpers import refusal
from tests.jobs.conftest import dataset
from tests.jobs.test_lifecycle import job
from worker import gpu_check, presence, supervisor
from worker.presence import Presence
from worker.slots import Slots
from worker.trainer import gpu_test

__all__ = ["dataset", "job"]

# Their locks are the machine's, on which other tests may run.
A, B = (f"GPU-{name}-{os.getpid()}" for name in "ab")
TWO_GPUS = [Gpu(0, A, "Test 24", 24.0), Gpu(1, B, "Test 80", 80.0)]


@pytest.fixture(autouse=True)
def alone(service: str) -> None:
    with writing() as session:
        session.execute(delete(Worker))


def nvidia_smi(folder: Path, cards: list[Gpu], code: int = 0) -> None:
    """A driver's command that tells of these cards: there is no GPU here."""
    lines = "".join(f"{gpu.index}, {gpu.uuid}, {gpu.name}, {gpu.memory_gb * 1024:.0f}\n" for gpu in cards)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{lines}'\nexit {code}\n")
    (folder / "nvidia-smi").chmod(0o755)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first on the path, with two cards in it."""
    nvidia_smi(tmp_path, TWO_GPUS)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def told(client: httpx.Client, worker: Presence) -> dict[str, Any]:
    worker.report()
    return dict(client.get(f"/workers/{worker.slots.name}").raise_for_status().json())


def age(name: str, seconds: float) -> None:
    with writing() as session:
        row = session.query(Worker).filter_by(name=name).one()
        row.heard_at -= timedelta(seconds=seconds)


def test_a_worker_tells_what_it_has_and_does(client: httpx.Client, job: dict[str, Any]) -> None:
    slots = Slots([], 2)
    worker = Presence("training", slots)
    assert told(client, worker)["jobs"] == []
    claimed = slots.claim()
    assert claimed is not None
    seen = told(client, worker)
    assert (seen["status"], seen["slots"], seen["busy_slots"]) == ("ready", 2, 1)
    assert seen["jobs"] == [{"job": job["id"], "attempt": 1, "gpus": []}]
    assert client.get(f"/jobs/{job['id']}").json()["attempts"][0]["worker"] == seen["name"]
    slots.give_back(claimed)
    assert told(client, worker)["busy_slots"] == 0
    assert [each["id"] for each in client.get("/workers").json()["data"]] == [seen["id"]]
    worker.leave()
    refusal(client.get(f"/workers/{seen['id']}"), 404, "worker_not_found")


def test_another_project_s_job_is_counted_and_not_named(client: httpx.Client, job: dict[str, Any]) -> None:
    slots = Slots([], 1)
    claimed = slots.claim()
    assert claimed is not None
    slots.doing()[0]["project"] = "proj_other"
    seen = told(client, Presence("training", slots))
    assert (seen["busy_slots"], seen["jobs"]) == (1, [])
    assert job["id"] not in str(seen)


def test_a_worker_that_is_not_heard_of_is_lost(client: httpx.Client) -> None:
    worker = Presence("training", Slots([], 1))
    worker.report()
    age(worker.slots.name, get_settings().lease_seconds + 1)
    assert client.get(f"/workers/{worker.slots.name}").json()["status"] == "lost"
    assert told(client, worker)["status"] == "ready"


def test_a_worker_whose_disk_is_full_claims_nothing_and_says_so(
    client: httpx.Client, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_settings(), "min_free_bytes", 2**60)
    slots = Slots([], 1)
    seen = told(client, Presence("training", slots))
    assert seen["status"] == "unfit"
    assert "BURNISH_MIN_FREE_BYTES" in seen["reason"]
    assert not supervisor.train_next(slots, threading.Event())
    shown = client.get(f"/jobs/{job['id']}").json()
    assert shown["status"] == "queued"
    assert "BURNISH_MIN_FREE_BYTES" in shown["queue"]["waiting_for"]


def test_each_job_gets_gpus_of_its_own(client: httpx.Client, job: dict[str, Any], driver: Path) -> None:
    assert gpus.own_gpus("all") == TWO_GPUS
    assert gpus.own_gpus("1") == TWO_GPUS[1:]
    slots = Slots(gpus.own_gpus("all"), 2)
    body = {"base_model": "demo-base", "dataset": job["dataset"], "resources": {"gpus": 1, "memory_gb": 40}}
    large = client.post("/jobs", json=body).json()
    small, big = slots.claim(), slots.claim()
    assert small is not None
    assert big is not None
    assert (small.id, big.id) == (job["id"], large["id"])
    assert (slots.gpus_of(small), slots.gpus_of(big)) == ([A], [B])
    assert [each["gpus"] for each in told(client, Presence("training", slots))["jobs"]] == [[0], [1]]


def test_a_gpu_that_another_process_holds_is_not_given(job: dict[str, Any], driver: Path) -> None:
    slots = Slots(TWO_GPUS[:1], 1)
    held = gpus.take(A, 0)
    assert held is not None
    assert gpus.take(A, 0) is None
    assert slots.claim() is None
    os.close(held)
    assert slots.claim() is not None


def test_a_gpu_that_may_be_faulty_is_used_again_once_its_test_passes(
    client: httpx.Client, job: dict[str, Any], driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots(TWO_GPUS, 2)
    claimed = slots.claim()
    assert claimed is not None
    # There is no GPU here: the test's outcome is that of a file. The process, its variables and the lock are real.
    works = f'test "$CUDA_VISIBLE_DEVICES" = {A} || exit 2; test -e {driver}/works || {{ echo "it computes wrong" >&2; exit 1; }}'
    monkeypatch.setattr(gpu_check, "COMMAND", ["/bin/sh", "-c", works])
    monkeypatch.setattr(gpu_check, "RETEST_SECONDS", 0.1)
    gpu_check.suspect(slots, claimed, "an illegal memory access")
    slots.give_back(claimed)
    worker = Presence("training", slots)

    def errors() -> list[str | None]:
        return [card["error"] for card in told(client, worker)["gpus"]]

    assert errors()[0] is not None
    eventually(
        lambda: errors() == ["an illegal memory access (its test: it computes wrong)", None], 20, "a failed test"
    )
    assert slots.working_gpus() == [B]
    (driver / "works").touch()
    eventually(lambda: errors() == [None, None], 20, "a test that passes")


def test_the_test_of_a_gpu_passes_on_what_computes_right_and_fails_without_a_gpu() -> None:
    assert gpu_test.main("cpu") == 0
    if not torch.cuda.is_available():
        assert "CUDA" in str(gpu_check.find_fault(A))


def test_a_gpu_that_is_gone_is_left_alone(client: httpx.Client, driver: Path) -> None:
    worker = Presence("training", Slots(TWO_GPUS, 2))
    nvidia_smi(driver, TWO_GPUS[:1])
    seen = told(client, worker)
    assert [card["error"] for card in seen["gpus"]] == [None, "it is not there any more"]
    nvidia_smi(driver, [])
    assert told(client, worker)["status"] == "unfit"
    nvidia_smi(driver, TWO_GPUS)
    assert told(client, worker)["status"] == "ready"


def test_a_large_job_is_not_passed_by(client: httpx.Client, job: dict[str, Any], driver: Path) -> None:
    slots = Slots(TWO_GPUS, 2)
    first = slots.claim()
    assert first is not None
    client_job(client, job, resources={"gpus": 2})
    later = client_job(client, job)
    assert slots.claim() is None
    assert client.get(f"/jobs/{later}").json()["queue"]["position"] == 2
    # A worker that could never run the large one takes the small one.
    other = Slots([], 1)
    taken = other.claim()
    assert taken is not None
    assert taken.id == later
    slots.give_back(first)
    big = slots.claim()
    assert big is not None
    assert len(slots.gpus_of(big)) == 2


def client_job(client: httpx.Client, like: dict[str, Any], **fields: Any) -> str:
    body = {"base_model": "demo-base", "dataset": like["dataset"]} | fields
    return str(client.post("/jobs", json=body).raise_for_status().json()["id"])


def test_the_highest_priority_goes_first_and_of_those_the_oldest(client: httpx.Client, job: dict[str, Any]) -> None:
    low, high = client_job(client, job, priority=-1), client_job(client, job, priority=5)
    places = {id: client.get(f"/jobs/{id}").json()["queue"]["position"] for id in (high, job["id"], low)}
    assert list(places.values()) == [1, 2, 3]
    slots = Slots([], 3)
    assert [claimed.id for claimed in (slots.claim(), slots.claim(), slots.claim()) if claimed] == [
        high, job["id"], low,
    ]  # fmt: skip


def test_a_job_says_what_it_waits_for(client: httpx.Client, job: dict[str, Any]) -> None:
    def waits_for(id: str = job["id"]) -> str:
        return str(client.get(f"/jobs/{id}").json()["queue"]["waiting_for"])

    assert "none was heard of" in waits_for()
    slots = Slots([], 1)
    worker = Presence("training", slots)
    worker.report()
    asking = client_job(client, job, resources={"gpus": 1, "memory_gb": 80})
    assert "1 GPU of 80 GiB" in waits_for(asking)
    second = client_job(client, job)
    assert slots.claim() is not None
    worker.report()
    assert waits_for(second) == "a free slot: 1 of 1 are taken"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"method": {"type": "galore"}}, "unsupported"),
        ({"method": {"type": "apollo"}}, "unsupported"),
        ({"hyperparameters": {"batch_size": 3}}, "invalid_value"),
    ],
)
def test_more_gpus_than_training_can_use_are_refused(
    client: httpx.Client, job: dict[str, Any], changes: dict[str, Any], code: str
) -> None:
    body = {"base_model": "demo-base", "dataset": job["dataset"], "resources": {"gpus": 4}} | changes
    assert refusal(client.post("/jobs", json=body), 422, code)["param"] == "resources.gpus"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"resources": {"gpus": 2}}, "unsupported"),  # `lora`
        ({"resources": {"gpus": 1}, "method": {"type": "full"}}, "invalid_value"),
        ({"method": {"type": "full"}}, "invalid_value"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    client: httpx.Client, job: dict[str, Any], changes: dict[str, Any], code: str
) -> None:
    body = {"base_model": "demo-base", "dataset": job["dataset"], "hyperparameters": {"sharding": "full"}} | changes
    assert refusal(client.post("/jobs", json=body), 422, code)["param"] == "hyperparameters.sharding"
    body |= {"method": {"type": "full"}, "resources": {"gpus": 2}}
    client.post("/jobs", json=body).raise_for_status()
    body["hyperparameters"] = {"sharding": "full", "precision": "fp16"}
    assert refusal(client.post("/jobs", json=body), 422, "unsupported")["param"] == "hyperparameters.precision"


def test_ready_means_that_jobs_are_being_claimed(
    client: httpx.Client, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong() -> str:
        return str(refusal(client.get("/ready"), 503, "not_ready")["message"])

    assert "no training worker" in wrong()
    slots = Slots([], 1)
    training, housekeeping = Presence("training", slots), Presence("housekeeping", Slots([], 4))
    housekeeping.slots.name = "elsewhere:1"
    training.report()
    assert "housekeeping" in wrong()
    assert "no training worker" not in wrong()
    housekeeping.report()
    assert client.get("/ready").json() == {"status": "ready"}
    monkeypatch.setattr(waiting, "STUCK_AFTER", timedelta(0))
    assert job["id"] in wrong()
    assert slots.claim() is not None
    training.report()
    assert client.get("/ready").status_code == 200
    monkeypatch.setattr(presence, "shutting_down", threading.Event())
    presence.shutting_down.set()
    training.report()
    assert "stopping" in wrong()
