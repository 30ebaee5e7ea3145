"""Storing and deleting bytes holds up no other write, however slow the store is, and neither undoes the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from app.datasets import blobs
from app.datasets.tables import BlobClaim
from app.kit import storage
from app.kit.database import reading, utc_now, writing
from tests.datasets.helpers import canonical, new_row, refusal

Upload = Callable[..., httpx.Response]
Stored = Callable[[], set[str]]


@contextmanager
def slow(patch: pytest.MonkeyPatch, name: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The store does what `name` says only after the second event; the first says that it was asked."""
    asked, go_on, real = threading.Event(), threading.Event(), getattr(storage, name)

    def wait(*arguments: Any) -> None:
        asked.set()
        assert go_on.wait(60)
        real(*arguments)

    with patch.context() as patched:
        patched.setattr(storage, name, wait)
        try:
            yield asked, go_on
        finally:
            go_on.set()


def write(client: httpx.Client) -> None:
    """Another write, which must not wait."""
    client.put("/secrets/other", json={"value": "x"}, timeout=10).raise_for_status()


def claims() -> int:
    with reading() as session:
        return session.scalar(select(func.count()).select_from(BlobClaim)) or 0


@pytest.mark.parametrize("refused", [False, True])
def test_an_upload_to_a_slow_store_holds_up_no_other_write(
    client: httpx.Client, upload: Upload, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    rows = [new_row() | ({"output": 1} if refused else {})]
    with ThreadPoolExecutor(1) as pool, slow(monkeypatch, "put_blob") as (asked, go_on):
        sent = pool.submit(upload, rows)
        assert asked.wait(30)
        write(client)
        go_on.set()
        assert sent.result().status_code == (422 if refused else 201)
    assert claims() == 0


def test_rows_that_go_to_a_slow_store_hold_up_no_other_write(
    client: httpx.Client, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = upload([new_row()])
    with ThreadPoolExecutor(1) as pool, slow(monkeypatch, "put_blob") as (asked, go_on):
        rows = pool.submit(canonical, made)
        assert asked.wait(30)
        write(client)
        go_on.set()
        assert len(rows.result()) == 1


def test_a_slow_deletion_holds_up_no_other_write_and_the_same_bytes_wait_for_it(
    client: httpx.Client, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [new_row()]
    first = upload(rows).json()["id"]
    with ThreadPoolExecutor(2) as pool, slow(monkeypatch, "delete_blob") as (asked, go_on):
        deleted = pool.submit(client.delete, f"/datasets/{first}")
        assert asked.wait(30)
        write(client)
        with monkeypatch.context() as patch:
            patch.setattr(blobs, "WAIT_SECONDS", 0.0)
            refusal(upload(rows), 503, "blob_busy")
        again = pool.submit(upload, rows)
        go_on.set()
        assert (deleted.result().status_code, again.result().status_code) == (204, 201)
    assert len(canonical(again.result())) == 1
    assert claims() == 0


def test_bytes_that_are_being_stored_are_not_deleted(
    client: httpx.Client, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dataset that had them goes between their second arrival in the store and the row that refers to them."""
    rows = [new_row()]
    first = upload(rows).json()["id"]
    put, asked, go_on = blobs.put, threading.Event(), threading.Event()

    def put_and_wait(*arguments: Any) -> None:
        put(*arguments)
        asked.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        patch.setattr(blobs, "put", put_and_wait)
        again = pool.submit(upload, rows)
        assert asked.wait(30)
        assert client.delete(f"/datasets/{first}").status_code == 204
        go_on.set()
        made = again.result()
    assert made.status_code == 201
    assert len(canonical(made)) == 1


def test_an_upload_that_cannot_be_committed_leaves_no_bytes(
    client: httpx.Client, upload: Upload, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored()

    def fail(*_: Any) -> None:
        raise OSError("broken")

    with monkeypatch.context() as patch:
        patch.setattr("app.datasets.service.record", fail)
        assert upload([new_row()]).status_code == 500
    assert (stored(), claims()) == (before, 0)


def test_a_claim_of_a_process_that_was_killed_runs_out(client: httpx.Client, upload: Upload) -> None:
    made = upload([new_row()]).json()
    with writing() as session:
        session.add(BlobClaim(id="claim_dead", sha256=made["sha256"], deletes=True, expires_at=utc_now()))
    assert client.delete(f"/datasets/{made['id']}").status_code == 204
    with pytest.raises(FileNotFoundError):
        storage.fetch_blob(made["sha256"])
    blobs.forget_expired_claims()
    assert claims() == 0
