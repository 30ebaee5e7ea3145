"""The load under which the faults fall: jobs of every kind, sent by clients that try again until they are answered."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from transformers import AutoConfig, AutoModelForCausalLM

from app.jobs.tables import Attempt, Job
from app.kit.database import reading
from demo.text import sample_rows
from tests.chaos.following import Follower
from tests.chaos.world import World
from tests.conftest import DEMO_BASE

ROWS = "\n".join(json.dumps(row, ensure_ascii=False) for row in sample_rows(40, seed=3)).encode()
BAD_ROWS = "\n".join(
    json.dumps({"instruction": f"Count {n}.", "output": "long " * 90 if n < 492 else "yes"}) for n in range(2400)
).encode()
ENDED = ("succeeded", "failed", "cancelled")
# Jobs of the load that have not ended yet, at most.
AT_ONCE = 5
POISON = "poison"
BAD_DATA = "bad data"

# What is trained, by name: jobs of one shape must come to the same bits, however they were disturbed.
SHAPES: dict[str, dict[str, Any]] = {
    "short": {"hyperparameters": {"epochs": 3, "batch_size": 4, "checkpoint_every": 4}},
    "validated": {
        "hyperparameters": {"epochs": 8, "batch_size": 4, "checkpoint_every": 5},
        "validation": {"fraction": 0.1},
    },
    "dropout": {
        "hyperparameters": {"epochs": 12, "batch_size": 4, "seed": 7},
        "method": {"dropout": 0.1, "rank": 4},
    },
    "long": {"hyperparameters": {"epochs": 100, "max_steps": 400, "batch_size": 4, "checkpoint_every": 15}},
}
SPECIAL: dict[str, dict[str, Any]] = {
    POISON: SHAPES["long"],
    # So few rows too many lose their end that a sample does not prove it: the trainer finds out.
    BAD_DATA: {"hyperparameters": {"max_length": 64}},
}
DEPLOY = ("none", "adapter", "adapter", "merged")
PRIORITIES = (0, 0, 5, -5)
# Of so many jobs the events of one are followed.
FOLLOWED = 3


def make_base(folder: Path) -> Path:
    """The demo model's tokenizer and template on random weights, so small that a trainer spends its time on starting."""
    shutil.copytree(DEMO_BASE, folder, ignore=shutil.ignore_patterns("model.safetensors", "README.md"))
    config = AutoConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 32, 64, 2
    config.layer_types = ["full_attention"] * 2
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@dataclass
class Sent:
    """A job of the load, and what was said of it: (verb, HTTP status or None, the job's status in the answer)."""

    number: int
    shape: str
    deploy: str
    priority: int = 0
    id: str | None = None
    said: list[tuple[str, int | None, str | None]] = field(default_factory=list)

    @property
    def body(self) -> dict[str, Any]:
        fixed = {
            "base_model": "tiny", "deploy": {"mode": self.deploy}, "priority": self.priority,
            "metadata": {"number": str(self.number)},
        }  # fmt: skip
        return fixed | (SHAPES | SPECIAL)[self.shape]

    def was_told(self, verb: str) -> bool:
        """Whether the verb may have been carried out: it was answered well, or not at all."""
        return any(said == verb and (status is None or status < 300) for said, status, _ in self.said)


@dataclass
class Load:
    """What was sent. One lock for all, because faults say verbs while the load goes on."""

    world: World
    random: random.Random
    # Sent by the load itself, at most.
    most: int
    dataset: str = ""
    bad_dataset: str = ""
    jobs: list[Sent] = field(default_factory=list)
    # Datasets by name that a client was told are there, and those that it took back.
    datasets: dict[str, str] = field(default_factory=dict)
    deleted_datasets: set[str] = field(default_factory=set)
    deleted_models: set[str] = field(default_factory=set)
    # By the job's id.
    followers: dict[str, Follower] = field(default_factory=dict)
    ending: threading.Event = field(default_factory=threading.Event)
    settled: threading.Event = field(default_factory=threading.Event)

    def ask(
        self, method: str, path: str, *, key: str | None = None, seconds: float = 240, **arguments: Any
    ) -> httpx.Response:
        """The answer, asked for until there is one that is no 5xx: what a careful client does. A key makes it safe."""
        headers = {"Idempotency-Key": key} if key else {}
        deadline = time.monotonic() + seconds
        while True:
            try:
                with self.world.client() as client:
                    answer = client.request(method, path, headers=headers, **arguments)
                if answer.status_code < 500:
                    return answer
                why = answer.text
            except httpx.TransportError as error:
                why = repr(error)
            assert time.monotonic() < deadline, f"{method} {path} had no answer within {seconds} s: {why}"
            time.sleep(0.3)

    def prepare(self) -> None:
        """Uploads the rows and registers the base model."""
        source = make_base(self.world.folder / "tiny")
        answer = self.ask("POST", "/models", key="tiny", json={"name": "tiny", "source": str(source)})
        assert answer.status_code == 201, answer.text
        self.dataset, self.bad_dataset = self._upload("rows", ROWS), self._upload("bad rows", BAD_ROWS)

    def _upload(self, name: str, rows: bytes) -> str:
        answer = self.ask("POST", "/datasets", params={"name": name}, content=rows)
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["id"])

    def body_of(self, sent: Sent) -> dict[str, Any]:
        """The whole body of a job's request."""
        return sent.body | {"dataset": self.bad_dataset if sent.shape == BAD_DATA else self.dataset}

    def send(self, shape: str, deploy: str, priority: int = 0) -> Sent:
        """Posts a job until it is accepted, and has someone follow it, or not."""
        sent = Sent(len(self.jobs), shape, deploy, priority)
        self.jobs.append(sent)
        answer = self.ask("POST", "/jobs", key=f"job-{sent.number}", json=self.body_of(sent))
        assert answer.status_code == 202, answer.text
        sent.id = answer.json()["id"]
        if sent.number % FOLLOWED == 0 and not self.settled.is_set():
            self.followers[sent.id] = Follower(self.world, sent.id)
            self.followers[sent.id].start(self.settled)
        return sent

    def status(self, sent: Sent) -> str:
        """The job's state now, or `deleted`."""
        answer = self.ask("GET", f"/jobs/{sent.id}")
        return "deleted" if answer.status_code == 404 else str(answer.json()["status"])

    def run(self) -> None:
        """Sends jobs as long as there is room, until `ending`."""
        kinds = islice(self._kinds(), self.most)
        while not self.ending.is_set():
            newest = self.ask("GET", "/jobs", params={"limit": 40}).json()["data"]
            if sum(job["status"] not in ENDED for job in newest) < AT_ONCE and (kind := next(kinds, None)):
                self.send(*kind)
            self.ending.wait(0.5)

    def _kinds(self) -> Iterator[tuple[str, str, int]]:
        """What is sent, in this order: one of each first, so that a short load has all."""
        yield "long", "adapter", 0
        yield POISON, "none", 5
        yield "validated", "none", 0
        yield BAD_DATA, "none", -5
        yield "dropout", "merged", 5
        while True:
            yield self.random.choice(list(SHAPES)), self.random.choice(DEPLOY), self.random.choice(PRIORITIES)

    def poison(self) -> None:
        """Kills the trainers of the poisonous job as soon as it has one, until it has ended: one that waited is its worker's
        only one, and is killed before its imports are done, or this would take minutes."""
        while not self.settled.wait(0.25):
            if (found := self._poisoned()) is None:
                continue
            status, worker = found
            if status in ENDED:
                return
            for trainer in self.world.processes("trainer") if status == "running" else []:
                try:
                    if worker in {parent.pid for parent in trainer.parents()}:
                        trainer.kill()
                except psutil.NoSuchProcess:
                    continue

    def _poisoned(self) -> tuple[str, int] | None:
        """The poisonous job's state and the process that is or was at it last; None where it was not at work yet, or the
        database is away."""
        ids = [sent.id for sent in self.jobs if sent.shape == POISON and sent.id]
        query = select(Job.status, Attempt.worker).join(Attempt, Attempt.job_id == Job.id).where(Job.id.in_(ids))
        try:
            with reading() as session:
                row = session.execute(query.order_by(Attempt.number.desc())).first() if ids else None
        except DBAPIError:
            return None
        return (row.status, int(row.worker.rpartition(":")[2])) if row else None


@contextmanager
def running(load: Load) -> Iterator[None]:
    """The load goes on while the block runs; then nothing new is sent."""
    failures: list[BaseException] = []

    def sending() -> None:
        try:
            load.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=sending, daemon=True)
    thread.start()
    yield
    load.ending.set()
    thread.join()
    if failures:
        raise failures[0]
