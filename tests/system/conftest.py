"""The service, started once a module on each column of real parts: production with vLLM, embedded with the embedded engine."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from app.settings import Settings
from demo.text import sample_rows
from tests.conftest import Backend, settings_of, unavailable
from tests.system.service import Service

ENGINES = {"embedded": "embedded", "production": "vllm"}


@pytest.fixture(scope="module")
def running(backend: Backend) -> Iterator[Service]:
    """The whole service, with short leases so that what is lost is found soon."""
    engine = ENGINES[backend.name]
    if engine == "vllm" and not Settings().vllm_python.exists():
        unavailable("needs vLLM in .venv-vllm: make install")
    started = Service.start(
        backend.environment
        | {
            "BURNISH_ENGINE": engine,
            "BURNISH_LEASE_SECONDS": "6",
            "BURNISH_STOP_GRACE_SECONDS": "5",
            "OMP_NUM_THREADS": "1",  # several run side by side, and a small model is quickest so
        }
    )
    try:
        with settings_of(backend.environment):
            yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def rows() -> bytes:
    """A dataset that a few hundred steps learn from."""
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in sample_rows(640, seed=1)).encode()


@pytest.fixture(scope="module")
def dataset(running: Service, rows: bytes) -> str:
    return running.upload(rows)
