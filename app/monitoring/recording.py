"""What is recorded of every request: its id, a line of the access log, its duration. Plain ASGI, so that streams pass untouched."""

from __future__ import annotations

import logging
import re
import time
from urllib.parse import quote

from opentelemetry import trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kit import logs
from app.kit.ids import new_id
from app.monitoring import latency

log = logging.getLogger("access")

# A client's id is used if it is safe to repeat in a header and in a log line.
CLIENT_ID = re.compile(r"[A-Za-z0-9._:=+/@-]{1,128}")
PATH_CHARACTERS = 500
# Proxies log this status for a client that went away before it was answered.
HUNG_UP = 499


class Recorded:
    """Gives each request an id, which its answer carries as `X-Request-ID`, and records how it ended.

    It stands outside of every other middleware, so that their refusals and faults are recorded too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        id = given if CLIENT_ID.fullmatch(given) else new_id("req")
        trace.get_current_span().set_attribute("burnish.request_id", id)
        logs.request_id.set(id)  # not reset: a request has a task of its own, whose later log lines are about it too
        began, status, size = time.perf_counter(), HUNG_UP, 0

        async def counted(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = id
            size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            seconds = time.perf_counter() - began
            _log(scope, status, size, seconds)
            latency.observe(scope["method"], getattr(scope.get("route"), "path", None), status, seconds)


def _log(scope: Scope, status: int, size: int, seconds: float) -> None:
    """Writes the line of the access log. The query stays out of it: values there may be secret."""
    path = scope["raw_path"].decode("ascii", "backslashreplace") if scope.get("raw_path") else quote(scope["path"])
    state = scope.get("state", {})
    fields = {
        "method": scope["method"],
        "path": path[:PATH_CHARACTERS],
        "status": status,
        "duration_ms": round(1000 * seconds, 1),
        "bytes": size,
        "client": scope["client"][0] if scope.get("client") else None,
        "project": state.get("project"),
        "key": state.get("key"),
    }
    log.info("%s %s %d, %s ms, %d bytes, client %s, project %s, key %s", *fields.values(), extra=fields)
