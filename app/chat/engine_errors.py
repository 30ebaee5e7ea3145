"""What an engine answers when it refuses or fails, as the one error body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.kit.errors import BadGateway, InvalidValue, ServiceError, Unavailable
from app.models.tables import Model

# The status of a refusal → its code, where the engine gives none as text (vLLM's is the status).
CODES = {413: "too_large", 429: "rate_limit_exceeded"}
HINTS = {
    "context_length_exceeded": "Shorten the messages or lower max_tokens. BURNISH_MAX_MODEL_LEN sets the longest context.",
    "unsupported_parameter": "Leave the field out, or serve the model with vLLM.",
}
CORRECT = "Correct what the message names. Fields are those of OpenAI's API, and vLLM's own beside them."
# How vLLM says that a prompt is too long, for which it has no code.
TOO_LONG = "maximum context length"


class Refused(ServiceError):
    """An engine refused the request; the status is the engine's."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None) -> None:
        super().__init__(message, code=code, param=param, hint=HINTS.get(code, CORRECT))
        self.status = status


def shown_names(model: Model, name: str) -> dict[str, str]:
    """How a caller knows the models that an engine knows by id: `model` by the `name` that it sent."""
    base = model.base_model
    return {model.id: name} | ({base.id: base.name} if base is not None else {})


def from_engine(status: int, answer: Any, names: Mapping[str, str]) -> ServiceError:
    """The error for an engine's `answer` of this `status`, with `names` in place of internal ids.

    A refusal (4xx) keeps its status. A model that the engine doesn't know any more is 503, what it never learned to do
    (501) is 422, and any other failure is 502.
    """
    error = answer.get("error") if isinstance(answer, dict) else None
    fields: dict[str, Any] = error if isinstance(error, dict) else {}
    message = str(fields.get("message") or f"The engine answered with status {status}.")
    for id, name in names.items():
        message = message.replace(id, name)
    param = fields.get("param") if isinstance(fields.get("param"), str) else None
    if status == 404:
        message = f"The engine does not have the model any more: {message}"
    if status in (404, 503):
        return Unavailable(message, param=param, hint="Try again shortly: the engine loads the model again.")
    if status == 501:
        return InvalidValue(message, param=param, code="unsupported", hint=CORRECT)
    if not 400 <= status < 500:
        return BadGateway(message, param=param, hint="Try again; the engine's log in BURNISH_HOME/logs says more.")
    code = fields.get("code")
    if TOO_LONG in message:
        code = "context_length_exceeded"
    elif not isinstance(code, str) or code.isdigit():
        code = CODES.get(status, "invalid_value")
    return Refused(status, message, code=code, param=param)


def from_event(event: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The body for an error in the middle of a stream, whose own status is long sent: vLLM puts it into `code`."""
    error = event.get("error")
    status = error.get("code") if isinstance(error, dict) else None
    return from_engine(status if isinstance(status, int) else 500, event, names).body()
