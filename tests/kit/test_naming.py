"""Names find what ids find, and a name that several have is refused with their ids."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.kit.naming import LISTED_IDS
from tests.datasets.helpers import jsonl, new_row


@pytest.fixture
def name() -> str:
    """A name that nothing has yet."""
    return f"n-{secrets.token_hex(4)}"


@pytest.fixture
def upload(client: httpx.Client) -> Callable[[str], str]:
    """Uploads other rows each time, under a name; returns the id."""

    def upload(name: str) -> str:
        answer = client.post("/datasets", params={"name": name}, content=jsonl([new_row(), new_row()]))
        return str(answer.raise_for_status().json()["id"])

    return upload


@pytest.fixture
def start(client: httpx.Client, upload: Callable[[str], str]) -> Callable[..., dict[str, Any]]:
    """Starts a job."""

    def start(**fields: Any) -> dict[str, Any]:
        body = {"base_model": "demo-base"} | fields
        job: dict[str, Any] = client.post("/jobs", json=body).raise_for_status().json()
        return job

    return start


def ambiguous(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 409, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == "ambiguous_name"
    return error


def test_a_dataset_s_name_is_as_good_as_its_id(client: httpx.Client, name: str, upload: Callable[[str], str]) -> None:
    id = upload(name)
    assert client.get(f"/datasets/{name}").json() == client.get(f"/datasets/{id}").json()
    assert client.get(f"/datasets/{name}/rows").json()["data"]
    assert client.delete(f"/datasets/{name}").status_code == 204
    assert client.get(f"/datasets/{id}").status_code == 404


def test_a_job_names_its_datasets(
    name: str, upload: Callable[[str], str], start: Callable[..., dict[str, Any]], client: httpx.Client
) -> None:
    ids = {part: upload(f"{name}-{part}.jsonl") for part in ("rows", "held", "general")}
    job = start(
        dataset=f"{name}-rows.jsonl",
        validation={"dataset": f"{name}-held.jsonl"},
        replay={"dataset": f"{name}-general.jsonl"},
    )
    named = (job["dataset"], job["validation"]["dataset"], job["replay"]["dataset"])
    assert named == (ids["rows"], ids["held"], ids["general"])
    refused = client.delete(f"/datasets/{name}-held.jsonl")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")


def test_a_name_of_several_datasets_is_refused_with_their_ids(
    client: httpx.Client, name: str, upload: Callable[[str], str]
) -> None:
    ids = [upload(name) for _ in range(2)]
    assert ids[1] in ambiguous(client.delete(f"/datasets/{name}"))["hint"]
    error = ambiguous(client.post("/jobs", json={"base_model": "demo-base", "dataset": name}))
    assert (error["param"], error["message"]) == ("dataset", f"2 datasets have the name '{name}'.")
    assert error["hint"] == f"Use an id. From the newest on: {ids[1]}, {ids[0]}."
    assert [client.get(f"/datasets/{id}").status_code for id in ids] == [200, 200]
    ids += [upload(name) for _ in range(LISTED_IDS - 1)]
    error = ambiguous(client.get(f"/datasets/{name}"))
    assert error["message"] == f"More than {LISTED_IDS} datasets have the name '{name}'."
    assert ids[0] not in error["hint"]


def test_a_job_s_name_is_as_good_as_its_id(
    client: httpx.Client, name: str, upload: Callable[[str], str], start: Callable[..., dict[str, Any]]
) -> None:
    job = start(dataset=upload(name), name=name)
    assert client.get(f"/jobs/{name}").json()["id"] == job["id"]
    assert [event["type"] for event in client.get(f"/jobs/{name}/events").json()["data"]] == ["created"]
    with client.stream("GET", f"/jobs/{name}/events", headers={"Accept": "text/event-stream"}) as stream:
        lines = stream.iter_lines()
        assert json.loads(next(line for line in lines if line.startswith("data: "))[6:])["type"] == "created"
        assert client.post(f"/jobs/{name}/cancel").json()["status"] == "cancelled"
        assert "event: cancelled" in lines
    for what in ("metrics", "checkpoints", "logs"):
        assert client.get(f"/jobs/{name}/{what}").json()["data"] == []
    assert client.delete(f"/jobs/{name}").status_code == 204


def test_a_name_is_the_job_s_that_came_to_something(
    client: httpx.Client, name: str, upload: Callable[[str], str], start: Callable[..., dict[str, Any]]
) -> None:
    dataset = upload(name)
    cancelled = []
    for _ in range(2):
        cancelled.append(start(dataset=dataset, name=name)["id"])
        client.post(f"/jobs/{cancelled[-1]}/cancel").raise_for_status()
    assert ambiguous(client.get(f"/jobs/{name}"))["hint"].endswith(f"{cancelled[1]}, {cancelled[0]}.")
    queued = start(dataset=dataset, name=name)["id"]
    assert client.get(f"/jobs/{name}").json()["id"] == queued
    with client.stream("GET", f"/jobs/{name}/events", headers={"Accept": "text/event-stream"}) as stream:
        lines = stream.iter_lines()
        assert "event: created" in lines
        client.post(f"/jobs/{name}/cancel").raise_for_status()  # now three have the name, and the stream goes on
        assert "event: cancelled" in lines


def test_another_project_s_names_find_nothing(client: httpx.Client, name: str, upload: Callable[[str], str]) -> None:
    from app.datasets import service
    from app.kit.errors import NotFound

    upload(name)
    with pytest.raises(NotFound):
        service.get("proj_other", name)


def test_a_name_with_a_nul_is_nobody_s(client: httpx.Client) -> None:
    assert client.get("/datasets/a%00b").status_code == 404
    assert client.get("/jobs/a%00b").status_code == 404
