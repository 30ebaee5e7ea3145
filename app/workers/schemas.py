"""Workers on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.workers.tables import Worker


class GpuOut(BaseModel):
    """A GPU that is a worker's own."""

    index: int
    name: str
    memory_gb: float
    error: str | None = Field(None, description="Why no job gets it.")


class DoingOut(BaseModel):
    """A job that a worker runs, and the numbers of the GPUs that it has for it."""

    job: str
    attempt: int
    gpus: list[int]


class WorkerOut(BaseModel):
    """A process that trains, or looks after things. `busy_slots` counts every project's jobs, `jobs` has your project's."""

    id: str
    object: Literal["worker"] = "worker"
    name: str
    queue: Literal["training", "housekeeping"]
    status: Literal["ready", "unfit", "stopping", "lost"]
    reason: str | None = Field(description="Why an unfit one claims no job.")
    slots: int
    busy_slots: int
    gpus: list[GpuOut]
    memory_gb: float = Field(description="The machine's memory, in GiB.")
    jobs: list[DoingOut]
    version: str
    started_at: datetime
    heard_at: datetime


def worker_out(worker: Worker, lost: bool, project_id: str) -> WorkerOut:
    """The wire form of a row, for who asks."""
    columns = ("id", "name", "queue", "reason", "slots", "gpus", "memory_gb", "version", "started_at", "heard_at")
    return WorkerOut(
        **{column: getattr(worker, column) for column in columns},
        status="lost" if lost else worker.status,
        busy_slots=len(worker.doing),
        jobs=[each for each in worker.doing if each["project"] == project_id],
    )
