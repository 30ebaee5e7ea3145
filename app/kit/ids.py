"""Identifiers: a prefix that names the kind, then a ULID in lower case (sortable by creation, no slash)."""

from __future__ import annotations

import re
import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# What `new_id` makes, and the one id that it did not make: the default project's.
_ID = re.compile(rf"(?P<prefix>[a-z]+)_(?:[0-7][{_ALPHABET}]{{25}}|(?<=proj_)default)")
_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """`job` → `job_01k…`: 48 bits of milliseconds and 80 of randomness; within a process later ids sort later."""
    global _last
    with _lock:
        value = int(time.time() * 1000) << 80 | secrets.randbits(80)
        _last = value = max(value, _last + 1)
    digits = [_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5)]
    return f"{prefix}_{''.join(digits)}"


def is_id(text: str, prefix: str | None = None) -> bool:
    """Whether the text could be an id of this kind, or of any kind, also of an object that is gone."""
    found = _ID.fullmatch(text)
    return found is not None and prefix in (None, found["prefix"])
