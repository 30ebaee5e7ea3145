"""Whose request it is, and what it may do: every route names one of the four permissions by the type of its `project`."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlencode

import orjson
from anyio import to_thread
from fastapi import Depends, Header, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import exists, select

from app.kit.bodies import read_json
from app.kit.database import DEFAULT_PROJECT, reading, utc_now
from app.kit.errors import Forbidden, ServiceError, Unauthorized
from app.kit.guards import is_exposed
from app.projects import idempotency, last_use, limits
from app.projects.acting import AUTHENTICATING, Actor, act_as
from app.projects.tables import Key, Project
from app.settings import get_settings

Role = Literal["admin", "write", "read", "infer"]
Permission = Literal["administer", "write", "read", "infer"]

PERMISSIONS: dict[str, frozenset[Permission]] = {
    "admin": frozenset({"administer", "write", "read", "infer"}),
    "write": frozenset({"write", "read", "infer"}),
    "read": frozenset({"read"}),
    "infer": frozenset({"infer"}),
}

BEARER = HTTPBearer(auto_error=False, description="A key. Not needed while there is none.")
HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same, for clients that send no bearer.")


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def has_key() -> bool:
    """Whether there is any key: one that is stored, or `BURNISH_ADMIN_KEY`."""
    with reading() as session:
        return bool(get_settings().admin_key) or bool(session.scalar(select(exists(select(Key.id)))))


def needs_key() -> bool:
    """Whether every request needs a key: there is one, or strangers reach the service, whatever became of its keys."""
    return is_exposed(get_settings()) or has_key()


@dataclass(frozen=True)
class Allowed:
    """A dependency: the id of the project in which a request acts that has this permission.

    Raises `Unauthorized` without a key that is valid, `Forbidden` where the key's role has not the permission, and
    `TooManyRequests`.
    """

    permission: Permission

    async def __call__(
        self,
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
        header: Annotated[str | None, Security(HEADER)],
    ) -> str:
        address = request.client.host if request.client else ""
        secret = bearer.credentials if bearer else header
        caller, left = await to_thread.run_sync(_counted, secret, address, limiter=AUTHENTICATING)
        request.state.project, request.state.key = caller.project_id, caller.key_id  # for the access log
        request.state.headers = limits.headers("requests", left)
        limits.require("requests", left, 0)
        if self.permission not in PERMISSIONS[caller.role]:
            raise Forbidden(
                f"A key of the role '{caller.role}' may not do this.",
                code="forbidden_role",
                hint=f"Use one of {', '.join(name for name, may in PERMISSIONS.items() if self.permission in may)}.",
            )
        act_as(caller)
        return caller.project_id


@dataclass(frozen=True)
class Creates(Allowed):
    """The same for a route that creates something: it accepts an `Idempotency-Key`.

    Raises also what `idempotency.ask_once` does. Where `streams`, the body is the route's to read.
    """

    streams: bool = False

    async def __call__(
        self,
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
        header: Annotated[str | None, Security(HEADER)],
        idempotency_key: Annotated[
            str | None, Header(description="A request that is sent again with it creates nothing again.")
        ] = None,
    ) -> str:
        project = await super().__call__(request, bearer, header)
        if idempotency_key is not None:
            asked = None if self.streams else f"{request.url.path}{_query(request)} {_canonical(await request.body())}"
            # What is asked once is set in this task, so only the look at the database goes to a thread.
            await idempotency.ask_once(idempotency_key, asked)
        return project


def _query(request: Request) -> str:
    return f"?{urlencode(sorted(request.query_params.multi_items()))}" if request.query_params else ""


def _canonical(body: bytes) -> str:
    """The same text for the same JSON, however it is written; the bytes themselves for what the route refuses."""
    try:
        return orjson.dumps(read_json(body), option=orjson.OPT_SORT_KEYS).decode()
    except (ValueError, TypeError, RecursionError, ServiceError):
        return body.decode(errors="replace")


def _counted(secret: str | None, address: str) -> tuple[Actor, limits.Left | None]:
    """Whoever shows this key, and what is left of its requests after this one."""
    caller = _caller(secret, address)
    return caller, limits.spend("requests", caller.rates, 1)


def _caller(secret: str | None, address: str) -> Actor:
    """Whoever shows this key. While there is no key, everybody who reaches the service is an admin, and only this machine does."""
    admin_key, now = get_settings().admin_key, utc_now()
    if secret and admin_key and hmac.compare_digest(secret.encode(), admin_key.encode()):
        return _default_admin(address)
    with reading() as session:
        query = (
            select(Key, Project).join(Project, Project.id == Key.project_id).where(Key.sha256 == digest(secret or ""))
        )
        found = session.execute(query).one_or_none() if secret else None
    if found is None:
        if needs_key():
            raise _unauthorized("The key is unknown." if secret else "A key is needed.")
        return _default_admin(address)
    key, project = found
    if key.expires_at is not None and key.expires_at <= now:
        raise _unauthorized(f"The key '{key.name}' expired at {key.expires_at:%Y-%m-%d %H:%M} UTC.")
    last_use.note(key, now)
    rates = (_rates(project), limits.Rates(key.id, limits.KeyLimits(**key.limits)))
    return Actor(project.id, key.id, key.name, key.role, address, rates)


def _default_admin(address: str) -> Actor:
    with reading() as session:
        project = session.get_one(Project, DEFAULT_PROJECT)
    return Actor(project.id, None, None, "admin", address, (_rates(project),))


def _rates(project: Project) -> limits.Rates:
    return limits.Rates(project.id, limits.ProjectLimits(**project.limits))


def _unauthorized(message: str) -> Unauthorized:
    hint = "Send Authorization: Bearer <key>, or X-API-Key. An admin makes keys with POST /keys."
    return Unauthorized(message, hint=hint)


ToAdminister = Annotated[str, Depends(Allowed("administer"))]
ToCreateForAll = Annotated[str, Depends(Creates("administer"))]
ToWrite = Annotated[str, Depends(Allowed("write"))]
ToRead = Annotated[str, Depends(Allowed("read"))]
ToInfer = Annotated[str, Depends(Allowed("infer"))]
ToCreate = Annotated[str, Depends(Creates("write"))]
ToUpload = Annotated[str, Depends(Creates("write", streams=True))]
