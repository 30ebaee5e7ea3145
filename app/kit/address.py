"""The address that the API listens on: whether it can be had, and where this machine reaches it."""

from __future__ import annotations

import socket

# What a server binds to listen on every address → the one on which its own machine reaches it.
REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def local_url(host: str, port: int) -> str:
    """The URL at which this machine reaches a server that listens on `host`."""
    reached = REACHED_AT.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def check_free(host: str, port: int) -> None:
    """Raises `OSError` if a server could not listen on `host` now: the port is taken, or the address is not this machine's."""
    for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
        socket.create_server(place[:2], family=family).close()
