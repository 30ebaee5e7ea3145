"""An object store that answers slowly holds up no transaction."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.jobs.tables import Job
from app.kit import storage
from tests.models.test_checkpoints import dataset, job, keep, serve

__all__ = ["dataset", "job"]


def test_a_slow_store_holds_up_no_other_write(
    client: httpx.Client, job: Job, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read of a checkpoint or an adapter comes from the store before a transaction begins."""
    id, name, real = keep(job, 10), f"slow-{job.id[-8:]}", storage.fetch_folder
    for ask in (
        lambda: serve(client, id, name),
        lambda: client.post("/jobs", json={"base_model": name, "dataset": dataset}),
    ):
        asked, go_on = threading.Event(), threading.Event()

        def slow(key: str, asked: threading.Event = asked, go_on: threading.Event = go_on) -> Path:
            asked.set()
            assert go_on.wait(60)
            return real(key)

        with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
            patch.setattr(storage, "fetch_folder", slow)
            answer = pool.submit(ask)
            assert asked.wait(30)
            try:
                client.put("/secrets/other", json={"value": "x"}, timeout=10).raise_for_status()
            finally:
                go_on.set()
            assert answer.result().status_code in (201, 202), answer.result().text
