"""What workers can give to jobs, and which jobs that is enough for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_

from app.jobs.tables import Job


@dataclass(frozen=True)
class Room:
    """GPUs, by the GiB that each has, and the machine's memory in GiB. `auto`: the GPUs of a job that names no number."""

    gpus: tuple[float, ...]
    memory_gb: float
    auto: int


# For who runs jobs without being a worker of this service.
BOUNDLESS = Room(gpus=(), memory_gb=1e9, auto=0)


def rooms(gpus: list[dict[str, Any]], memory_gb: float, doing: list[dict[str, Any]]) -> tuple[Room, Room]:
    """What a worker with these GPUs and memory has in all, and what of it is free beside what it does now (see
    `app.workers.tables.Worker`)."""
    sound = [gpu for gpu in gpus if not gpu.get("error")]
    taken = {index for each in doing for index in each["gpus"]}
    promised = sum(each["memory_gb"] or 0.0 for each in doing if not each["gpus"])
    auto = min(len(sound), 1)
    whole = Room(tuple(gpu["memory_gb"] for gpu in sound), memory_gb, auto)
    free = tuple(gpu["memory_gb"] for gpu in sound if gpu["index"] not in taken)
    return whole, Room(free, memory_gb - promised, auto)


def is_enough(room: Room) -> ColumnElement[bool]:
    """Whether a job can run in this room: the one rule of what fits where."""
    wanted = func.coalesce(Job.gpus, room.auto)

    def has(memory_gb: float) -> ColumnElement[bool]:
        return or_(Job.memory_gb.is_(None), Job.memory_gb <= memory_gb)

    # The n largest GPUs are enough for a job that wants n, if the smallest of them is.
    largest_first = sorted(room.gpus, reverse=True)
    by_gpus = (and_(wanted == count, has(memory)) for count, memory in enumerate(largest_first, start=1))
    return or_(and_(wanted == 0, has(room.memory_gb)), *by_gpus)
