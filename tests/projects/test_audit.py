"""The audit log: one entry for every change. The routes are the application's: a new one that changes things fails here."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, update
from sqlalchemy.exc import DBAPIError

from app.jobs.tables import Job
from app.kit.database import writing
from app.projects import service as projects
from app.projects.tables import Entry
from tests.conftest import DEMO_BASE
from tests.datasets.helpers import jsonl, new_row
from tests.projects.conftest import As, Keys, fine_tune
from tests.projects.test_access import NAMED

# POSTs that change nothing.
ASKS = {
    "/datasets/{id}/preview",
    "/datasets/{id}/check",
    "/models/{name}/score",
    "/v1/chat/completions",
    "/v1/completions",
}

# In an order in which each can be done: route → its action, how the ids of its path are called, body. A body's `$x` is the id x.
CHANGES: list[tuple[str, str, str, dict[str, Any] | None]] = [
    ("POST /projects", "project.create", "project", {"name": "audited"}),
    ("POST /keys", "key.create", "key", {"role": "read", "name": "short-lived"}),
    ("POST /keys/{id}/rotate", "key.rotate", "key", None),
    ("PATCH /keys/{id}", "key.change", "key", {"limits": {"requests_per_minute": 1000}}),
    ("PATCH /projects/{name}", "project.change", "project", {"limits": {"queued_jobs": 3}}),
    ("DELETE /keys/{id}", "key.delete", "key", None),
    ("DELETE /projects/{name}", "project.delete", "project", None),
    ("POST /datasets", "dataset.create", "dataset", None),
    ("POST /models", "model.create", "model", {"name": "audited-base", "source": str(DEMO_BASE)}),
    ("POST /jobs", "job.create", "job", {"base_model": "audited-base", "dataset": "$dataset"}),
    ("POST /jobs/{id}/pause", "job.pause", "job", None),
    ("POST /jobs/{id}/resume", "job.resume", "job", None),
    ("POST /jobs/{id}/retry", "job.retry", "job", None),
    ("POST /jobs/{id}/cancel", "job.cancel", "job", None),
    ("DELETE /jobs/{id}", "job.delete", "job", None),
    ("DELETE /datasets/{id}", "dataset.delete", "dataset", None),
    ("PUT /models/{name}/grants/{project}", "model.grant", "tune", None),
    ("DELETE /models/{name}/grants/{project}", "model.revoke", "tune", None),
    ("DELETE /models/{name}", "model.delete", "model", None),
    ("POST /webhooks", "webhook.create", "webhook", {"url": "https://example.org/not-in-the-log"}),
    ("PATCH /webhooks/{id}", "webhook.change", "webhook", {"url": "https://example.org/not-in-the-log"}),
    ("POST /webhooks/{id}/rotate", "webhook.rotate", "webhook", None),
    ("POST /webhooks/{id}/test", "webhook.test", "webhook", None),
    ("POST /webhooks/{id}/deliveries/{delivery}/resend", "webhook.resend", "webhook", None),
    ("DELETE /webhooks/{id}", "webhook.delete", "webhook", None),
    ("PUT /secrets/{name}", "secret.put", "secret", {"value": "not in the log"}),
    ("DELETE /secrets/{name}", "secret.delete", "secret", None),
]


def test_every_change_is_in_the_log(keys: Keys, client_of: As) -> None:
    asked = {f"{method} {path}" for method, path, _ in NAMED if method != "GET" and path not in ASKS}
    assert {route for route, *_ in CHANGES} == asked
    admin, ids = client_of(keys.admin), {"tune": fine_tune("default", "audited-tune")}
    of_admin = next(key["id"] for key in admin.get("/keys").json()["data"] if key["name"] == "first")
    for route, action, noun, body in CHANGES:
        method, path = route.split()
        named = "audited" if noun == "secret" else ids.get(noun, "")
        url = path.replace("{id}", named).replace("{name}", named).replace("{project}", "ours")
        url = url.replace("{delivery}", ids.get("delivery", ""))
        sent: dict[str, Any] = {"content": jsonl([new_row()])} if path == "/datasets" else {"json": body}
        if body:
            sent = {"json": {name: ids[value[1:]] if str(value)[0] == "$" else value for name, value in body.items()}}
        if action == "job.retry":  # what no request can bring about: a failed job
            with writing() as session:
                session.get_one(Job, ids["job"]).status = "failed"
        before = {entry["id"] for entry in admin.get("/audit", params={"limit": 1000}).json()["data"]}
        answer = admin.request(method, url, **sent).raise_for_status()
        if path.count("/") == 1 or (noun == "secret" and method == "PUT"):
            ids[noun] = answer.json()["id"]
        if action == "webhook.test":
            ids["delivery"] = answer.json()["id"]
        entries = admin.get("/audit", params={"limit": 1000}).json()["data"]
        (entry,) = [entry for entry in entries if entry["id"] not in before]
        assert (entry["action"], entry["target"], entry["key"]) == (action, ids[noun], of_admin)
        assert (entry["role"], entry["key_name"], entry["address"]) == ("admin", "first", "127.0.0.1")
        assert "not-in-the-log" not in str(entry)
        if "key" in answer.text and answer.content and "key" in answer.json():
            assert answer.json()["key"] not in str(entry)


def test_what_is_refused_changes_nothing_and_is_not_there(keys: Keys, client_of: As) -> None:
    admin = client_of(keys.admin)
    before = admin.get("/audit").json()["data"]
    for role in ("read", "write"):
        client_of(keys.ours[role]).post("/jobs", json={"base_model": "demo-base", "dataset": "none"})
    client_of(keys.ours["write"]).delete("/datasets/none")
    assert admin.get("/audit").json()["data"] == before


def test_the_log_is_searched_by_key_and_action(keys: Keys, client_of: As) -> None:
    ours, admin = client_of(keys.ours["write"]), client_of(keys.admin)
    dataset = ours.post("/datasets", content=jsonl([new_row()])).raise_for_status().json()["id"]
    (entry,) = admin.get("/audit", params={"target": dataset}).json()["data"]
    by_key = admin.get("/audit", params={"key": entry["key"], "action": "dataset.create"}).json()["data"]
    assert entry in by_key
    assert {each["key_name"] for each in by_key} == {"write"}
    assert {each["project"] for each in by_key} == {projects.get_project("ours").id}
    assert admin.get("/audit", params={"key": entry["key"], "action": "job.cancel"}).json()["data"] == []


@pytest.mark.parametrize("change", [update(Entry).values(role="read"), delete(Entry)])
def test_an_entry_stays_as_it_was_written(keys: Keys, client_of: As, change: Any) -> None:
    client_of(keys.ours["write"]).post("/datasets", content=jsonl([new_row()])).raise_for_status()
    with pytest.raises(DBAPIError, match="append-only"), writing() as session:
        session.execute(change)


def test_a_command_of_the_machine_is_told_apart(keys: Keys, client_of: As) -> None:
    made, _ = projects.create_key("ours", "read", "by hand", None)
    (entry,) = client_of(keys.admin).get("/audit", params={"target": made.id}).json()["data"]
    assert (entry["address"], entry["key"]) == ("console", None)
