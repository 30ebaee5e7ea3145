"""What is lost is found: messages, disk space, names."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from app.datasets.tables import Dataset
from app.jobs import attempts
from app.jobs.tables import Job
from app.kit import queue, storage
from app.kit.database import DEFAULT_PROJECT, reading, writing
from app.kit.ids import new_id
from app.models.tables import Engine, EngineAdapter, Model
from app.projects import stored
from tests.conftest import Backend
from worker.publish import DeployFailed, deploy
from worker.reconcilers import rounds
from worker.reconcilers.leftovers import remove_leftovers
from worker.reconcilers.orphaned_blobs import remove_orphaned_blobs
from worker.reconcilers.read_messages import sweep_read_messages
from worker.reconcilers.stored_bytes import recount_stored
from worker.reconcilers.unseen_work import wake_for_unseen_work
from worker.supervisor import workspaces

ROW = b'{"instruction": "a", "output": "b"}'


@pytest.fixture
def job(client: httpx.Client) -> dict[str, Any]:
    """A queued job, the only one that is not ended."""
    with writing() as session:
        for row in session.query(Job):
            row.status = "failed"
    dataset = client.post("/datasets", content=ROW).json()["id"]
    return dict(client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset}).json())


def store(key: str) -> None:
    with storage.incoming() as folder:
        (folder / "out" / "adapter").mkdir(parents=True)
        (folder / "out" / "adapter" / "weights").write_bytes(b"w")
        storage.put_folder(folder / "out", key)


def add_model(claimed: Job, key: str) -> str:
    """A model that the attempt has stored and not deployed."""
    with writing() as session:
        row = attempts.hold(session, claimed)
        model = Model(
            id=new_id("model"), project_id=row.project_id, name=row.name, kind="adapter", status="deploying", source="job",
            location=f"{key}/adapter", base_model_id=row.base_model_id, job_id=row.id, chat_template="x", facts={},
        )  # fmt: skip
        session.add(model)
        row.model_id = model.id
        return model.id


def stored_model(job: dict[str, Any]) -> tuple[Job, str, str]:
    """A first attempt that has stored its model: the claimed job, the artifact's key and the model's id."""
    claimed = attempts.claim("here")
    assert claimed is not None
    key = f"artifacts/{job['id']}/1"
    store(key)
    return claimed, key, add_model(claimed, key)


def sum_of(project_id: str) -> int:
    with reading() as session:
        return stored.stored_bytes(session, project_id)


def empty_queue() -> None:
    with queue._client().connection_for_write() as connection:
        for name in ("training", "housekeeping"):
            bound = connection.SimpleQueue(name)
            bound.clear()
            bound.close()


def test_a_lost_wake_up_is_sent_again_and_only_once(job: dict[str, Any]) -> None:
    empty_queue()
    assert queue.pending("train") == 0
    wake_for_unseen_work()
    assert queue.pending("train") == 1
    wake_for_unseen_work()
    assert queue.pending("train") == 1


def test_nobody_is_woken_for_nothing(job: dict[str, Any], client: httpx.Client) -> None:
    client.post(f"/jobs/{job['id']}/cancel")
    empty_queue()
    wake_for_unseen_work()
    assert queue.pending("train") == 0


def test_delivered_messages_do_not_pile_up(job: dict[str, Any], backend: Backend) -> None:
    with queue._client().connection_for_write() as connection:
        bound = connection.SimpleQueue("training")
        bound.clear()
        for number in range(3):
            bound.put({"number": number})
        for _ in range(3):
            bound.get(timeout=10).ack()
        sweep_read_messages()
        bound.put({"number": 3})
        assert bound.get(timeout=10).payload == {"number": 3}
        bound.close()
    if backend.name == "embedded":
        import sqlite3

        path = queue.get_settings().home.resolve() / "queue.db"
        with sqlite3.connect(path) as rows:
            assert rows.execute("SELECT count(*) FROM kombu_message WHERE visible = 0").fetchone()[0] <= 1


def test_what_a_killed_attempt_left_goes_and_what_is_needed_stays(job: dict[str, Any]) -> None:
    claimed = attempts.claim("here")
    assert claimed is not None
    lost, current, finished = f"artifacts/{job['id']}/0", f"artifacts/{job['id']}/1", "artifacts/job_done/1"
    for key in (lost, current, finished):
        store(key)
    with writing() as session:
        base = session.get_one(Model, claimed.base_model_id)
        session.add(
            Model(
                id=new_id("model"),
                project_id=base.project_id,
                name=new_id("n").replace("_", "-"),
                kind="adapter",
                status="ready",
                source="job",
                location=f"{finished}/adapter",
                base_model_id=base.id,
                job_id="job_done",
                facts={},
            )
        )
    for name in (f"{job['id']}-0", f"{job['id']}-1"):
        (workspaces() / name).mkdir(parents=True)
    remove_leftovers()
    assert [folder.name for folder in workspaces().iterdir()] == [f"{job['id']}-1"]
    assert {current, finished} <= set(storage.folders("artifacts"))
    assert lost not in storage.folders("artifacts")


def test_a_sum_of_what_a_project_stores_that_is_wrong_is_counted_anew(
    client: httpx.Client, job: dict[str, Any]
) -> None:
    """Processes of the version before add to no sum, and store more than 32 bits count."""
    recount_stored()
    before = sum_of(DEFAULT_PROJECT)
    assert before > 0
    claimed, _, id = stored_model(job)
    with writing() as session:
        session.get_one(Model, id).facts = {"stored_bytes": 2**33}
        session.get_one(Model, claimed.base_model_id).facts |= {"stored_bytes": 1}  # base models are not counted
    assert sum_of(DEFAULT_PROJECT) == before
    recount_stored()
    assert sum_of(DEFAULT_PROJECT) == before + 2**33
    client.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    with writing() as session:
        attempts.cancelled(session, attempts.hold(session, claimed))
    assert sum_of(DEFAULT_PROJECT) == before  # its model went with it


def test_a_reconciler_that_takes_long_is_not_due_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does another thread begin it while it runs."""
    clock, ran = [1000.0], list[float]()

    def slow() -> None:
        ran.append(clock[0])
        rounds.run_round()
        clock[0] += 20

    monkeypatch.setattr(rounds, "RECONCILERS", {slow: 15.0})
    monkeypatch.setattr(rounds, "_due_at", {})
    monkeypatch.setattr(rounds, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for clock[0] in (1000.0, 1030.0, 1199.0, 1200.0):
        rounds.run_round()
    assert ran == [1000.0, 1200.0]


def test_a_blob_that_no_row_refers_to_goes_when_it_is_old(client: httpx.Client) -> None:
    uploaded = client.post("/datasets", content=ROW).json()["id"]
    with reading() as session:
        kept = session.get_one(Dataset, uploaded).file.sha256
    orphans = {name: sha256(name.encode()).hexdigest() for name in ("old", "new")}
    for name, digest in orphans.items():
        with storage.incoming() as folder:
            (folder / "blob").write_text(name)
            storage.put_blob(folder / "blob", digest)
    for digest in (orphans["old"], kept):
        os.utime(storage.fetch_blob(digest), (0, 0))
    remove_orphaned_blobs()
    there = storage.blobs(before=time.time() + 60)
    assert orphans["old"] not in there
    assert {orphans["new"], kept} <= set(there)


def test_a_cancelled_job_s_stored_model_goes_with_its_name(client: httpx.Client, job: dict[str, Any]) -> None:
    claimed, key, id = stored_model(job)
    assert client.delete(f"/models/{id}").json()["error"]["code"] == "in_use"
    with writing() as session:
        attempts.hand_over(session, attempts.hold(session, claimed))
    assert client.post(f"/jobs/{job['id']}/cancel").json()["model"] is None
    assert client.get(f"/models/{id}").status_code == 404
    remove_leftovers()
    assert key not in storage.folders("artifacts")


def test_a_failed_deployment_keeps_the_weights_and_says_so(client: httpx.Client, job: dict[str, Any]) -> None:
    claimed, key, id = stored_model(job)
    with writing() as session:
        attempts.fail(session, attempts.hold(session, claimed), "deploy_failed", "No engine came up.")
    model = client.get(f"/models/{id}").json()
    assert (model["status"], model["error"]["code"]) == ("failed", "deploy_failed")
    remove_leftovers()
    assert key in storage.folders("artifacts")


@pytest.mark.parametrize("what", [Engine, EngineAdapter])
def test_what_an_engine_refuses_ends_the_deployment_with_its_reason(
    client: httpx.Client, job: dict[str, Any], what: type[Engine | EngineAdapter]
) -> None:
    claimed, _, id = stored_model(job)
    with reading() as session:
        model, row = session.get_one(Model, id), session.get_one(Job, claimed.id)
    seen = []

    def controller() -> None:
        """Refuses between two looks; that it was asked for before is forgotten."""
        seen.append(1)
        if len(seen) == 2:
            with writing() as session:
                engine = session.get_one(Engine, model.base_model_id)
                refused = engine if what is Engine else session.get_one(what, id)
                refused.error = {"code": "refused", "message": "No such layer.", "param": None, "hint": None}
                engine.status, engine.generation = "failed" if what is Engine else "ready", 1

    with pytest.raises(DeployFailed, match="No such layer"):
        deploy(row, model, controller)
    assert len(seen) == 2


def test_an_engine_that_finds_no_memory_is_asked_for_again(client: httpx.Client, job: dict[str, Any]) -> None:
    claimed, _, id = stored_model(job)
    with reading() as session:
        model, row = session.get_one(Model, id), session.get_one(Job, claimed.id)
    codes, found = ["engine_memory", "refused"], []

    def controller() -> None:
        with writing() as session:
            engine = session.get_one(Engine, model.base_model_id)
            found.append(engine.status)
            engine.status = "failed"
            engine.error = {"code": codes[len(found) - 1], "message": "Not now.", "param": None, "hint": "Wait."}

    with pytest.raises(DeployFailed, match=r"Not now\.") as failed:
        deploy(row, model, controller)
    assert (found[1:], failed.value.hint) == (["wanted"], "Wait.")


def test_a_second_attempt_keeps_the_measurements_of_a_model_that_is_stored(
    client: httpx.Client, job: dict[str, Any]
) -> None:
    claimed = attempts.claim("here")
    assert claimed is not None
    step = {"type": "step", "step": 1, "loss": 1.0, "learning_rate": 1.0, "grad_norm": 1.0, "tokens": 1, "epoch": 1.0}
    with writing() as session:
        row = attempts.heartbeat(session, claimed)
        attempts.record(session, row, [step | {"tokens_per_second": 1.0, "eta_seconds": 0.0}])
    add_model(claimed, f"artifacts/{job['id']}/1")
    with writing() as session:
        attempts.hand_over(session, attempts.hold(session, claimed))
    assert attempts.claim("next") is not None
    assert len(client.get(f"/jobs/{job['id']}/metrics").json()["data"]) == 1


def test_a_name_that_a_job_will_give_cannot_be_registered(client: httpx.Client, job: dict[str, Any]) -> None:
    answer = client.post("/models", json={"name": job["name"], "source": "hf://owner/name"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "name_taken")


def test_a_long_piece_of_work_keeps_its_lease(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conftest import eventually

    claimed = attempts.claim("here")
    assert claimed is not None
    monkeypatch.setattr(queue.get_settings(), "lease_seconds", 0.3)

    def lease() -> Any:
        with writing() as session:
            return session.get_one(Job, job["id"]).lease_expires_at

    before = lease()
    with attempts.renewing(claimed):
        eventually(lambda: lease() != before, 10, "a renewed lease")
