"""Which addresses a webhook may reach: public ones, and those of `BURNISH_WEBHOOK_NETWORKS`. A URL is a stranger's wish, and
the service stands where the stranger does not."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from app.settings import get_settings, networks

Address = IPv4Address | IPv6Address

# Public addresses behind which a cloud keeps what is for its machines alone: Azure's.
METADATA = frozenset({ip_address("168.63.129.16")})
# IPv6 addresses that a gateway takes for the IPv4 address in their last 32 bits (RFC 6052).
NAT64 = IPv6Network("64:ff9b::/96")


def literal(host: str) -> Address | None:
    """The address that `host` is, or None for a name. `localhost` is one by its definition."""
    if host == "localhost" or host.endswith(".localhost"):
        return ip_address("127.0.0.1")
    try:
        return ip_address(host)
    except ValueError:
        return None


def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host now, those that may be reached. Raises `OSError` and `UnicodeError` where it has none at all."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = dict.fromkeys(ip_address(address[0]) for *_, address in found)
    return [address for address in addresses if is_allowed(address)]


def is_allowed(address: Address) -> bool:
    """Whether a webhook may reach it."""
    address = _reached(address)
    if any(address in network for network in networks(get_settings().webhook_networks)):
        return True
    return address.is_global and not address.is_multicast and not address.is_reserved and address not in METADATA


def _reached(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
