"""The claim, the heartbeat and the end of a download on every database that the service runs on."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Backend, settings_of
from tests.hubs.conftest import create_tables, download, register, stored
from tests.hubs.server import GATED, REPOSITORY


def test_a_download_ends_ready_or_failed(backend: Backend, caches: Path) -> None:
    with settings_of(backend.environment):
        create_tables()
        for path, status in ((REPOSITORY, "ready"), (GATED, "failed")):
            model = register(f"hf://{path}")
            download()
            assert stored(model).status == status
