"""Routes of this service's own API (all but `/v1`): they take no query parameter and no JSON key that they don't know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from difflib import get_close_matches
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from app.kit.bodies import read_json

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_refused: ContextVar[bool] = ContextVar("refused", default=False)


class NativeRoute(APIRoute):
    """Refuses unknown and repeated query parameters, and JSON bodies with repeated keys, together with what FastAPI refuses."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, _unless_refused(endpoint), **options)
        extra = (self.openapi_extra or {}).get("parameters", ())
        self.parameters = {*_names(self.dependant), *(each["name"] for each in extra if each["in"] == "query")}

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            problems = list(_problems(request, self.parameters))
            # The request still goes through authentication and validation, so that everything is said at once.
            token = _refused.set(bool(problems))
            try:
                return await handle(_StrictRequest(request.scope, request.receive))
            except RequestValidationError as error:
                raise RequestValidationError([*problems, *error.errors()], body=error.body) from None
            finally:
                _refused.reset(token)

        return handle_strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = read_json(await self.body())
        return self._json


def _unless_refused(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, which is not called if the request was refused before."""

    def check() -> None:
        if _refused.get():
            raise RequestValidationError([])

    if iscoroutinefunction(endpoint):

        @wraps(endpoint)
        async def call_coroutine(*args: Any, **values: Any) -> Any:
            check()
            return await endpoint(*args, **values)

        return call_coroutine

    @wraps(endpoint)
    def call(*args: Any, **values: Any) -> Any:
        check()
        return endpoint(*args, **values)

    return call


def _names(dependant: Dependant) -> Iterator[str]:
    """The query parameters of a route and of what it depends on."""
    yield from (field.alias for field in dependant.query_params)
    for each in dependant.dependencies:
        yield from _names(each)


def _problems(request: Request, known: set[str]) -> Iterator[dict[str, Any]]:
    """What is wrong with the names of the query's parameters, in pydantic's form."""
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in known:
            near = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
            yield {"type": "unknown_parameter", "loc": ("query", name), "near": near, "known": sorted(known)}
        elif count > 1:
            yield {"type": "duplicate_parameter", "loc": ("query", name)}
