"""Whose request it is, and what it may do: every route names one of the four permissions by the type of its `project`."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal

from fastapi import Depends, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import exists, select, update

from app.kit.database import DEFAULT_PROJECT, reading, utc_now, writing
from app.kit.errors import Forbidden, Unauthorized
from app.projects.tables import Key
from app.settings import get_settings

Role = Literal["admin", "write", "read", "infer"]
Permission = Literal["administer", "write", "read", "infer"]

PERMISSIONS: dict[str, frozenset[Permission]] = {
    "admin": frozenset({"administer", "write", "read", "infer"}),
    "write": frozenset({"write", "read", "infer"}),
    "read": frozenset({"read"}),
    "infer": frozenset({"infer"}),
}
# A key's last use is written down this often at most.
LAST_USE = timedelta(minutes=1)

BEARER = HTTPBearer(auto_error=False, description="A key. Not needed while there is none.")
HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same, for clients that send no bearer.")


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def needs_key() -> bool:
    """Whether there is any key, so that every request needs one."""
    with reading() as session:
        return bool(get_settings().admin_key) or bool(session.scalar(select(exists(select(Key.id)))))


@dataclass(frozen=True)
class Allowed:
    """A dependency: the id of the project in which a request acts that has this permission.

    Raises `Unauthorized` without a key that is valid, `Forbidden` where the key's role has not the permission.
    """

    permission: Permission

    def __call__(
        self,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
        header: Annotated[str | None, Security(HEADER)],
    ) -> str:
        project, role = _caller(bearer.credentials if bearer else header)
        if self.permission not in PERMISSIONS[role]:
            raise Forbidden(
                f"A key of the role '{role}' may not do this.",
                code="forbidden_role",
                hint=f"Use one of {', '.join(name for name, may in PERMISSIONS.items() if self.permission in may)}.",
            )
        return project


def _caller(key: str | None) -> tuple[str, str]:
    """The project and the role of whoever shows this key. While there is no key, everybody is an admin: then the service
    binds loopback only."""
    admin_key = get_settings().admin_key
    if key and admin_key and hmac.compare_digest(key.encode(), admin_key.encode()):
        return DEFAULT_PROJECT, "admin"
    now = utc_now()
    with reading() as session:
        found = session.scalars(select(Key).where(Key.sha256 == digest(key))).one_or_none() if key else None
    if found is None:
        if needs_key():
            raise _unauthorized("The key is unknown." if key else "A key is needed.")
        return DEFAULT_PROJECT, "admin"
    if found.expires_at is not None and found.expires_at <= now:
        raise _unauthorized(f"The key '{found.name}' expired at {found.expires_at:%Y-%m-%d %H:%M} UTC.")
    if found.last_used_at is None or now - found.last_used_at > LAST_USE:
        with writing() as session:
            session.execute(update(Key).where(Key.id == found.id).values(last_used_at=now))
    return found.project_id, found.role


def _unauthorized(message: str) -> Unauthorized:
    hint = (
        "Send Authorization: Bearer <key>, or X-API-Key. An admin makes keys with POST /keys or `burnish keys create`."
    )
    return Unauthorized(message, hint=hint)


ToAdminister = Annotated[str, Depends(Allowed("administer"))]
ToWrite = Annotated[str, Depends(Allowed("write"))]
ToRead = Annotated[str, Depends(Allowed("read"))]
ToInfer = Annotated[str, Depends(Allowed("infer"))]
