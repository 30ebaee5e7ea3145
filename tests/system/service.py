"""The whole service as a user starts it, and what a test asks of it."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from demo.service import is_up, start_service
from tests.conftest import eventually

ENDED = {"succeeded", "failed", "cancelled"}
# Between two looks at a job; one costs the service as much as a step of a small training.
LOOK_SECONDS = 0.4


@dataclass
class Service:
    """`burnish up` in a session of its own. `home` is its BURNISH_HOME, which names every process that belongs to it."""

    process: subprocess.Popen[bytes]
    home: Path
    client: httpx.Client
    engine: str

    @classmethod
    def start(cls, environment: dict[str, str]) -> Service:
        """Starts the service and waits until its API answers."""
        process, url = start_service(environment)
        client = httpx.Client(base_url=url, timeout=300)
        return cls(process, Path(environment["BURNISH_HOME"]), client, environment["BURNISH_ENGINE"])

    def is_up(self) -> bool:
        return is_up(str(self.client.base_url).rstrip("/"))

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Every process that belongs to this service, found by its home; with `word` only those whose command has it."""
        found = []
        for process in psutil.process_iter():
            try:
                command, variables = process.cmdline(), process.environ()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            home = str(self.home)
            mine = variables.get("BURNISH_HOME") == home or any(home in part for part in command)
            if mine and process.pid != os.getpid() and word in " ".join(command):
                found.append(process)
        return found

    def trainers(self, id: str) -> list[psutil.Process]:
        """The trainers at work on a job: one that waited for it does not name it in its command, but writes its log."""
        found = []
        for process in self.processes("worker.trainer"):
            try:
                log = os.readlink(f"/proc/{process.pid}/fd/2")
            except OSError:  # it has ended
                continue
            if Path(log).name.startswith(f"{id}-"):
                found.append(process)
        return found

    def kill(self, word: str) -> None:
        """SIGKILL to every process of the service whose command has the word."""
        victims = self.processes(word)
        assert victims, f"no process has {word!r} in its command"
        for victim in victims:
            victim.kill()

    def stop(self, number: int = signal.SIGINT) -> None:
        """One signal to the group, as a terminal's Ctrl-C; everything must be gone within 30 s."""
        os.killpg(self.process.pid, number)
        self.process.wait(30)
        left = self.processes()
        assert not left, f"left behind: {[process.cmdline() for process in left]}"

    def upload(self, rows: bytes) -> str:
        answer = self.client.post("/datasets", params={"name": "rows"}, content=rows)
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["id"])

    def create(self, dataset: str, **fields: Any) -> str:
        # A scorecard takes longer than most of these jobs: one that is about it asks for it.
        body = {"base_model": "demo-base", "dataset": dataset, "check": {"scorecard": False}}
        answer = self.client.post("/jobs", json=body | fields)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, id: str) -> dict[str, Any]:
        return dict(self.client.get(f"/jobs/{id}").json())

    def ended(self, id: str, seconds: float = 300) -> dict[str, Any]:
        """The job once it has ended."""
        eventually(lambda: self.job(id)["status"] in ENDED, seconds, f"the end of {id} ({self.job(id)})", LOOK_SECONDS)
        return self.job(id)

    def training(self, id: str) -> dict[str, Any]:
        """The job once it has made a step, and has more before it."""
        eventually(lambda: (self.job(id)["progress"] or {}).get("step", 0) > 0, 120, "a first step", LOOK_SECONDS)
        return self.job(id)
