"""The command against the real service, on both columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.cli.terminal import run_command

Run = Callable[..., Result]


@pytest.fixture
def run(service: str) -> Run:
    """Runs `burnish` with these arguments against the service; stdout and stderr are no terminals."""
    return lambda *arguments, **options: run_command(service, *arguments, **options)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of twenty good rows."""
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"instruction": f"question {n}", "output": f"answer {n}"}) + "\n" for n in range(20))
    )
    return file


@pytest.fixture
def dataset(run: Run, rows: Path) -> str:
    """Id of an uploaded dataset."""
    return str(json.loads(run("datasets", "add", rows, "--json").stdout)["id"])


@pytest.fixture
def job(run: Run, dataset: str) -> str:
    """Id of a queued job that nobody works on."""
    return str(json.loads(run("jobs", "create", "demo-base", dataset, "--json").stdout)["id"])
