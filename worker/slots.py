"""What this worker has for jobs and what of it is taken: GPUs, memory, and which GPUs may be faulty and are not used."""

from __future__ import annotations

import logging
import os
import socket
import threading
from functools import lru_cache
from typing import Any

import psutil

from app.jobs import attempts
from app.jobs.room import rooms
from app.jobs.tables import Job
from app.kit import gpus
from app.kit.gpus import Gpu, GpusUnreadable
from app.settings import get_settings

log = logging.getLogger(__name__)


class Slots:
    """The slots of this process. Safe to use from the threads that train and the one that reports."""

    def __init__(self, own: list[Gpu], count: int) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.own = {gpu.index: gpu for gpu in own}
        self.memory_gb = round(psutil.virtual_memory().total / 2**30, 1)
        self.count = count
        self._failed: dict[int, str] = {}  # index → why it is not used, until its test passes
        self._absent: dict[int, str] = {}  # not told of by the driver now
        self._doing: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def claim(self) -> Job | None:
        """The first job in line that there is room for, with GPUs of its own; None where there is none."""
        with self._lock:
            cards, doing = self._cards(), list(self._doing.values())
            # A trainer whose supervisor was killed may hold its GPU for a little longer.
            held = [index for index, gpu in self.own.items() if not gpus.is_free(gpu.uuid)]
            whole, free = rooms(cards, self.memory_gb, [*doing, {"gpus": held, "memory_gb": None}])
            job = attempts.claim(self.name, whole, free)
            if job is not None:
                wanted = whole.auto if job.gpus is None else job.gpus
                taken = {index for each in doing for index in each["gpus"]} | {*held, *self._failed, *self._absent}
                fitting = [
                    gpu.index
                    for gpu in sorted(self.own.values(), key=lambda gpu: gpu.memory_gb)
                    if gpu.index not in taken and gpu.memory_gb >= (job.memory_gb or 0.0)
                ]
                self._doing[job.id] = {
                    "job": job.id, "attempt": job.attempt, "project": job.project_id,
                    "gpus": fitting[:wanted], "memory_gb": job.memory_gb,
                }  # fmt: skip
            return job

    def give_back(self, job: Job) -> None:
        """Frees what the job had."""
        with self._lock:
            self._doing.pop(job.id, None)

    def gpus_of(self, job: Job) -> list[str]:
        """The ids of the GPUs that a claimed job has."""
        with self._lock:
            return [self.own[index].uuid for index in self._doing[job.id]["gpus"]]

    def working_gpus(self) -> list[str]:
        """The ids of the worker's GPUs, smallest first as jobs get them, without those that are left alone."""
        with self._lock:
            wrong = self._absent | self._failed
            own = sorted(self.own.values(), key=lambda gpu: gpu.memory_gb)
            return [gpu.uuid for gpu in own if gpu.index not in wrong]

    def suspect_gpus(self, job: Job, why: str) -> list[Gpu]:
        """Keep the GPUs of a job, which may be faulty, from other jobs, until `trust`. Returns them."""
        with self._lock:
            suspects = [self.own[index] for index in self._doing[job.id]["gpus"]]
            self._failed |= {gpu.index: why for gpu in suspects}
        return suspects

    def blame(self, gpu: Gpu, why: str) -> None:
        """Say anew why a GPU is not used."""
        with self._lock:
            self._failed[gpu.index] = why

    def trust(self, gpu: Gpu) -> None:
        """Give the GPU to jobs again."""
        with self._lock:
            self._failed.pop(gpu.index, None)

    def doing(self) -> list[dict[str, Any]]:
        """What each taken slot does (see `app.workers.tables.Worker`)."""
        with self._lock:
            return list(self._doing.values())

    def cards(self) -> list[dict[str, Any]]:
        """The worker's GPUs, with why one is left alone."""
        with self._lock:
            return self._cards()

    def look_at_gpus(self) -> None:
        """Asks the driver for the worker's GPUs; one that is not there any more is left alone."""
        if not self.own:
            return
        try:
            there = {gpu.uuid for gpu in gpus.list_gpus()}
            absent = {index: "it is not there any more" for index, gpu in self.own.items() if gpu.uuid not in there}
        except GpusUnreadable as error:
            absent = dict.fromkeys(self.own, str(error))
        with self._lock:
            self._absent = absent

    def _cards(self) -> list[dict[str, Any]]:
        wrong = self._absent | self._failed
        return [
            {"index": gpu.index, "name": gpu.name, "memory_gb": gpu.memory_gb, "error": wrong.get(gpu.index)}
            for gpu in self.own.values()
        ]


@lru_cache
def own_slots() -> Slots:
    """Those of this process, as its settings say."""
    own = gpus.own_gpus(get_settings().gpus)
    return Slots(own, gpus.slots(own))
