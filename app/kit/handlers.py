"""How every failure becomes the one error body."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg.errors import DeadlockDetected
from psycopg.errors import DiskFull as DatabaseFull
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from app.kit import logs
from app.kit.bodies import duplicate
from app.kit.errors import (
    BadRequest,
    Conflict,
    DiskFull,
    InvalidValue,
    ServiceError,
    Unavailable,
    UnsupportedMediaType,
)
from app.kit.full_disk import is_full

log = logging.getLogger(__name__)

# Fields whose values an error does not repeat.
UNSHOWN = frozenset({"value"})

# Starlette's own refusals: status → (code, hint).
PLAIN = {
    404: ("not_found", "GET /openapi.json lists every path."),
    405: ("method_not_allowed", "GET /openapi.json lists every method."),
}


def install(app: FastAPI) -> None:
    """Registers the handlers."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    for kind in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(kind, _database_error)
    app.add_exception_handler(OSError, _system_error)
    app.add_exception_handler(DataError, _unstorable)
    app.add_exception_handler(IntegrityError, _overtaken)
    app.add_exception_handler(Exception, _unexpected)


def _render(error: ServiceError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=headers or error.headers)


def _service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    return _render(error)


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _render(from_validation(list(error.errors()), request.headers.get("content-type", "")))


def from_validation(problems: Sequence[Mapping[str, Any]], content_type: str = "application/json") -> ServiceError:
    """Pydantic's complaints as errors of ours, which name the field and the value: the first, with the others beside it."""
    found = _by_field(problems)
    # A field with a complaint deeper inside it is a union, of which another variant was tried too.
    fields = [field for field in found if not any(other.startswith(f"{field}.") for other in found)]
    first, *first.others = [_refusal(found[field], content_type) for field in fields]
    return first


def _by_field(problems: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The complaints by what they are about: of a union, every variant has one."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for problem in problems:
        found.setdefault(".".join(_without_variants(problem["loc"])), []).append(problem)
    return found


def _refusal(complaints: Sequence[Mapping[str, Any]], content_type: str) -> ServiceError:
    """The error for one field, or for the body as a whole."""
    first = complaints[0]
    kind, location = first["type"], _without_variants(first["loc"])
    param = ".".join(location[1:]) or None
    if kind == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be parsed")
        return BadRequest(
            f"The body is not JSON: {reason} (at character {location[-1]}).", hint="Send one JSON object."
        )
    if location == ["body"]:
        if content_type and "json" not in content_type:
            return UnsupportedMediaType(
                f"The body is '{content_type}'; this route takes JSON.", hint="Send Content-Type: application/json."
            )
        if kind == "missing":
            return BadRequest("The body is empty.", hint="Send one JSON object.")
    if kind == "missing":
        return InvalidValue(
            f"The field '{param}' is missing.", param=param, code="missing_field", hint="docs/api.md lists the fields."
        )
    if kind == "unknown_parameter":
        return _unknown_parameter(str(first["loc"][-1]), first["near"], first["known"])
    if kind == "duplicate_parameter":
        return duplicate(str(first["loc"][-1]), "query parameter")
    if kind == "extra_forbidden":
        return InvalidValue(
            f"The field '{param}' is unknown.", param=param, code="unknown_field", hint="docs/api.md lists the fields."
        )
    shown = "(not shown)" if location[-1] in UNSHOWN else repr(first.get("input"))
    return InvalidValue(
        f"The field '{param or 'body'}' has a wrong value, {shown if len(shown) < 80 else shown[:77] + '...'}: "
        f"{_expected(complaints)}.",
        param=param,
        hint="docs/api.md has the allowed values.",
    )


def _unknown_parameter(name: str, near: Sequence[str], known: Sequence[str]) -> InvalidValue:
    shown = name if len(name) <= 80 else name[:77] + "..."
    hint = "This route has no query parameters."
    if near:
        hint = f"Did you mean '{near[0]}'?"
    elif known:
        hint = f"Known are: {', '.join(known)}."
    return InvalidValue(f"The query parameter '{shown}' is unknown.", param=shown, code="unknown_field", hint=hint)


def _expected(complaints: Sequence[Mapping[str, Any]]) -> str:
    """What pydantic expected in the place of a value: of a union, any of its variants."""
    messages = list(dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in complaints))
    common = "Input should be "
    if all(message.startswith(common) for message in messages):
        return common + " or ".join(message.removeprefix(common) for message in messages)
    return str(messages[0])


def _without_variants(location: Sequence[int | str]) -> list[str]:
    """A union's location names the variant that was tried (`literal['auto']`); a user did not write that."""
    variants = ("bool", "float", "int", "str", "constrained-float", "constrained-int", "constrained-str")
    return [str(part) for part in location if "[" not in str(part) and part not in variants]


def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ServiceError):  # raised while the framework read the body
        return _service_error(request, error.__cause__)
    code, hint = PLAIN.get(error.status_code, ("invalid_json", None))
    where = f"{request.method} {request.url.path}"
    refusal = ServiceError(f"{where}: {error.detail}.", code=code, hint=hint)
    refusal.status = error.status_code
    return _render(refusal, dict(error.headers or {}))


def _database_error(request: Request, error: Exception) -> JSONResponse:
    cause = getattr(error, "orig", None)
    if isinstance(cause, DeadlockDetected):
        return _overtaken(request, error)
    if isinstance(cause, DatabaseFull) or getattr(cause, "sqlite_errorname", None) == "SQLITE_FULL":
        return _disk_full(error)
    log.error("database: %s", error)
    message = "The database cannot be reached."
    return _render(Unavailable(message, code="database_unavailable", hint="Try again in a few seconds."))


def _system_error(request: Request, error: Exception) -> JSONResponse:
    if is_full(error):
        return _disk_full(error)
    return _unexpected(request, error)


def _disk_full(error: Exception) -> JSONResponse:
    log.error("the disk is full: %s", error)
    return _render(DiskFull())


def _unstorable(request: Request, error: Exception) -> JSONResponse:
    log.info("%s %s: %s", request.method, request.url.path, error)
    message = "A value cannot be stored: text with a NUL character, or a number out of range."
    return _render(InvalidValue(message, hint="Remove it from the request."))


def _overtaken(request: Request, error: Exception) -> JSONResponse:
    log.info("%s %s: %s", request.method, request.url.path, error)
    message = "Another request was faster: what this one needs was removed, or what it makes is there."
    return _render(Conflict(message, code="overtaken", hint="Look at it again, then try again."))


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    refusal = ServiceError(
        f"The service failed. Its log has the details under the request id {logs.request_id.get()}.",
        code="internal_error",
        hint="Report it with the log.",
    )
    refusal.status = 500
    return _render(refusal)
