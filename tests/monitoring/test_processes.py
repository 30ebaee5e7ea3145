"""Several real processes on one home: what they log, and what they count together."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from subprocess import Popen

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select

from app.kit import queue
from app.kit.database import reading
from app.kit.processes import spawn, stop
from app.up import migrate
from app.workers.tables import Worker
from demo.service import free_port, is_up
from tests.conftest import eventually, settings_of


@dataclass
class House:
    """A home whose processes log JSON to `home/NAME.log`."""

    home: Path

    def start(self, name: str, *command: str, **settings: str) -> Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BURNISH_")}
        own = {"BURNISH_HOME": str(self.home), "BURNISH_LOG_FORMAT": "json"}
        words = [sys.executable, "-m", "app.cli", *command]
        return spawn(words, env=kept | own | settings, log=self.home / f"{name}.log")

    def start_api(self, name: str, port: int) -> Popen[bytes]:
        return self.start(name, "api", BURNISH_PORT=str(port))

    def lines(self, name: str) -> list[str]:
        return (self.home / f"{name}.log").read_text().splitlines()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A home with a current schema."""
    home = tmp_path_factory.mktemp("home")
    with settings_of({"BURNISH_HOME": str(home)}):
        migrate()
        yield House(home)


def heard_at() -> datetime | None:
    """The time of the housekeeping worker's last report. It reports at the end of each round."""
    with reading() as session:
        return session.scalar(select(Worker.heard_at).where(Worker.queue == "housekeeping"))


def test_housekeeping_logs_nothing_when_it_finds_nothing_to_do(house: House) -> None:
    worker = house.start("housekeeping", "worker", "--queue", "housekeeping")
    try:
        eventually(lambda: any("ready." in line for line in house.lines("housekeeping")), 60, "the worker is ready")
        first = eventually(heard_at, 30, "its first round")
        before = house.lines("housekeeping")
        for _ in range(3):
            queue._client().send_task("worker.tasks.reconcile", queue="housekeeping")
            eventually(lambda seen=first: heard_at() != seen, 30, "another round")  # type: ignore[misc]
            first = heard_at()
        assert house.lines("housekeeping") == before
    finally:
        stop(worker, 10)


def counted(port: int) -> float:
    """How many requests for a dataset that is not there one process says that all have answered."""
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).raise_for_status()
    return sum(
        sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == "burnish_http_request_duration_seconds_count" and sample.labels["route"] == "/datasets/{id}"
    )


def test_two_api_processes_count_together_also_when_one_has_died(house: House) -> None:
    ports = [free_port(), free_port()]
    running = [house.start_api(f"api-{port}", port) for port in ports]
    try:
        for port in ports:
            eventually(lambda port=port: is_up(f"http://127.0.0.1:{port}"), 60, "the API")  # type: ignore[misc]
        for port, requests in zip(ports, (2, 3), strict=True):
            for _ in range(requests):
                assert httpx.get(f"http://127.0.0.1:{port}/datasets/ds_none").status_code == 404
        eventually(lambda: [counted(port) for port in ports] == [5, 5], 10, "the sum of both, from each")
        lines = [json.loads(line) for name in ports for line in house.lines(f"api-{name}")]
        assert sum(line.get("path") == "/datasets/ds_none" for line in lines) == 5
        stop(running[1], 0)
        assert counted(ports[0]) == 5
        running[1] = house.start_api(f"api-{ports[1]}", ports[1])
        eventually(lambda: is_up(f"http://127.0.0.1:{ports[1]}"), 60, "the API")
        assert [counted(port) for port in ports] == [5, 5]
        assert len(list((house.home / "metrics").glob("*.db"))) == 3  # of the two that run, and of all that ended
    finally:
        for process in running:
            stop(process, 10)
