"""Projects and keys: made, listed, rotated, revoked; and the service without any."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from app.kit.database import DEFAULT_PROJECT, utc_now, writing
from app.projects import service as projects
from app.projects.access import needs_key
from app.projects.audit import list_entries
from app.projects.tables import Key
from app.settings import get_settings
from app.up import migrate
from tests.cli.terminal import run_command
from tests.conftest import REPOSITORY, settings_of
from tests.datasets.helpers import refusal
from tests.projects.conftest import As, Keys


def test_without_keys_everybody_is_served_whatever_key_is_sent(client: httpx.Client) -> None:
    for headers in ({}, {"Authorization": "Bearer anything"}, {"X-API-Key": "anything"}):
        assert client.get("/keys", headers=headers).json()["data"] == []
    refusal(client.post("/keys", json={"role": "write"}), 422, "invalid_value")


def test_a_key_of_the_settings_opens_and_closes(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_settings(), "admin_key", "secret")
    refusal(client.get("/jobs"), 401, "invalid_key")
    assert client.get("/projects", headers={"X-API-Key": "secret"}).status_code == 200


def test_the_admin_of_the_settings_makes_and_removes_any_key(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_settings(), "admin_key", "secret")
    as_admin = {"X-API-Key": "secret"}
    for role in ("write", "admin"):
        made = client.post("/keys", json={"role": role}, headers=as_admin).raise_for_status().json()
        assert client.delete(f"/keys/{made['id']}", headers=as_admin).status_code == 204


def test_a_service_that_strangers_reach_serves_nobody_without_a_key(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.get("/jobs").raise_for_status()
    monkeypatch.setattr(get_settings(), "host", "0.0.0.0")
    refusal(client.get("/jobs"), 401, "invalid_key")


def test_a_key_is_shown_once(keys: Keys, client_of: As) -> None:
    admin = client_of(keys.admin)
    expires = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    made = admin.post("/keys", json={"project": "ours", "role": "infer", "name": "chat", "expires_at": expires}).json()
    assert made["key"].startswith("bsk_")
    assert made["key"] not in admin.get("/keys", params={"limit": 1000}).text
    assert admin.get(f"/keys/{made['id']}").json() == {name: made[name] for name in made if name != "key"}
    from app.kit.database import reading
    from app.projects.tables import Key

    with reading() as session:
        assert made["key"] not in str(vars(session.get_one(Key, made["id"])))


def test_rotating_ends_the_old_secret_at_once(keys: Keys, client_of: As) -> None:
    admin = client_of(keys.admin)
    made = admin.post("/keys", json={"project": "ours", "role": "read"}).json()
    new = admin.post(f"/keys/{made['id']}/rotate").json()
    refusal(client_of(made["key"]).get("/jobs"), 401, "invalid_key")
    assert client_of(new["key"]).get("/jobs").status_code == 200
    assert admin.delete(f"/keys/{made['id']}").status_code == 204
    refusal(client_of(new["key"]).get("/jobs"), 401, "invalid_key")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"role": "owner"}, "invalid_value", "role"),
        ({}, "missing_field", "role"),
        ({"role": "read", "project": "nobody"}, "project_not_found", "project"),
        ({"role": "read", "project": "\0"}, "project_not_found", "project"),
        ({"role": "read", "expires_at": "2020-01-01T00:00:00Z"}, "invalid_value", "expires_at"),
        ({"role": "read", "expires_at": "2099-01-01T00:00:00"}, "invalid_value", "expires_at"),
        ({"role": "read", "name": "a\nb"}, "invalid_value", "name"),
    ],
)
def test_wrong_values_are_named(keys: Keys, client_of: As, body: dict[str, Any], code: str, param: str) -> None:
    assert refusal(client_of(keys.admin).post("/keys", json=body), 422, code)["param"] == param


def test_the_last_admin_s_key_stays(keys: Keys, client_of: As) -> None:
    admin = client_of(keys.admin)
    admins = [key["id"] for key in admin.get("/keys", params={"limit": 1000}).json()["data"] if key["role"] == "admin"]
    [last] = admins
    refusal(admin.delete(f"/keys/{last}"), 409, "in_use")
    other = admin.post("/keys", json={"role": "admin"}).json()
    assert admin.delete(f"/keys/{other['id']}").status_code == 204


def test_an_expired_key_is_no_admin_s(keys: Keys, client_of: As) -> None:
    admin = client_of(keys.admin)
    [last] = [key["id"] for key in admin.get("/keys").json()["data"] if key["name"] == "first"]
    project = admin.post("/projects", json={"name": "expiring"}).raise_for_status().json()["id"]
    expired = [
        admin.post("/keys", json={"role": "admin", "project": place}).json()["id"] for place in ("default", project)
    ]
    with writing() as session:
        session.execute(update(Key).where(Key.id.in_(expired)).values(expires_at=utc_now()))
    refusal(admin.delete(f"/keys/{last}"), 409, "in_use")
    assert admin.delete(f"/keys/{expired[0]}").status_code == 204
    with writing() as session:  # as if the one that is valid were the project's
        session.get_one(Key, last).project_id = project
    refusal(admin.delete(f"/projects/{project}"), 409, "in_use")
    with writing() as session:
        session.get_one(Key, last).project_id = DEFAULT_PROJECT
    assert admin.delete(f"/projects/{project}").status_code == 204


def burnish(home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"BURNISH_HOME": str(home), "PATH": "/usr/bin:/bin", **more}
    command = [sys.executable, "-m", "app.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False)


def test_an_address_that_strangers_reach_needs_a_key(tmp_path: Path) -> None:
    strange = {"BURNISH_HOST": "0.0.0.0", "BURNISH_PORT": "1"}
    refused = burnish(tmp_path, "up", **strange)
    assert refused.returncode == 1
    assert "BURNISH_HOST=0.0.0.0" in refused.stderr
    assert "burnish keys create --admin" in refused.stderr
    made = burnish(tmp_path, "keys", "create", "--admin")
    assert made.stdout.startswith("bsk_"), made.stderr
    code = "from app.up import require_key; require_key()"
    allowed = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env={"BURNISH_HOME": str(tmp_path)} | strange, check=False
    )
    assert allowed.returncode == 0


def test_the_way_back_to_no_keys(tmp_path: Path) -> None:
    home = {"BURNISH_HOME": str(tmp_path)}
    with settings_of(home):
        migrate()
        for role in ("admin", "write"):
            projects.create_key("default", role, role, None)
        with settings_of(home | {"BURNISH_HOST": "192.0.2.1"}):
            refused = run_command("", "keys", "revoke", "--all")
        assert (refused.exit_code, "BURNISH_HOST=127.0.0.1" in refused.stderr) == (1, True)
        assert needs_key()
        revoked = run_command("", "keys", "revoke", "--all")
        assert (revoked.exit_code, "Revoked 2 keys." in revoked.stdout) == (0, True), revoked.stderr
        assert not needs_key()
        told = list_entries(paging(), {"action": "key.delete"})[0]
        assert [entry.address for entry in told] == ["console", "console"]


def test_the_command_makes_lists_and_revokes(service: str, keys: Keys, client_of: As, tmp_path: Path) -> None:
    as_admin = {"BURNISH_URL": service, "BURNISH_API_KEY": keys.admin}
    made = burnish(tmp_path, "keys", "create", "--role", "read", "--project", "ours", "--name", "cli", **as_admin)
    assert client_of(made.stdout.strip()).get("/jobs").status_code == 200, made.stderr
    listed = burnish(tmp_path, "keys", "list", **as_admin)
    assert "cli" in listed.stdout, listed.stderr
    [id] = [key.id for key in projects.list_keys(paging())[0] if key.name == "cli"]
    assert burnish(tmp_path, "keys", "revoke", id, **as_admin).returncode == 0
    refusal(client_of(made.stdout.strip()).get("/jobs"), 401, "invalid_key")
    refused = burnish(tmp_path, "keys", "list", BURNISH_URL=service)
    assert refused.returncode == 1
    assert "A key is needed" in refused.stderr


def paging() -> Any:
    from app.kit.pagination import Paging

    return Paging(limit=1000, after=None)
