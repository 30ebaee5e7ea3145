"""Secrets: kept, used by name, never shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from app.kit import sealing
from app.kit.database import DEFAULT_PROJECT, reading
from app.projects.tables import Entry
from app.secrets import service as secrets
from app.secrets.tables import Secret
from app.settings import get_settings
from tests.datasets.helpers import refusal

VALUE = "hf_this-is-never-seen-again"


@pytest.fixture
def token(client: httpx.Client) -> Iterator[dict[str, Any]]:
    yield client.put("/secrets/hf_token", json={"value": VALUE}).raise_for_status().json()
    client.delete("/secrets/hf_token")


def test_it_is_kept_and_not_shown(client: httpx.Client, token: dict[str, Any]) -> None:
    assert set(token) == {"id", "object", "name", "created_at", "updated_at"}
    assert client.get("/secrets/hf_token").json() == token
    assert client.get("/secrets").json()["data"] == [token]
    assert secrets.reveal(DEFAULT_PROJECT, "hf_token") == VALUE
    with reading() as session:
        kept = [str(row.__dict__) for table in (Secret, Entry) for row in session.scalars(select(table))]
    assert kept
    assert not any(VALUE in row for row in kept)


def test_another_value_takes_its_place(client: httpx.Client, token: dict[str, Any]) -> None:
    again = client.put("/secrets/hf_token", json={"value": "another"}).raise_for_status().json()
    assert again["id"] == token["id"]
    assert again["updated_at"] > token["updated_at"]
    assert secrets.reveal(DEFAULT_PROJECT, "hf_token") == "another"
    assert len(client.get("/secrets").json()["data"]) == 1


def test_it_is_forgotten(client: httpx.Client, token: dict[str, Any]) -> None:
    assert client.delete("/secrets/hf_token").status_code == 204
    assert secrets.reveal(DEFAULT_PROJECT, "hf_token") is None
    for answer in (client.get("/secrets/hf_token"), client.delete("/secrets/hf_token")):
        refusal(answer, 404, "secret_not_found")


@pytest.mark.parametrize("body", [{"value": [VALUE]}, {"value": {"token": VALUE}}, {"value": VALUE * 1000}])
def test_a_refusal_does_not_repeat_the_value(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.put("/secrets/hf_token", json=body)
    assert refusal(answer, 422, "invalid_value")["param"] == "value"
    assert VALUE not in answer.text


@pytest.mark.parametrize("name", ["Upper", "a b", "x" * 65, "%00"])
def test_a_bad_name_is_refused(client: httpx.Client, name: str) -> None:
    refusal(client.put(f"/secrets/{name}", json={"value": VALUE}), 422, "invalid_value")


def test_the_sealing_key_can_be_changed(
    client: httpx.Client, token: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = (get_settings().home / "secret.key").read_text()
    assert (get_settings().home / "secret.key").stat().st_mode & 0o777 == 0o600
    for keys, opens in ((f"a new one, {kept}", True), ("a new one", False)):
        monkeypatch.setattr(get_settings(), "secret_key", keys)
        sealing._keys.cache_clear()
        if opens:
            assert secrets.reveal(DEFAULT_PROJECT, "hf_token") == VALUE
            continue
        with pytest.raises(sealing.Unreadable, match="BURNISH_SECRET_KEY"):
            secrets.reveal(DEFAULT_PROJECT, "hf_token")
    monkeypatch.undo()
    sealing._keys.cache_clear()
