"""What an answer used: counted for the caller's limits, and written down."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from app.chat.threads import in_thread
from app.kit.database import writing
from app.projects import limits
from app.projects.acting import Actor
from app.usage import service as usage
from app.usage.service import Used

log = logging.getLogger(__name__)


@dataclass
class Meter:
    """Follows one request of `caller` to a model, from before it is sent to the engine until the last of its answer."""

    caller: Actor
    model: str
    used: Used = field(default_factory=Used)

    def read(self, answer: dict[str, Any]) -> None:
        """Takes the usage from an answer or from a piece of one; later pieces tell the sum of the earlier ones."""
        if counts := answer.get("usage"):
            tokens = (counts.get("prompt_tokens") or 0, counts.get("completion_tokens") or 0)
            self.used = Used(requests=1, input_tokens=tokens[0], output_tokens=tokens[1])

    async def write(self) -> None:
        """Counts and writes down what was read."""
        if self.used.requests:
            await in_thread(self._write)

    def _write(self) -> None:
        limits.spend("tokens", self.caller.rates, self.used.input_tokens + self.used.output_tokens)
        try:
            with writing() as session:
                usage.add(session, self.caller.project_id, self.caller.key_id, self.model, self.used)
        except SQLAlchemyError as error:  # the answer is there, and is not taken back
            log.error("%s: usage of %s was not written down: %s", self.caller.project_id, self.model, error)
