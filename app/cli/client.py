"""The service as the commands call it: JSON in and out, every refusal a `Failure` in the service's own words."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urlsplit

from app.cli.failure import Failure

if TYPE_CHECKING:
    import httpx
    import typer
    from httpx_sse import ServerSentEvent

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
RETRY_SECONDS = 0.5
# A connection that stays away this long will not come back by itself.
PATIENCE_SECONDS = 300.0
PAGE_ROWS = 1000
START_HINT = "Start one with `make up` (or `burnish up`), or name another one with --url or BURNISH_URL."


class Service:
    """One service, over HTTP."""

    def __init__(self, url: str) -> None:
        import httpx

        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Failure(f"'{url}' is not the address of a service.", hint="It looks like http://127.0.0.1:8000.")
        # A proxy that the environment names is for the world, not for this machine.
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        key = os.environ.get("BURNISH_API_KEY")
        self._http = httpx.Client(
            base_url=self.url,
            timeout=timeout,
            trust_env=not local,
            verify=parts.scheme == "https",
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """The object at `path`. A query without a value is left out."""
        return self._json("GET", path, params=_given(query))

    def post(self, path: str, body: Any = None, *, seconds: float | None = ANSWER_SECONDS) -> Any:
        """What the service answers to `body`, within so many seconds (None: however long it takes)."""
        import httpx

        return self._json("POST", path, json=body, timeout=httpx.Timeout(seconds, connect=CONNECT_SECONDS))

    def put(self, path: str, body: Any) -> Any:
        """The object at `path`, which `body` made or replaced."""
        return self._json("PUT", path, json=body)

    def patch(self, path: str, body: Any) -> Any:
        """The object at `path`, changed by `body`."""
        return self._json("PATCH", path, json=body)

    def delete(self, path: str) -> None:
        """Deletes the object at `path`."""
        self._json("DELETE", path)

    def upload(self, path: str, file: BinaryIO, filename: str, **query: Any) -> tuple[Any, bool]:
        """Streams the file; returns what the service has of it, and whether that is new. The answer may take as long as
        the service needs to read the rows."""
        import httpx

        files = {"file": (filename, file, "application/octet-stream")}
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        with self._refusals():
            answer = self._http.post(path, params=_given(query), files=files, timeout=timeout)
            return self._read(answer), answer.status_code == 201

    @contextmanager
    def download(self, path: str, accept: str = "*/*") -> Iterator[Iterator[bytes]]:
        """The bytes at `path`, in pieces, of the media type `accept`."""
        with self._refusals():
            with self._http.stream("GET", path, headers={"Accept": accept}) as answer:
                if answer.is_error:
                    answer.read()
                    self._read(answer)
                yield answer.iter_bytes()

    def pages(
        self, path: str, key: str, after: int | str | None = None, rows: int = PAGE_ROWS
    ) -> Iterator[dict[str, Any]]:
        """Every entry of a list after the entry `after`, in the list's order, asked for `rows` at a time; `key` is the field that
        tells entries apart: a number, or the id."""
        more = True
        while more:
            page = self.get(path, limit=rows, after=after)
            for entry in page["data"]:
                after = entry[key]
                yield entry
            more = page["has_more"]

    @contextmanager
    def events(
        self, method: str, path: str, body: Any = None, last: int | None = None
    ) -> Iterator[Iterator[ServerSentEvent]]:
        """The server-sent events that a request is answered with, after number `last`."""
        import httpx
        from httpx_sse import EventSource

        headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": str(last)})
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        with self._refusals():
            with self._http.stream(method, path, json=body, headers=headers, timeout=timeout) as answer:
                if answer.is_error or "text/event-stream" not in answer.headers.get("content-type", ""):
                    answer.read()
                    self._read(answer)
                    raise self._stranger(answer)
                yield EventSource(answer).iter_sse()

    def _json(self, method: str, path: str, **request: Any) -> Any:
        with self._refusals():
            return self._read(self._http.request(method, path, **request))

    def _read(self, answer: httpx.Response) -> Any:
        if answer.status_code == 204:
            return None
        try:
            body = answer.json()
        except ValueError:
            raise self._stranger(answer) from None
        if answer.is_error:
            raise refusal(body, temporary=answer.status_code >= 500) or self._stranger(answer)
        return body

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Errors of the connection as failures."""
        import httpx

        try:
            yield
        except httpx.ConnectError as error:
            raise Failure(f"No service answers at {self.url}.", hint=START_HINT, temporary=True) from error
        except httpx.TimeoutException as error:
            raise Failure(
                f"The service at {self.url} takes too long to answer.", hint="Is the machine busy?", temporary=True
            ) from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise Failure(
                f"The connection to {self.url} was lost: {reason}", hint="Try again.", temporary=True
            ) from error

    def _stranger(self, answer: httpx.Response) -> Failure:
        start = " ".join(answer.text[:200].split())
        return Failure(
            f"{self.url} answers {answer.status_code}, but not as Burnish does: {start}",
            hint="Another program may listen there. Name the service with --url or BURNISH_URL.",
            temporary=answer.status_code >= 500,
        )


def connect(context: typer.Context) -> Service:
    """The service that the command line names."""
    return Service(context.obj)


def segment(name: str) -> str:
    """An id or a name as one part of a path."""
    if not name:
        raise Failure("The id or name is empty.")
    return quote(name, safe="")


def refusal(body: Any, *, temporary: bool = False) -> Failure | None:
    """The service's error body as a failure; None where it is none."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return None
    return Failure(
        error["message"],
        hint=error.get("hint"),
        param=error.get("param"),
        problems=error.get("problems") or (),
        problem_count=error.get("problem_count") or 0,
        report=error.get("report"),
        others=(error.get("errors") or ())[1:],
        temporary=temporary,
    )


class Patience:
    """Bears a connection that drops and comes back: `lost` raises what cannot be borne, and otherwise waits a moment.

    Nothing is borne before the first `well`: who never was connected should hear at once that nobody answers.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._connected, self._since = False, 0.0

    def well(self) -> None:
        """The service answered."""
        if self._since:
            self._tell("The service answers again.")
        self._connected, self._since = True, 0.0

    def lost(self, failure: Failure) -> None:
        """A request failed."""
        now = time.monotonic()
        if not failure.temporary or not self._connected or (self._since and now - self._since > PATIENCE_SECONDS):
            raise failure
        if not self._since:
            self._tell(f"{failure.message} Trying again …")
            self._since = now
        time.sleep(RETRY_SECONDS)


def read_json_file(path: str, option: str) -> dict[str, Any]:
    """The JSON object in a file that an option names."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError) as error:
        raise Failure(f"{path} cannot be read: {error}", param=option) from error
    if not isinstance(value, dict):
        raise Failure(f"{path} holds JSON, but not an object.", param=option)
    return value


def _given(query: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}
