"""The one error: what a service function raises, and the one body it becomes on the wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, Field


class ServiceError(Exception):
    """A refusal that a user can act on.

    `message` says what is wrong with which value, `hint` what to do, `param` which field; `status` is the HTTP status.
    Subclasses fix `status` and a default `code`. `extra` adds fields beside them (a dataset's `problems`). `others` are
    refusals of the same request, which are reported together with this one (see `Refusals`).
    """

    status = 400
    code = "invalid_request"
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self, message: str, *, hint: str | None = None, param: str | None = None, code: str | None = None, **extra: Any
    ) -> None:
        super().__init__(message)
        self.message, self.hint, self.param, self.extra = message, hint, param, extra
        self.code = code or self.code
        self.others: Sequence[ServiceError] = ()

    def body(self) -> dict[str, Any]:
        """The error body of docs/api.md."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code, "hint": self.hint}
        every = {"errors": [each.entry() for each in (self, *self.others)]} if self.others else {}
        return {"error": fields | every | self.extra}

    def entry(self) -> dict[str, Any]:
        """This error alone, as one of several."""
        return {"param": self.param, "code": self.code, "message": self.message, "hint": self.hint}


class Refusals:
    """Collects the independent refusals of one request, so that they are reported at once."""

    def __init__(self) -> None:
        self.errors: list[ServiceError] = []

    def __bool__(self) -> bool:
        return bool(self.errors)

    def add(self, error: ServiceError) -> None:
        """Adds an error, and those that it was raised with."""
        self.errors += [error, *error.others]
        error.others = ()

    def concern(self, field: str) -> bool:
        """Whether one of them is about this field, a part of it, or what it is a part of."""
        params = [error.param for error in self.errors if error.param is not None]
        return any(f"{param}.".startswith(f"{field}.") or f"{field}.".startswith(f"{param}.") for param in params)

    @contextmanager
    def catch(self) -> Iterator[None]:
        """Adds the `ServiceError` that the block raises, if it raises one, and goes on after the block."""
        try:
            yield
        except ServiceError as error:
            self.add(error)

    def raise_all(self) -> None:
        """Raises the first error with the others beside it; does nothing if there is none."""
        if self.errors:
            first, *others = self.errors
            first.others = others
            raise first


class BadRequest(ServiceError):
    """The body cannot be read."""

    status, code = 400, "invalid_json"


class Unauthorized(ServiceError):
    """There are keys, and the request has none that is valid."""

    status, code = 401, "invalid_key"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class Forbidden(ServiceError):
    """The key's role may not do this, or a web page may not."""

    status, code = 403, "forbidden_origin"


class NotFound(ServiceError):
    """There is no such object."""

    status, code = 404, "not_found"


class Conflict(ServiceError):
    """The present state forbids it."""

    status, code = 409, "invalid_state"


class TooLarge(ServiceError):
    """The body is over the limit."""

    status, code = 413, "too_large"


class UnsupportedMediaType(ServiceError):
    """The body is nothing that the route takes."""

    status, code = 415, "unsupported_media_type"


class InvalidValue(ServiceError):
    """A value is wrong, or a combination is not possible."""

    status, code = 422, "invalid_value"


class TooManyRequests(ServiceError):
    """Try again after `Retry-After` seconds."""

    status, code = 429, "rate_limit_exceeded"

    def __init__(self, message: str, *, seconds: int, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.headers = {"Retry-After": str(seconds)}


class BadGateway(ServiceError):
    """An inference engine failed."""

    status, code = 502, "engine_error"


class Unavailable(ServiceError):
    """Something that is needed does not answer now: try again after `Retry-After` seconds."""

    status, code = 503, "engine_unavailable"
    headers = MappingProxyType({"Retry-After": "5"})


class DiskFull(ServiceError):
    """The service's disk is full: nothing was stored."""

    status, code = 507, "disk_full"

    def __init__(self) -> None:
        super().__init__(
            "The service's disk is full; nothing of this request was stored.",
            hint="Free space on the disk of BURNISH_HOME, or delete datasets and models. Then try again.",
        )


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


class ErrorEntry(BaseModel):
    """One of several refusals of the same request."""

    param: str | None
    code: str
    message: str
    hint: str | None


class ErrorDetail(BaseModel):
    """What went wrong with which value, and what to do."""

    message: str
    type: str
    param: str | None = None
    code: str
    hint: str | None = None
    errors: list[ErrorEntry] | None = Field(
        None, description="All refusals, where there are two or more. The first one equals the fields above."
    )
    problems: list[Problem] | None = None
    problem_count: int | None = None
    report: str | None = None


class ErrorBody(BaseModel):
    """The one body of every error."""

    error: ErrorDetail


# One of each status, for the OpenAPI document.
EXAMPLES = (
    BadRequest("The body is not JSON: unexpected end (at character 17).", hint="Send one JSON object."),
    Unauthorized("A key is needed.", hint="Send Authorization: Bearer <key>, or X-API-Key."),
    Forbidden("A key of the role 'read' may not do this.", code="forbidden_role", hint="Use one of admin, write."),
    NotFound("The job 'job_01' does not exist.", code="job_not_found", hint="GET /jobs lists those that do."),
    Conflict("The name 'support-bot' is taken.", param="name", code="name_taken", hint="Choose another."),
    TooLarge("The body is over the limit of 16777216 bytes.", hint="BURNISH_MAX_REQUEST_BYTES sets the limit."),
    UnsupportedMediaType("The body is 'text/csv'; this route takes JSON.", hint="Send Content-Type: application/json."),
    InvalidValue(
        "The field 'role' has a wrong value, 'owner': Input should be 'admin', 'write', 'read' or 'infer'.",
        param="role",
        hint="docs/api.md has the allowed values.",
    ),
    TooManyRequests("The limit of 600 requests a minute is reached.", seconds=12, hint="Try again in 12 s."),
    BadGateway("Internal server error", hint="Try again; the engine's log in BURNISH_HOME/logs says more."),
    Unavailable("The database cannot be reached.", code="database_unavailable", hint="Try again in a few seconds."),
    DiskFull(),
)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for routes that answer with these error statuses."""
    return {
        error.status: {
            "model": ErrorBody,
            "description": type(error).__doc__ or "",
            "content": {"application/json": {"example": error.body()}},
        }
        for error in EXAMPLES
        if error.status in statuses
    }
