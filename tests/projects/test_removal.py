"""A project is removed with everything that it owns, and with nothing else."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import select

from app.jobs import attempts
from app.kit import storage
from app.kit.database import DEFAULT_PROJECT, Base, reading
from app.kit.leases import LeaseLost
from app.projects import service as projects
from app.settings import get_settings
from tests.conftest import DEMO_BASE
from tests.datasets.helpers import jsonl, new_row, refusal
from tests.projects.conftest import As, Keys, fine_tune


def rows_of(project: str) -> dict[str, int]:
    """How many rows of each table are of the project."""
    with reading() as session:
        tables = [table for table in Base.metadata.sorted_tables if "project_id" in table.c]
        counts = {
            table.name: len(session.execute(select(table).where(table.c.project_id == project)).all())
            for table in tables
        }
    return {name: count for name, count in counts.items() if count}


def blobs() -> set[Path]:
    return {path for path in (get_settings().home / "blobs").rglob("*") if path.is_file()}


@pytest.fixture
def passing(keys: Keys, client_of: As) -> tuple[str, str, httpx.Client]:
    """The name and id of a new project, and a client of it."""
    name = f"passing-{uuid4().hex[:8]}"
    made = client_of(keys.admin).post("/projects", json={"name": name}).raise_for_status().json()
    key = client_of(keys.admin).post("/keys", json={"project": name, "role": "write"}).json()["key"]
    return name, made["id"], client_of(key)


def fill(name: str, client: httpx.Client, tmp_path: Path) -> dict[str, Any]:
    """Some of everything; the job that was made."""
    dataset = client.post("/datasets", content=jsonl([new_row()]), headers={"Idempotency-Key": "a"}).json()
    client.get(f"/datasets/{dataset['id']}/rows").raise_for_status()
    client.post("/datasets", content=b"not a row")
    client.put("/secrets/hf_token", json={"value": "x"}).raise_for_status()
    client.post("/webhooks", json={"url": "https://example.org"}).raise_for_status()
    key = f"artifacts/{uuid4().hex}/1"
    (tmp_path / "out/adapter").mkdir(parents=True)
    (tmp_path / "out/adapter/weights").write_text("weights")
    storage.put_folder(tmp_path / "out", key)
    fine_tune(name, "tuned", location=f"{key}/adapter")
    job: dict[str, Any] = client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset["id"]}).json()
    return job


def test_all_of_it_goes(keys: Keys, client_of: As, passing: tuple[str, str, httpx.Client], tmp_path: Path) -> None:
    (name, id, client), admin = passing, client_of(keys.admin)
    before = blobs()
    fill(name, client, tmp_path)
    assert {
        "files",
        "reports",
        "datasets",
        "models",
        "jobs",
        "keys",
        "secrets",
        "answers",
        "webhooks",
        "deliveries",
    } <= rows_of(id).keys()
    assert len(blobs() - before) >= 4
    assert admin.delete(f"/projects/{name}").status_code == 204
    assert rows_of(id) == {}
    assert blobs() == before
    refusal(client.get("/jobs"), 401, "invalid_key")
    refusal(admin.get(f"/projects/{id}"), 404, "project_not_found")
    (entry,) = admin.get("/audit", params={"target": id, "action": "project.delete"}).json()["data"]
    assert entry["data"] == {"name": name}
    assert admin.get("/audit", params={"project": id}).json()["data"]  # what it did stays in the log


def test_bytes_that_another_project_has_too_stay(
    keys: Keys, client_of: As, passing: tuple[str, str, httpx.Client]
) -> None:
    (name, _, client), ours, content = passing, client_of(keys.ours["write"]), jsonl([new_row()])
    kept = ours.post("/datasets", content=content).raise_for_status().json()
    client.post("/datasets", content=content).raise_for_status()
    client_of(keys.admin).delete(f"/projects/{name}").raise_for_status()
    assert len(ours.get(f"/datasets/{kept['id']}/rows").raise_for_status().json()["data"]) == 1


def test_its_base_models_pass_to_the_default_project(
    keys: Keys, client_of: As, passing: tuple[str, str, httpx.Client]
) -> None:
    (name, _, client), admin = passing, client_of(keys.admin)
    base = f"base-{uuid4().hex[:8]}"
    client.post("/models", json={"name": base, "source": str(DEMO_BASE)}).raise_for_status()
    admin.delete(f"/projects/{name}").raise_for_status()
    assert client_of(keys.ours["read"]).get(f"/models/{base}").status_code == 200
    assert admin.delete(f"/models/{base}").status_code == 204


def test_a_job_that_runs_loses_its_lease(
    keys: Keys, client_of: As, passing: tuple[str, str, httpx.Client], tmp_path: Path
) -> None:
    name, id, client = passing
    while attempts.claim("before"):
        pass
    fill(name, client, tmp_path)
    job = attempts.claim("test")
    assert job is not None
    assert job.project_id == id
    client_of(keys.admin).delete(f"/projects/{name}").raise_for_status()
    with reading() as session, pytest.raises(LeaseLost):
        attempts.heartbeat(session, job)


def test_it_goes_while_it_is_in_use(keys: Keys, client_of: As, passing: tuple[str, str, httpx.Client]) -> None:
    """Whoever is in the middle of something gets an answer in words, and nothing is left behind."""
    name, id, client = passing
    ended, statuses = threading.Event(), list[int]()

    def use() -> None:
        while not ended.is_set():
            dataset = client.post("/datasets", content=jsonl([new_row()]))
            statuses.append(dataset.status_code)
            if dataset.is_success:
                body = {"base_model": "demo-base", "dataset": dataset.json()["id"]}
                statuses.append(client.post("/jobs", json=body).status_code)

    with ThreadPoolExecutor(4) as pool:
        users = [pool.submit(use) for _ in range(4)]
        while len(statuses) < 12:
            ended.wait(0.01)
        answer = client_of(keys.admin).delete(f"/projects/{name}")
        ended.set()
        for user in users:
            user.result()
    assert answer.status_code == 204, answer.text
    assert set(statuses) <= {201, 202, 401, 409, 422}, statuses
    assert rows_of(id) == {}


def test_the_default_project_and_the_last_admin_s_key_stay(keys: Keys, client_of: As) -> None:
    admin = client_of(keys.admin)
    refusal(admin.delete("/projects/default"), 409, "in_use")
    assert rows_of(DEFAULT_PROJECT)["keys"] >= 1
    other = admin.post("/projects", json={"name": "with-an-admin"}).json()
    admin.post("/keys", json={"project": other["id"], "role": "admin"}).raise_for_status()
    assert admin.delete(f"/projects/{other['id']}").status_code == 204
    assert projects.get_project("default").id == DEFAULT_PROJECT


def test_a_grant_shows_a_fine_tune_and_nothing_else(keys: Keys, client_of: As) -> None:
    admin, ours, theirs = client_of(keys.admin), client_of(keys.ours["write"]), client_of(keys.theirs["write"])
    name = f"granted-{uuid4().hex[:8]}"
    fine_tune("default", name)
    refusal(ours.get(f"/models/{name}"), 404, "model_not_found")
    granted = admin.put(f"/models/{name}/grants/ours").raise_for_status().json()
    assert granted == admin.put(f"/models/{name}/grants/{granted['project']}").json()
    assert admin.get(f"/models/{name}/grants").json()["data"] == [granted]
    assert ours.get(f"/models/{name}").json()["kind"] == "adapter"
    assert name in ours.get("/models", params={"limit": 1000}).text
    assert name in client_of(keys.ours["infer"]).get("/v1/models").text
    refusal(theirs.get(f"/models/{name}"), 404, "model_not_found")
    refusal(ours.delete(f"/models/{name}"), 403, "forbidden_role")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(get_settings(), "engine_wait_seconds", 0.1)
        ask = {"model": name, "messages": [{"role": "user", "content": "Hi"}]}
        refusal(theirs.post("/v1/chat/completions", json=ask), 404, "model_not_found")
        refusal(ours.post("/v1/chat/completions", json=ask), 422, "invalid_value")  # it has no chat template
    assert admin.delete(f"/models/{name}/grants/ours").status_code == 204
    refusal(ours.get(f"/models/{name}"), 404, "model_not_found")


def test_one_s_own_model_comes_before_one_that_is_granted(keys: Keys, client_of: As) -> None:
    admin, ours, name = client_of(keys.admin), client_of(keys.ours["read"]), f"same-{uuid4().hex[:8]}"
    granted = fine_tune("default", name)
    admin.put(f"/models/{name}/grants/ours").raise_for_status()
    assert ours.get(f"/models/{name}").json()["id"] == granted
    own = fine_tune("ours", name)
    assert ours.get(f"/models/{name}").json()["id"] == own
    assert ours.get(f"/models/{granted}").json()["id"] == granted


def test_a_grant_that_makes_no_sense_is_refused(keys: Keys, client_of: As) -> None:
    admin, name = client_of(keys.admin), f"tune-{uuid4().hex[:8]}"
    fine_tune("default", name)
    assert refusal(admin.put("/models/demo-base/grants/ours"), 422, "invalid_value")["param"] == "name"
    assert refusal(admin.put(f"/models/{name}/grants/default"), 422, "invalid_value")["param"] == "project"
    refusal(admin.put(f"/models/{name}/grants/nobody"), 404, "project_not_found")
    refusal(admin.put("/models/nothing/grants/ours"), 404, "model_not_found")
    fine_tune("ours", name)
    theirs = client_of(keys.theirs["read"])
    refusal(theirs.put(f"/models/{name}/grants/theirs"), 403, "forbidden_role")
