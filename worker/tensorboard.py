"""TensorBoard's files, written from what trainers tell: a folder for each job, where `BURNISH_TENSORBOARD` names one for all."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from app.jobs.attempts import MEASURED, VALIDATED
from app.jobs.tables import Job
from app.settings import get_settings

log = logging.getLogger(__name__)

# Of an event of this type → under which name what is drawn.
_DRAWN = {
    "step": ("train", [name for name in MEASURED if name != "step"]),
    "validation": ("validation", VALIDATED),
}


class Board:
    """The file of one attempt at a job, or none. What cannot be written is left out: no job fails for it."""

    def __init__(self, job: Job) -> None:
        wanted = get_settings().tensorboard
        self.folder = Path(wanted).resolve() / f"{job.id}-{job.name}" if wanted else None
        self._writer: Any = None

    def write(self, events: list[dict[str, Any]]) -> None:
        """Draws what a trainer told, in order. Steps that are done again by then show what they measured last."""
        if self.folder is None:
            return
        try:
            for event in events:
                if event["type"] == "started":
                    self._begin(event["start_step"] + 1)
                if event["type"] in _DRAWN:
                    self._draw(event)
            if self._writer is not None:
                self._writer.flush()
        except OSError as error:
            log.warning("nothing more is written to %s: %s", self.folder, error)
            self.folder = self._writer = None

    def close(self) -> None:
        """After the last of them."""
        if self._writer is not None:
            self._writer.close()

    def _begin(self, step: int) -> None:
        """A file, from which on what was drawn of this step and those after it is not shown any more."""
        # Only where it is wanted: it costs half a second.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self.folder))
        began = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=step, session_log=began))

    def _draw(self, event: dict[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        part, names = _DRAWN[event["type"]]
        values = [
            Summary.Value(tag=f"{part}/{name}", simple_value=event[name])
            for name in names
            if event.get(name) is not None
        ]
        self._writer.add_event(Event(wall_time=time.time(), step=event["step"], summary=Summary(value=values)))
