"""GET /jobs/{id}/events as a stream: nothing is missed, a resumed stream goes on where it was, and it ends with the job."""

from __future__ import annotations

import threading
from typing import Any

import httpx
from httpx_sse import connect_sse

from app.jobs import attempts
from app.kit.database import writing


def stream(client: httpx.Client, id: str, last: int | None = None) -> list[tuple[str, str]]:
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with connect_sse(client, "GET", f"/jobs/{id}/events", headers=headers) as source:
        return [(event.id, event.event) for event in source.iter_sse()]


def test_a_stream_brings_every_event_and_ends_with_the_job(client: httpx.Client, dataset: str) -> None:
    job: dict[str, Any] = client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset}).json()
    seen: list[tuple[str, str]] = []
    with httpx.Client(base_url=client.base_url, timeout=60) as other:
        reader = threading.Thread(target=lambda: seen.extend(stream(other, job["id"])))
        reader.start()
        while (claimed := attempts.claim("here")) is not None and claimed.id != job["id"]:
            pass
        assert claimed is not None
        with writing() as session:
            attempts.fail(session, attempts.hold(session, claimed), "trainer_error", "It broke.")
        reader.join(30)
    assert seen == [("1", "created"), ("2", "started"), ("3", "failed")]
    assert stream(client, job["id"], last=2) == [("3", "failed")]
    assert stream(client, job["id"], last=3) == []


def test_head_of_a_stream_ends_while_the_job_goes_on(client: httpx.Client, dataset: str) -> None:
    job = client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset}).json()["id"]
    answer = client.head(f"/jobs/{job}/events", headers={"Accept": "text/event-stream"}, timeout=10)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


def test_an_unknown_job_has_no_events(client: httpx.Client) -> None:
    assert client.get("/jobs/job_none/events").json()["error"]["code"] == "job_not_found"
