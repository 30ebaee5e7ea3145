"""Every route × every kind of key. The routes are the application's: a new one without a permission fails here."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi.routing import APIRoute

from app.kit.database import utc_now, writing
from app.kit.ids import new_id
from app.main import create_app
from app.projects import service as projects
from app.projects.access import PERMISSIONS, Allowed
from app.projects.tables import Key
from tests.conftest import eventually
from tests.datasets.helpers import refusal
from tests.projects.conftest import As, Keys, Owned, fine_tune

OPEN = {"/", "/health", "/ready", "/docs", "/docs/oauth2-redirect"}
BODIES: dict[str, Any] = {
    "/datasets/{id}/preview": {"base_model": "demo-base"},
    "/datasets/{id}/check": {"base_model": "demo-base"},
    "/models/{name}/score": {
        "conversations": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    },
    "/webhooks/{id}": {"enabled": False},
}


def permission(route: APIRoute) -> str:
    found = [each.call.permission for each in route.dependant.dependencies if isinstance(each.call, Allowed)]
    assert len(found) == 1, f"{route.path} names no permission"
    return found[0]


def routes(of: Any) -> Iterator[APIRoute]:
    """The routes of an application or a router, and of those that it includes."""
    for route in of.routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from routes(route.original_router)


APP = create_app()
ROUTES = [route for route in routes(APP) if route.path not in OPEN]
NAMED = [(method, route.path, permission(route)) for route in ROUTES for method in sorted(route.methods)]
# What only admins read is of all projects.
LISTS = [path for method, path, allowed in NAMED if method == "GET" and "{" not in path and allowed != "administer"]
# A PUT makes an object of one's own; a worker is no project's, and shows each only its own jobs.
OBJECTS = [
    (method, path)
    for method, path, allowed in NAMED
    if "{" in path and allowed != "administer" and method != "PUT" and path != "/workers/{id}"
]


def test_a_page_of_models_has_the_newest_whosever_they_are(keys: Keys, client_of: As) -> None:
    """Base models, the project's own and those that it was granted."""
    ours, theirs = client_of(keys.ours["write"]), client_of(projects.create_key("theirs", "admin", "grants", None)[1])
    granted, own = [new_id("tune") for _ in range(2)], [new_id("tune") for _ in range(2)]
    for mine, other in zip(own, granted, strict=True):
        fine_tune("theirs", other)
        theirs.put(f"/models/{other}/grants/ours").raise_for_status()
        fine_tune("ours", mine)
    fine_tune("theirs", new_id("tune"))
    newest = [own[1], granted[1], own[0], granted[0]]
    pages, after = list[str](), dict[str, str]()
    while page := ours.get("/models", params={"limit": 1, **after}).raise_for_status().json()["data"]:
        pages += [page[0]["name"]]
        after = {"after": page[0]["id"]}
    assert [pages[:4], pages[-1]] == [newest, "demo-base"]
    assert len(pages) == len(set(pages))
    for kind, expected in (("adapter", newest), ("merged", []), ("base", ["demo-base"])):
        listed = ours.get("/models", params={"kind": kind, "status": "ready"}).json()["data"]
        assert [model["name"] for model in listed][:4] == expected
    assert set(newest) <= {model["id"] for model in ours.get("/v1/models").json()["data"]}


def test_no_route_is_left_out() -> None:
    document = APP.openapi()["paths"]
    served = {(method.upper(), path) for path, item in document.items() for method in item if path not in OPEN}
    assert {(method, path) for method, path, _ in NAMED} == served


def filled(path: str, value: str) -> str:
    return (
        path.replace("{id}", value).replace("{name}", value).replace("{project}", "ours").replace("{delivery}", value)
    )


@pytest.fixture(scope="module")
def dead(keys: Keys) -> dict[str, str | None]:
    """What opens nothing."""
    expired, gone = (
        projects.create_key("ours", "write", "old", None),
        projects.create_key("ours", "write", "gone", None),
    )
    with writing() as session:
        session.get_one(Key, expired[0].id).expires_at = utc_now() - timedelta(seconds=1)
    projects.delete_key(gone[0].id)
    return {"none": None, "unknown": "bsk_unknown", "empty": "", "expired": expired[1], "revoked": gone[1]}


@pytest.mark.parametrize(("method", "path", "allowed"), NAMED)
def test_a_route_opens_to_the_roles_that_may_and_to_no_other(
    keys: Keys, dead: dict[str, str | None], client_of: As, method: str, path: str, allowed: str
) -> None:
    for key in dead.values():
        answer = client_of(key).request(method, filled(path, "none"), json={})
        refusal(answer, 401, "invalid_key")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for role, key in (keys.ours | {"admin": keys.admin}).items():
        answer = client_of(key).request(method, filled(path, "none"), json={"nothing": "known"})
        if allowed in PERMISSIONS[role]:
            assert answer.status_code not in (401, 403), (role, answer.text)
            assert answer.status_code < 500
        else:
            refusal(answer, 403, "forbidden_role")


@pytest.mark.parametrize(("method", "path"), OBJECTS)
def test_another_project_s_object_is_not_there(
    keys: Keys, theirs: Owned, client_of: As, method: str, path: str
) -> None:
    url, body = filled(path, theirs.of(path)), BODIES.get(path)
    for key in (keys.ours["write"], keys.admin):
        answer = client_of(key).request(method, url, json=body)
        assert answer.status_code == 404, answer.text
        assert "theirs" not in answer.text
    if method == "GET" and not path.endswith("/repaired"):
        assert client_of(keys.theirs["write"]).get(url).status_code == 200


@pytest.mark.parametrize("path", LISTS)
def test_no_list_shows_what_is_another_project_s(keys: Keys, theirs: Owned, client_of: As, path: str) -> None:
    listed = client_of(keys.ours["write"]).get(path, params={"limit": 1000}).raise_for_status().text
    assert not any(each in listed for each in (theirs.dataset, theirs.job, theirs.model))
    for after in (theirs.dataset, theirs.job, theirs.model):
        answer = client_of(keys.ours["read"]).get(path, params={"after": after})
        # An id of another kind is refused, and the refusal repeats it.
        assert answer.status_code == 422 or theirs.dataset not in answer.text


def test_nothing_is_made_of_another_project_s_objects(keys: Keys, theirs: Owned, client_of: As) -> None:
    ours = client_of(keys.ours["write"])
    refusal(ours.post("/jobs", json={"base_model": "demo-base", "dataset": theirs.dataset}), 422, "dataset_not_found")
    chat = {"model": theirs.model, "messages": [{"role": "user", "content": "Hi"}]}
    refusal(ours.post("/v1/chat/completions", json=chat), 404, "model_not_found")
    text = {"model": theirs.model, "prompt": "Hi"}
    refusal(ours.post("/v1/completions", json=text), 404, "model_not_found")


def test_a_base_model_is_everybody_s_and_its_project_s_to_delete(keys: Keys, theirs: Owned, client_of: As) -> None:
    ours = client_of(keys.ours["write"])
    assert ours.get("/models/demo-base").json()["kind"] == "base"
    refusal(ours.delete("/models/demo-base"), 403, "forbidden_role")
    source = str(ours.get("/models/demo-base").json()["source"])
    refusal(ours.post("/models", json={"name": "demo-base", "source": source}), 409, "name_taken")
    in_use = refusal(client_of(keys.admin).delete("/models/demo-base"), 409, "in_use")
    assert not any(each in in_use["message"] for each in (theirs.model, theirs.job))


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_both_headers_are_read(service: str, keys: Keys, client_of: As, header: str) -> None:
    value = f"Bearer {keys.ours['read']}" if header == "Authorization" else keys.ours["read"]
    assert client_of(None).get("/jobs", headers={header: value}).status_code == 200


def test_a_key_remembers_when_it_was_used(keys: Keys, client_of: As) -> None:
    admin = client_of(keys.admin)
    made = admin.post("/keys", json={"project": "ours", "role": "read", "name": "new"}).json()
    assert made["last_used_at"] is None
    client_of(made["key"]).get("/jobs").raise_for_status()
    assert eventually(lambda: admin.get(f"/keys/{made['id']}").json()["last_used_at"], 10)


def test_a_use_that_cannot_be_written_down_fails_no_request(keys: Keys, client_of: As) -> None:
    """Somebody else holds the key's row: on SQLite with the one write lock."""
    made, secret = projects.create_key("ours", "read", "held", None)
    with writing() as session:
        session.get_one(Key, made.id, with_for_update=True)
        assert client_of(secret).get("/jobs", timeout=10).status_code == 200
    assert eventually(lambda: client_of(keys.admin).get(f"/keys/{made.id}").json()["last_used_at"], 10)


def test_uploads_need_a_key_too(keys: Keys, client_of: As) -> None:
    refusal(client_of("bsk_no").post("/datasets", content=b"{}"), 401, "invalid_key")
    refusal(client_of(keys.ours["read"]).post("/datasets", content=b"{}"), 403, "forbidden_role")
