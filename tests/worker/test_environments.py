"""What other processes may know: nothing secret is in their environment, nor in what is said of a database that is away."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from app.kit.helpers import Helpers
from app.main import create_app
from app.settings import Settings
from tests.conftest import serving, settings_of
from worker.engine import embedded, vllm
from worker.engine.running import _without_secrets
from worker.trainers import environment as trainer_environment

SECRETS = (
    "BURNISH_ADMIN_KEY", "BURNISH_SECRET_KEY", "BURNISH_DATABASE_URL", "HF_TOKEN", "MODELSCOPE_API_TOKEN",
    "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "OPENAI_API_KEY", "PGPASSWORD", "WANDB_API_KEY",
)  # fmt: skip

ENVIRONMENTS: dict[str, Callable[[], dict[str, str]]] = {
    "trainer": trainer_environment,
    "vLLM": lambda: _without_secrets(vllm.environment(Settings())),
    "embedded engine": lambda: _without_secrets(embedded.environment(Settings())),
}


@pytest.fixture
def secretive(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "s3cr3t")


@pytest.mark.parametrize("process", ENVIRONMENTS)
def test_a_process_that_reads_strangers_models_knows_no_secret(secretive: None, process: str) -> None:
    environment = ENVIRONMENTS[process]()
    assert environment["PATH"] == os.environ["PATH"]
    assert "s3cr3t" not in str(environment)


def test_a_helper_process_knows_none(secretive: None) -> None:
    helpers = Helpers("worker.renderer", places=1, environment={})
    helper = helpers.take(10)
    assert helper is not None
    try:
        for process in (psutil.Process(helper.process.pid), *psutil.Process(helper.process.pid).children()):
            assert "s3cr3t" not in str(process.environ())
    finally:
        helper.idle = False  # so that it ends
        helpers.give_back(helper)


def test_a_database_that_is_away_tells_no_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with settings_of({"BURNISH_HOME": str(tmp_path)}):
        app = create_app()
    away = {"BURNISH_HOME": str(tmp_path), "BURNISH_DATABASE_URL": "postgresql://burnish:s3cr3t@127.0.0.1:9/x"}
    with settings_of({"BURNISH_HOME": str(tmp_path)}):
        from app.up import migrate

        migrate()
        with serving(app) as url:
            with settings_of(away):
                answer = httpx.get(f"{url}/jobs", timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
    assert "s3cr3t" not in answer.text
    assert "s3cr3t" not in caplog.text
