"""`Idempotency-Key`: what is asked for again creates nothing again, whatever went wrong in between."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import select, update

from app.jobs import verbs as jobs
from app.kit.database import reading, utc_now, writing
from app.projects import service as projects
from app.projects.access import Creates
from app.projects.tables import Answer
from tests.conftest import DEMO_BASE
from tests.datasets.helpers import jsonl, new_row, refusal
from tests.projects.conftest import As, Keys
from tests.projects.test_access import ROUTES
from worker.reconcilers.expired_answers import remove_expired_answers

Make = Callable[[httpx.Client], dict[str, Any]]


def _job(client: httpx.Client) -> dict[str, Any]:
    dataset = client.post("/datasets", content=jsonl([new_row()])).raise_for_status().json()
    return {"base_model": "demo-base", "dataset": dataset["id"], "name": f"named-{uuid4().hex[:8]}"}


# Route → a body that creates something new.
BODIES: dict[str, Make] = {
    "/projects": lambda _: {"name": f"p-{uuid4().hex[:8]}"},
    "/keys": lambda _: {"role": "read"},
    "/models": lambda _: {"name": f"m-{uuid4().hex[:8]}", "source": str(DEMO_BASE)},
    "/jobs": _job,
    "/webhooks": lambda _: {"url": f"https://example.org/{uuid4().hex[:8]}"},
}


def _as_json(body: dict[str, Any]) -> dict[str, Any]:
    return {"json": body}


def test_every_post_that_answers_201_or_202_takes_a_key() -> None:
    creates = {route.path for route in ROUTES if route.status_code in (201, 202) and "POST" in route.methods}
    takes = {
        route.path for route in ROUTES if any(isinstance(each.call, Creates) for each in route.dependant.dependencies)
    }
    assert creates == takes == {*BODIES, "/datasets", "/webhooks/{id}/test"}


@pytest.mark.parametrize("path", BODIES)
def test_the_same_key_gives_the_first_answer(keys: Keys, client_of: As, path: str) -> None:
    admin, key = client_of(keys.admin), {"Idempotency-Key": str(uuid4())}
    body = BODIES[path](admin)
    first = admin.post(path, json=body, headers=key).raise_for_status()
    assert "Idempotent-Replayed" not in first.headers
    # The same request, written in another order.
    again = admin.post(path, json=dict(reversed(body.items())), headers=key)
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["Idempotent-Replayed"] == "true"
    assert sum(each["id"] == first.json()["id"] for each in admin.get(path, params={"limit": 1000}).json()["data"]) == 1
    other = body | {"name": "another", "url": "https://example.org/another"}
    refusal(admin.post(path, json=other, headers=key), 409, "idempotency_mismatch")
    if path == "/jobs":
        jobs.cancel(projects.get_project("default").id, first.json()["id"])
        assert admin.post(path, json=body, headers=key).json()["status"] == "queued"


def test_an_upload_is_the_same_by_its_bytes_and_fields(keys: Keys, client_of: As) -> None:
    ours, key = client_of(keys.ours["write"]), {"Idempotency-Key": str(uuid4())}
    rows = jsonl([new_row()])
    first = ours.post("/datasets", files={"file": ("a.jsonl", rows)}, headers=key).raise_for_status()
    again = ours.post("/datasets", files={"file": ("a.jsonl", rows)}, headers=key)
    assert (again.status_code, again.json()) == (201, first.json())  # without the key it is 200: it is there
    assert again.headers["Idempotent-Replayed"] == "true"
    for name, content in (("a.jsonl", jsonl([new_row()])), ("b.jsonl", rows)):
        refusal(ours.post("/datasets", files={"file": (name, content)}, headers=key), 409, "idempotency_mismatch")


@pytest.mark.parametrize("path", BODIES)
def test_of_many_at_once_one_creates(keys: Keys, client_of: As, path: str) -> None:
    admin, key = client_of(keys.admin), {"Idempotency-Key": str(uuid4())}
    body = BODIES[path](admin)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: admin.post(path, json=body, headers=key), range(8)))
    assert len({answer.text for answer in answers}) == 1, [answer.text for answer in answers]
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1


def test_a_refusal_is_not_remembered(keys: Keys, client_of: As) -> None:
    admin, key, name = client_of(keys.admin), {"Idempotency-Key": str(uuid4())}, f"taken-{uuid4().hex[:8]}"
    made = admin.post("/projects", json={"name": name}).raise_for_status().json()
    refusal(admin.post("/projects", json={"name": name}, headers=key), 409, "name_taken")
    admin.delete(f"/projects/{made['id']}").raise_for_status()
    assert admin.post("/projects", json={"name": name}, headers=key).status_code == 201


def test_a_key_is_of_one_project_and_one_route(keys: Keys, client_of: As) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    made = []
    for client in (client_of(keys.ours["write"]), client_of(keys.theirs["write"])):
        body = {"base_model": "demo-base", "dataset": _job(client)["dataset"]}
        made.append(client.post("/jobs", json=body, headers=key).raise_for_status().json()["id"])
    assert made[0] != made[1]
    admin = client_of(keys.admin)
    admin.post("/keys", json={"role": "read"}, headers=key).raise_for_status()
    refusal(admin.post("/projects", json={"name": "one-more"}, headers=key), 409, "idempotency_mismatch")


def test_it_is_forgotten_after_a_day(keys: Keys, client_of: As) -> None:
    admin, key = client_of(keys.admin), {"Idempotency-Key": str(uuid4())}
    first = admin.post("/keys", json={"role": "read"}, headers=key).raise_for_status().json()
    with writing() as session:
        session.execute(update(Answer).values(created_at=utc_now() - timedelta(hours=24)))
    assert admin.post("/keys", json={"role": "infer"}, headers=key).raise_for_status().json()["id"] != first["id"]
    with writing() as session:
        session.execute(update(Answer).values(created_at=utc_now() - timedelta(hours=24)))
    remove_expired_answers()
    with reading() as session:
        assert session.scalars(select(Answer)).all() == []


def test_no_answer_can_be_read_in_the_database(keys: Keys, client_of: As) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    made = client_of(keys.admin).post("/keys", json={"role": "read"}, headers=key).raise_for_status().json()
    with reading() as session:
        for answer in session.scalars(select(Answer)):
            assert made["key"] not in answer.body
            assert made["id"] not in answer.body


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_a_bad_key_is_named(keys: Keys, client_of: As, key: str) -> None:
    answer = client_of(keys.admin).post("/keys", json={"role": "read"}, headers={"Idempotency-Key": key})
    assert refusal(answer, 422, "invalid_value")["param"] == "Idempotency-Key"
