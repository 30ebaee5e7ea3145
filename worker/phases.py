"""The trainer's phases as spans: its supervisor makes them of what it says, since it speaks no HTTP itself."""

from __future__ import annotations

from typing import Any

from opentelemetry import context
from opentelemetry.trace import Span, Status, StatusCode

from app.kit.tracing import tracer


class Phases:
    """Spans below the one that is current when this is made. Each phase lasts until the next one, or the end."""

    def __init__(self) -> None:
        self._parent = context.get_current()
        self._span: Span | None = None

    def see(self, event: dict[str, Any]) -> None:
        """Takes note of an event of the trainer."""
        if event["type"] == "phase":
            self.end()
            self._span = tracer.start_span(f"trainer {event['phase']}", context=self._parent)
        elif event["type"] == "failed" and self._span is not None:
            self._span.set_status(Status(StatusCode.ERROR, event.get("message")))

    def end(self) -> None:
        """Ends the last phase."""
        if self._span is not None:
            self._span.end()
