"""A disk that is full is a 507 that says so, wherever an upload meets it, and nothing of the upload is left."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import httpx
import pytest
from sqlalchemy import event, func, select

from app.files.tables import File
from app.kit import database
from app.settings import get_settings
from tests.conftest import Backend
from tests.datasets.helpers import jsonl, new_row, refusal

SIZE = 4 * 2**20
Upload = Callable[..., httpx.Response]
Stored = Callable[[], set[str]]


@pytest.fixture
def small_disk(service: str) -> Iterator[None]:
    """The store is on a small file system."""
    blobs = get_settings().home / "blobs"
    blobs.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "burnish-test", str(blobs)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs to mount a file system")
    yield
    subprocess.run(["umount", "--lazy", str(blobs)], check=True)


def files() -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(File)) or 0


UPLOADS = {
    "the file": jsonl([new_row()]) * (SIZE // 60),
    "what the check writes": jsonl([new_row()]) + b"{}\n" * 100_000,  # a problem each
}


@pytest.mark.parametrize("what", UPLOADS)
def test_an_upload_for_which_there_is_no_room_is_refused_and_leaves_nothing(
    small_disk: None, upload: Upload, stored: Stored, what: str
) -> None:
    before = files()
    error = refusal(upload(UPLOADS[what]), 507, "disk_full")
    assert (error["type"], "BURNISH_HOME" in error["hint"]) == ("server_error", True)
    assert (files(), stored()) == (before, set())
    assert upload([new_row()]).status_code == 201


@pytest.mark.parametrize("backend", ["embedded"], indirect=True)
def test_a_database_without_room_is_the_same(backend: Backend, service: str, upload: Upload) -> None:
    def bound(connection: object, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # type: ignore[attr-defined]  # as large as it is

    event.listen(database.engine(), "checkout", bound)
    try:
        answers = (upload([new_row()], name="x" * 200) for _ in range(200))
        refusal(next(answer for answer in answers if answer.status_code != 201), 507, "disk_full")
    finally:
        event.remove(database.engine(), "checkout", bound)
        database.engine().dispose()
    assert upload([new_row()]).status_code == 201
