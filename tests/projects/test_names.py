"""A model's name means one thing in a project, and nobody outside the project can change what it means."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from app.jobs import attempts
from app.kit.database import reading, writing
from app.kit.ids import new_id
from app.models.service import find
from app.projects.tables import Project
from tests.conftest import DEMO_BASE
from tests.datasets.helpers import jsonl, new_row, refusal
from tests.models.test_checkpoints import write_output
from tests.projects.conftest import As, Keys, fine_tune
from worker.publish import publish


@pytest.fixture
def name() -> str:
    return f"support-{uuid4().hex[:8]}"


def register(client: httpx.Client, name: str) -> httpx.Response:
    return client.post("/models", json={"name": name, "source": str(DEMO_BASE)})


def start_job(client: httpx.Client, name: str) -> httpx.Response:
    dataset = client.post("/datasets", content=jsonl([new_row()])).raise_for_status().json()["id"]
    return client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset, "name": name})


def test_a_base_model_shadows_no_fine_tune_of_another_project(keys: Keys, client_of: As, name: str) -> None:
    admin, ours, theirs = client_of(keys.admin), client_of(keys.ours["write"]), client_of(keys.theirs["write"])
    granted = fine_tune("default", name)
    admin.put(f"/models/{name}/grants/ours").raise_for_status()
    base = register(theirs, name).raise_for_status().json()  # a refusal would tell that the fine-tune exists
    for client, meant in ((ours, granted), (admin, granted), (theirs, base["id"])):
        assert client.get(f"/models/{name}").json()["id"] == meant
        assert client.get(f"/models/{base['id']}").json()["id"] == base["id"]
        assert [model["id"] for model in client.get("/v1/models").json()["data"]].count(name) == 1
    admin.delete(f"/models/{name}").raise_for_status()
    assert ours.get(f"/models/{name}").json()["id"] == base["id"]


def test_a_project_takes_no_name_that_it_sees(keys: Keys, client_of: As, name: str) -> None:
    admin, ours = client_of(keys.admin), client_of(keys.ours["write"])
    fine_tune("default", name)
    admin.put(f"/models/{name}/grants/ours").raise_for_status()
    assert refusal(register(ours, name), 409, "name_taken")["param"] == "name"
    assert refusal(start_job(ours, name), 409, "name_taken")["param"] == "name"


def test_nothing_is_granted_under_a_name_that_means_something(keys: Keys, client_of: As, name: str) -> None:
    admin, ours, theirs = client_of(keys.admin), client_of(keys.ours["write"]), client_of(keys.theirs["write"])
    names = [f"{name}-{number}" for number in range(4)]
    for each in names:
        fine_tune("default", each)
    fine_tune("ours", names[0])
    register(theirs, names[1]).raise_for_status()  # every project sees it
    job = start_job(ours, names[2]).raise_for_status().json()
    for each in names[:3]:
        refused = refusal(admin.put(f"/models/{each}/grants/ours"), 409, "name_taken")
        assert (refused["param"], each in refused["message"]) == ("project", True)
        assert admin.get(f"/models/{each}/grants").json()["data"] == []
    ours.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    for each in names[2:]:
        admin.put(f"/models/{each}/grants/ours").raise_for_status()


# The second is the id of the project that is always there; the others are none, but could be.
@pytest.mark.parametrize(
    ("path", "id"),
    [
        ("/projects", "proj_01k0000000000000000000000x"),
        ("/projects", "proj_default"),
        ("/models", "model_01k0000000000000000000000x"),
    ],
)
def test_a_name_does_not_look_like_an_id(keys: Keys, client_of: As, path: str, id: str) -> None:
    body = {"name": id} | ({"source": str(DEMO_BASE)} if path == "/models" else {})
    error = refusal(client_of(keys.admin).post(path, json=body), 422, "invalid_value")
    assert (error["param"], "look like an id" in error["message"]) == ("name", True)
    plausible = f"{id.split('_')[0]}_{uuid4().hex[:8]}"
    assert client_of(keys.admin).post(path, json=body | {"name": plausible}).status_code == 201


def test_a_job_s_name_does_not_look_like_an_id(keys: Keys, client_of: As) -> None:
    error = refusal(start_job(client_of(keys.ours["write"]), new_id("model")), 422, "invalid_value")
    assert error["param"] == "name"


def test_an_id_comes_before_a_name_that_equals_it(keys: Keys, client_of: As, name: str) -> None:
    """Names that look like ids were allowed once: nothing may break by them, and they can be removed."""
    admin, ours = client_of(keys.admin), client_of(keys.ours["write"])
    with writing() as session:
        session.add(Project(id=(odd := new_id("proj")), name="proj_default"))
    assert admin.get("/projects/proj_default").json()["name"] == "default"
    made = admin.post("/keys", json={"project": "proj_default", "role": "read"}).raise_for_status().json()
    assert made["project"] == "proj_default"
    assert admin.delete(f"/projects/{odd}").status_code == 204
    granted = fine_tune("default", name)
    admin.put(f"/models/{name}/grants/ours").raise_for_status()
    own = fine_tune("ours", granted)
    assert ours.get(f"/models/{granted}").json()["id"] == granted
    assert ours.delete(f"/models/{own}").status_code == 204


def test_of_a_grant_and_a_new_model_of_the_same_name_one_wins(keys: Keys, client_of: As) -> None:
    def settled(round: int) -> list[int]:
        name, start = f"race-{uuid4().hex[:8]}", threading.Barrier(2)
        fine_tune("default", name)

        def grant() -> int:
            with client_of(keys.admin) as admin:
                start.wait(10)
                return admin.put(f"/models/{name}/grants/ours").status_code

        def take() -> int:
            with client_of(keys.ours["write"]) as ours:
                start.wait(10)
                return register(ours, name).status_code

        with ThreadPoolExecutor(2) as pool:
            return [answer.result() for answer in [pool.submit(grant), pool.submit(take)]]

    assert {tuple(settled(round)) for round in range(6)} <= {(200, 409), (409, 201)}


def test_a_job_keeps_its_name_when_another_project_registers_a_base_model_under_it(
    keys: Keys, client_of: As, name: str, tmp_path: Path
) -> None:
    while attempts.claim("before"):
        pass
    job = start_job(client_of(keys.ours["write"]), name).raise_for_status().json()
    base = register(client_of(keys.theirs["write"]), name).raise_for_status().json()
    claimed = attempts.claim("here")
    assert claimed is not None
    assert claimed.id == job["id"]
    write_output(tmp_path / "out", claimed.base_model_id)
    model = publish(claimed, tmp_path / "out")
    assert model.name == name
    with reading() as session:
        own = find(session, claimed.project_id, name)
        other = find(session, claimed.project_id, base["id"])
    assert own is not None
    assert other is not None
    assert (own.id, other.id) == (model.id, base["id"])
