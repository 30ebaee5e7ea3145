"""A request to a URL that a user chose: to an address that was checked, in bounded time, with a bounded answer."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import httpcore
import httpx

from app.webhooks.addresses import resolve

# Of an answer's body, which nobody sees: where a private network is allowed it would be a way to read there.
MOST_ANSWER_BYTES = 64 * 1024


class Unreachable(Exception):
    """There was no answer. The message says why, in words for the user."""


def post(url: str, headers: dict[str, str], body: bytes, seconds: float) -> int:
    """The HTTP status of the answer to one POST. No redirect is followed, no proxy is used. Raises `Unreachable`, also after
    `seconds` without an answer.

    httpcore is used and not httpx, because it lets us make the connection: a name is resolved once, and the address that was
    checked is the one that is called. TLS goes by the name all the same.
    """
    try:
        parsed = httpx.URL(url)
        target = httpcore.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)
        sent = {"Host": parsed.netloc.decode("ascii"), "Connection": "close", **headers}
        backend = _Checked(time.monotonic() + seconds)
        with httpcore.ConnectionPool(ssl_context=_tls(), network_backend=backend) as pool:
            with pool.stream("POST", target, headers=list(sent.items()), content=body) as response:
                _drain(response)
                return response.status
    except httpcore.TimeoutException as error:
        raise Unreachable(f"There was no answer within {seconds:g} s.") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise Unreachable(f"There was no answer: {error or type(error).__name__}.") from error


def _drain(response: httpcore.Response) -> None:
    """Reads the answer's body up to a bound, so that its sender can finish; what goes wrong with it does no harm."""
    read = 0
    try:
        for chunk in response.iter_stream():
            read += len(chunk)
            if read > MOST_ANSWER_BYTES:
                return
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        return


@lru_cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


class _Checked(httpcore.NetworkBackend):
    """Connects to an allowed address of a host, and has all of it end at `deadline` (by the monotonic clock)."""

    def __init__(self, deadline: float) -> None:
        self._deadline, self._backend = deadline, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise Unreachable(f"The host '{host}' has no address: {error}.") from error
        if not addresses:
            raise Unreachable(
                f"The host '{host}' has no public address. BURNISH_WEBHOOK_NETWORKS allows further networks."
            )
        for index, address in enumerate(addresses):
            try:
                stream = self._backend.connect_tcp(
                    str(address), port, _left(self._deadline), local_address, socket_options
                )
                return _Timed(stream, self._deadline)
            except httpcore.ConnectError:
                if index == len(addresses) - 1:
                    raise
        raise AssertionError("unreachable")


class _Timed(httpcore.NetworkStream):
    """A stream whose every wait ends at the deadline: one that trickles is as late as one that is silent."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    """Seconds until then. Raises httpcore's `TimeoutException` where there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left
