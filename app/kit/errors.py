"""The one error: what a service function raises, and the one body it becomes on the wire."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ServiceError(Exception):
    """A refusal that a user can act on.

    `message` says what is wrong with which value, `hint` what to do, `param` which field; `status` is the HTTP status.
    Subclasses fix `status` and a default `code`. `extra` adds fields beside them (a dataset's `problems`).
    """

    status = 400
    code = "invalid_request"

    def __init__(
        self, message: str, *, hint: str | None = None, param: str | None = None, code: str | None = None, **extra: Any
    ) -> None:
        super().__init__(message)
        self.message, self.hint, self.param, self.extra = message, hint, param, extra
        self.code = code or self.code

    def body(self) -> dict[str, Any]:
        """The error body of docs/api.md."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code, "hint": self.hint}
        return {"error": fields | self.extra}


class BadRequest(ServiceError):
    status, code = 400, "invalid_json"


class Unauthorized(ServiceError):
    status, code = 401, "invalid_key"


class Forbidden(ServiceError):
    status, code = 403, "forbidden_origin"


class NotFound(ServiceError):
    status, code = 404, "not_found"


class Conflict(ServiceError):
    status, code = 409, "invalid_state"


class TooLarge(ServiceError):
    status, code = 413, "too_large"


class UnsupportedMediaType(ServiceError):
    status, code = 415, "unsupported_media_type"


class InvalidValue(ServiceError):
    status, code = 422, "invalid_value"


class Unavailable(ServiceError):
    status, code = 503, "engine_unavailable"


class Problem(BaseModel):
    """What is wrong with rows of an upload: the first problem of a code, and how many there are of it."""

    code: str
    severity: Literal["error", "warning"]
    count: int
    line: int | None = Field(description="Counted from 1; null: the file as a whole.")
    path: str | None = Field(description="Where in the row.")
    found: str | None
    expected: str | None
    message: str
    hint: str


class ErrorDetail(BaseModel):
    """What went wrong with which value, and what to do."""

    message: str
    type: str
    param: str | None = None
    code: str
    hint: str | None = None
    problems: list[Problem] | None = None
    problem_count: int | None = None
    report: str | None = None


class ErrorBody(BaseModel):
    """The one body of every error."""

    error: ErrorDetail


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for routes that answer with these error statuses."""
    return {status: {"model": ErrorBody} for status in statuses}
