"""What this process tells of itself to the table of workers: a training worker every few seconds, housekeeping at each round."""

from __future__ import annotations

import logging
import threading
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal

from app.kit.database import utc_now
from app.up import HOUSEKEEPING_THREADS
from app.workers import service
from worker.fitness import unfit
from worker.slots import Slots, own_slots

log = logging.getLogger(__name__)

Queue = Literal["training", "housekeeping"]
REPORT_SECONDS = 2.0

# Set when this process is asked to end: whoever supervises something hands it over.
shutting_down = threading.Event()


class Presence:
    """Tells of `slots` as those of a worker of `queue`."""

    def __init__(self, queue: Queue, slots: Slots) -> None:
        self.queue, self.slots, self.started_at = queue, slots, utc_now()
        self._left = threading.Event()
        self._reporter = threading.Thread(target=self._run, daemon=True, name="presence")

    def begin(self) -> None:
        """Tells now, and where this process trains every few seconds from now on."""
        if self.queue == "training":
            self._reporter.start()
        else:
            self.report()

    def report(self) -> None:
        """Tells once. What keeps the database from being told is logged, and told again the next time."""
        reason = None
        if self.queue == "training":
            self.slots.look_at_gpus()
            reason = unfit(self.slots)
        status = "stopping" if shutting_down.is_set() else "unfit" if reason else "ready"
        told: dict[str, Any] = {
            "queue": self.queue, "status": status, "reason": reason, "started_at": self.started_at, "version": version("burnish"),
            "slots": self.slots.count, "gpus": self.slots.cards(), "memory_gb": self.slots.memory_gb, "doing": self.slots.doing(),
        }  # fmt: skip
        try:
            service.report(self.slots.name, **told)
        except Exception as error:
            log.warning("the table of workers was not told of this one: %s", error)

    def leave(self) -> None:
        """Takes the worker out of the table. One that is killed before stays in it for a while, as lost."""
        self._left.set()
        if self._reporter.is_alive():
            self._reporter.join(REPORT_SECONDS)
        try:
            service.leave(self.slots.name)
        except Exception as error:
            log.warning("the table of workers was not told that this one ends: %s", error)

    def _run(self) -> None:
        while not self._left.is_set():
            self.report()
            self._left.wait(REPORT_SECONDS)


@lru_cache
def presence(queue: Queue) -> Presence:
    """This process's, which works on one queue."""
    return Presence(queue, own_slots() if queue == "training" else Slots([], HOUSEKEEPING_THREADS))
