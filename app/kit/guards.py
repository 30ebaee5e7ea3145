"""What stands before every request: the loopback checks, the limit on bodies, HEAD. Plain ASGI, so that streams pass untouched."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from anyio import CancelScope
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kit.errors import Forbidden, ServiceError, TooLarge
from app.settings import Settings, get_settings


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_exposed(settings: Settings) -> bool:
    """Whether others than the people on this machine reach the service, so that it needs keys."""
    return not is_loopback(settings.host) or not is_loopback(urlsplit(settings.public_url).hostname or "localhost")


class LoopbackOnly:
    """Refuses requests that a web page could make: a foreign `Host` (DNS rebinding) or a foreign `Origin`.

    `public_url` is where a reverse proxy before the service is reached, or empty: its name and its pages are no strangers.
    """

    def __init__(self, app: ASGIApp, public_url: str = "") -> None:
        self.app = app
        public = urlsplit(public_url)
        self.public_name, self.public_origin = public.hostname, f"{public.scheme}://{public.netloc}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(Headers(scope=scope))):
            await _answer(refusal)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, headers: Headers) -> ServiceError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name, page = urlsplit(f"//{host}").hostname or "", urlsplit(origin or "").netloc
        except ValueError:  # an address in brackets that is none
            name, page = "", ""
        local = is_loopback(name)
        if not local and name != self.public_name:
            return Forbidden(
                f"The host '{host}' is neither this machine nor the name of BURNISH_PUBLIC_URL.",
                param="Host",
                hint="Call the service by 127.0.0.1 or localhost; behind a proxy, set BURNISH_PUBLIC_URL.",
            )
        if origin is not None and origin != self.public_origin and not (local and page == host):
            return Forbidden(
                f"Pages of '{origin}' may not call this service.",
                param="Origin",
                hint="Call it from its own pages, or not from a browser; behind a proxy, set BURNISH_PUBLIC_URL.",
            )
        return None


class AnswerHeaders:
    """Adds the headers that a request's handling left in `request.state.headers` to its answer, whichever it is."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                for name, value in scope.get("state", {}).get("headers", {}).items():
                    MutableHeaders(scope=message)[name] = value
            await send(message)

        await self.app(scope, receive, with_headers)


class HeadAsGet:
    """Answers HEAD as GET is answered, without the body. A stream ends at once."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        with CancelScope() as asking:

            async def without_body(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                elif not asking.cancel_called:
                    await send({"type": "http.response.body", "body": b""})
                    if message.get("more_body"):
                        asking.cancel()  # the rest of a stream is not made

            await self.app({**scope, "method": "GET"}, receive, without_body)


class BodyLimit:
    """Bounds request bodies other than uploads, which bound themselves as they stream to disk."""

    def __init__(self, app: ASGIApp, unbounded: frozenset[tuple[str, str]]) -> None:
        self.app, self.unbounded = app, unbounded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], _route(scope)) in self.unbounded:
            await self.app(scope, receive, send)
            return
        limit, seen = get_settings().max_request_bytes, 0
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit() and int(length) > limit:
            await _answer(_too_large(limit))(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
            return message

        await self.app(scope, counted, send)


def _route(scope: Scope) -> str:
    """The path below the prefix that a proxy serves the service at."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).rstrip("/")


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is over the limit of {limit} bytes.", hint="BURNISH_MAX_REQUEST_BYTES sets the limit.")


def _answer(error: ServiceError) -> JSONResponse:
    body: dict[str, Any] = error.body()
    return JSONResponse(body, status_code=error.status)
