"""The whole service, started once for all of these tests on each column of real parts: production with vLLM, embedded with
the embedded engine. Each module has a dataset of its own, and names of its own for its models."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from app.settings import Settings
from demo.text import sample_rows
from tests.conftest import COLUMNS, parts, settings_of, unavailable
from tests.system.service import Service

ENGINES = {"embedded": "embedded", "production": "vllm"}
# For what does not depend on the column: once is enough.
on_embedded = pytest.mark.parametrize(
    "running", ["embedded", pytest.param("production", marks=pytest.mark.rare)], indirect=True
)


@pytest.fixture(scope="package", params=COLUMNS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The whole service, with short leases so that what is lost is found soon."""
    column = request.param
    engine = ENGINES[column]
    if engine == "vllm" and not Settings().vllm_python.exists():
        unavailable("needs vLLM in .venv-vllm: make install")
    with parts(column, tmp_path_factory.mktemp(column)) as backend:
        started = Service.start(
            backend.environment
            | {
                "BURNISH_ENGINE": engine,
                "BURNISH_LEASE_SECONDS": "6",
                "BURNISH_STOP_GRACE_SECONDS": "5",
                # One that makes room for another first waits until it is idle; vLLM's are too large to have more than two.
                "BURNISH_MAX_ENGINES": "2" if engine == "vllm" else "6",
                # Several processes run side by side, and a small model is quickest so.
                "BURNISH_TRAINER_THREADS": "1",
                "OMP_NUM_THREADS": "1",
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
