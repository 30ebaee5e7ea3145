"""Sealing what must be kept and never be read in the database: Fernet, under a key of the settings."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from app.kit.home import make_home
from app.settings import get_settings


class Unreadable(Exception):
    """What was sealed cannot be opened: its key is not among those of the settings."""


def seal(data: bytes) -> str:
    """The data, sealed with the first key of the settings."""
    return _keys().fernet.encrypt(data).decode()


def unseal(sealed: str) -> bytes:
    """The data. Raises `Unreadable` where none of the keys opens it."""
    try:
        return _keys().fernet.decrypt(sealed.encode())
    except InvalidToken as error:
        raise Unreadable("BURNISH_SECRET_KEY is not the one that it was sealed with") from error


def derive(purpose: str, *parts: str) -> str:
    """A text that only this service can compute from `parts`, and always the same one: 64 hexadecimal digits."""
    return hmac.new(_keys().secret, json.dumps([purpose, *parts]).encode(), hashlib.sha256).hexdigest()


class _Keys(NamedTuple):
    """What seals and unseals, and the first key by itself."""

    fernet: MultiFernet
    secret: bytes


@lru_cache
def _keys() -> _Keys:
    """The keys of the settings, or the one that is kept in the home: the first seals, all of them open."""
    given = get_settings().secret_key or _kept(make_home() / "secret.key")
    # A Fernet key is 32 bytes; whatever long random text someone sets becomes one.
    digests = [hashlib.sha256(text.strip().encode()).digest() for text in given.split(",") if text.strip()]
    return _Keys(MultiFernet([Fernet(base64.urlsafe_b64encode(digest)) for digest in digests]), digests[0])


def _kept(path: Path) -> str:
    """The key of this home, made when it is first needed; of two processes that make it at once one wins."""
    if not path.exists():
        made = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_urlsafe(32))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(made, path)
        except FileExistsError:
            pass
        finally:
            made.unlink()
    return path.read_text()
