"""SIGTERM: finish the step, then end. Before and after training there is no step to finish, so it ends at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from worker.trainer.failures import Stopped


class StopSignal:
    """Whether the run was asked to stop. While `deferred()`, the run looks itself; otherwise `Stopped` is raised.
    `deferred`: from the beginning, of a process whose end is another one's to say."""

    def __init__(self, *, deferred: bool = False) -> None:
        self.requested = False
        self._deferred = deferred
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise Stopped

    def is_agreed(self) -> bool:
        """Whether any process of the run was asked; from then on each of them was."""
        from worker.trainer import ranks  # torch, which is loaded when signals are received already

        self.requested = any(ranks.gather(self.requested))
        return self.requested

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """For the time of the block a signal only sets `requested`; raises `Stopped` at its end if there was one."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before
        if self.requested:
            raise Stopped
