"""What a native route does not know is refused: query parameters, JSON keys that come twice, cursors of other lists."""

from __future__ import annotations

import json
import secrets
from typing import Any

import httpx
import pytest

ROWS = b'{"instruction": "a", "output": "b"}\n'


def entries(answer: httpx.Response) -> list[dict[str, Any]]:
    """All refusals of an answer."""
    error = answer.json()["error"]
    return list(error.get("errors") or [{key: error[key] for key in ("param", "code", "message", "hint")}])


def test_a_mistyped_dry_run_starts_no_job(client: httpx.Client) -> None:
    dataset = client.post("/datasets", content=ROWS).json()["id"]
    before = client.get("/jobs").json()
    answer = client.post("/jobs?dryrun=true", json={"base_model": "demo-base", "dataset": dataset})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "unknown_field", "dryrun")
    assert error["hint"] == "Did you mean 'dry_run'?"
    assert client.get("/jobs").json() == before


def test_every_native_route_refuses_a_parameter_that_it_does_not_know(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    routes = [(method, path) for path, item in document["paths"].items() for method in item]
    native = [(method, path) for method, path in routes if not path.startswith("/v1/")]
    assert len(native) > 40
    for method, path in native:
        answer = client.request(method, path.replace("{", "").replace("}", ""), params={"nonsense": "1"})
        params = [entry["param"] for entry in entries(answer)]
        assert (answer.status_code, "nonsense" in params) == (422, True), (method, path, answer.text)
    assert client.get("/v1/models?nonsense=1").status_code == 200


def test_what_is_wrong_with_query_and_body_is_said_at_once(client: httpx.Client) -> None:
    body = {"base_model": 7, "dataset": "ds_none", "stage": "sfx", "hyperparameters": {"seed": True}, "odd": 1}
    answer = client.post("/jobs?dryrun=true&dry_run=yes", json=body)
    assert answer.status_code == 422
    assert [entry["param"] for entry in entries(answer)] == ["dryrun", "dry_run", "stage", "base_model", "odd"]
    error = answer.json()["error"]
    assert {key: error[key] for key in error["errors"][0]} == error["errors"][0]


def test_whoever_may_not_ask_is_told_that_first(client: httpx.Client) -> None:
    key = client.post("/keys", json={"role": "admin", "name": "first"}).json()
    try:
        assert client.get("/jobs?nonsense=1").status_code == 401
    finally:
        deleted = client.delete(f"/keys/{key['id']}", headers={"Authorization": f"Bearer {key['key']}"})
        if deleted.status_code != 204:
            from app.kit.database import writing
            from app.projects.tables import Key

            with writing() as session:
                session.delete(session.get_one(Key, key["id"]))


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ('{"base_model": "a", "dataset": "b", "base_model": "c"}', ["base_model"]),
        ('{"base_model": "a", "dataset": "b", "hyperparameters": {"seed": 1, "seed": 1}}', ["hyperparameters.seed"]),
        ('{"stage": "rl", "hyperparameters": {"reward": [{"type": "a", "type": "b"}]}, "stage": "rl"}',
         ["stage", "hyperparameters.reward.0.type"]),
    ],
)  # fmt: skip
def test_a_key_that_comes_twice_is_named(client: httpx.Client, text: str, params: list[str]) -> None:
    answer = client.post("/jobs", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert [(entry["code"], entry["param"]) for entry in entries(answer)] == [
        ("duplicate_key", param) for param in params
    ]


def test_a_parameter_that_comes_twice_is_named(client: httpx.Client) -> None:
    answer = client.get("/jobs?limit=1&limit=2")
    assert [(entry["code"], entry["param"]) for entry in entries(answer)] == [("duplicate_key", "limit")]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_json_is_no_body(client: httpx.Client, number: str) -> None:
    text = f'{{"base_model": "a", "dataset": "b", "template_arguments": {{"a": {number}}}}}'
    answer = client.post("/jobs", content=text, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_options_of_an_upload_are_read_alike(client: httpx.Client) -> None:
    answer = client.post("/datasets", params={"columns": '{"prompt": "a", "prompt": "b"}'}, content=ROWS)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "columns")
    assert "more than once" in answer.json()["error"]["message"]
    form = [("file", ("rows.jsonl", ROWS)), ("name", (None, b"a")), ("name", (None, b"b"))]
    answer = client.post("/datasets", files=form)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "duplicate_key")


def test_another_query_is_another_request(client: httpx.Client) -> None:
    """An idempotency key that was used is not answered for a request that says something else."""
    dataset = client.post("/datasets", content=ROWS).json()["id"]
    body, headers = {"base_model": "demo-base", "dataset": dataset}, {"Idempotency-Key": secrets.token_hex(8)}
    made = client.post("/jobs", json=body, headers=headers).raise_for_status()
    spaced = json.dumps(dict(reversed(body.items())), indent=1)
    kept = client.post("/jobs", content=spaced, headers=headers | {"Content-Type": "application/json"})
    assert (kept.json(), kept.headers["Idempotent-Replayed"]) == (made.json(), "true")
    answer = client.post("/jobs?dry_run=true", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_mismatch")


LISTS = {
    "/datasets": "ds", "/models": "model", "/jobs": "job", "/projects": "proj", "/keys": "key", "/audit": "audit",
    "/usage": "usage", "/secrets": "secret", "/workers": "worker", "/webhooks": "hook",
}  # fmt: skip
SOME = "01kbz0000000000000000000zz"


@pytest.mark.parametrize(("path", "kind"), LISTS.items())
def test_a_cursor_is_an_id_of_the_list_s_own_kind(client: httpx.Client, path: str, kind: str) -> None:
    assert client.get(path, params={"after": f"{kind}_{SOME}"}).status_code == 200
    other = "ds" if kind != "ds" else "job"
    for after in (f"{other}_{SOME}", SOME, "", "nonsense", f"{kind}_{SOME}0", f"{kind}_{SOME[:-1]}", f"{kind}_{SOME[:-1]}l",
                  f"{kind}_8{SOME[1:]}", f"{kind}_{SOME.upper()}", f"{kind}_{SOME}\n"):  # fmt: skip
        answer = client.get(path, params={"after": after})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "after"), after


def test_every_list_has_such_a_cursor(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    text = {
        path
        for path, item in document["paths"].items()
        for parameter in item.get("get", {}).get("parameters", ())
        if parameter["name"] == "after" and parameter["schema"].get("type") != "integer"
    }
    assert text == {*LISTS, "/webhooks/{id}/deliveries"}


def test_the_id_of_an_object_that_is_gone_still_is_a_cursor(client: httpx.Client) -> None:
    rows = [f'{{"instruction": "{secrets.token_hex(8)}", "output": "b"}}' for _ in range(3)]
    oldest, middle, newest = [client.post("/datasets", content=row.encode()).json()["id"] for row in rows]
    client.delete(f"/datasets/{middle}").raise_for_status()
    listed = [each["id"] for each in client.get("/datasets", params={"after": middle}).json()["data"]]
    assert (listed[0], newest in listed) == (oldest, False)


def test_the_default_project_is_a_cursor(client: httpx.Client) -> None:
    assert client.get("/projects", params={"after": "proj_default"}).status_code == 200
    assert client.get("/jobs", params={"after": "proj_default"}).status_code == 422


@pytest.mark.parametrize("after", ["x", "1.0", "-2", "1e1", "9" * 30, ""])
def test_a_cursor_that_counts_is_a_number(client: httpx.Client, after: str) -> None:
    for path in ("/datasets/ds_none/rows", "/jobs/job_none/events", "/jobs/job_none/metrics", "/jobs/job_none/logs"):
        answer = client.get(path, params={"after": after})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "after"), path
