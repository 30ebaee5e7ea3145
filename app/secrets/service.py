"""What can be done with secrets. None of it shows one: `reveal` is for the process that starts the one in need of it."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.kit.database import reading, utc_now, writing
from app.kit.errors import InvalidValue, NotFound
from app.kit.ids import new_id
from app.kit.pagination import Paging, newest_first
from app.kit.sealing import seal, unseal
from app.projects.audit import record
from app.secrets.tables import Secret

MAX_CHARACTERS = 10_000


def put(project_id: str, name: str, value: str) -> Secret:
    """Keeps a secret, in the place of the one that had this name. Raises `InvalidValue`, which does not tell the value."""
    if not 1 <= len(value) <= MAX_CHARACTERS:
        raise InvalidValue(
            f"The value has {len(value)} characters.", param="value", hint=f"Send 1 to {MAX_CHARACTERS} characters."
        )
    sealed = seal(value.encode("utf-8", "surrogatepass"))
    try:
        return _put(project_id, name, sealed)
    except IntegrityError:  # another request made it at the same moment
        return _put(project_id, name, sealed)


def _put(project_id: str, name: str, sealed: str) -> Secret:
    with writing() as session:
        secret = _find(session, project_id, name)
        if secret is None:
            secret = Secret(id=new_id("secret"), project_id=project_id, name=name)
            session.add(secret)
        secret.sealed, secret.updated_at = sealed, utc_now()
        session.flush()
        record(session, "secret.put", secret.id, name=name)
        return secret


def get(project_id: str, name: str) -> Secret:
    """The secret of this name, sealed. Raises `NotFound`."""
    with reading() as session:
        return _found(_find(session, project_id, name), name)


def list_secrets(project_id: str, paging: Paging) -> tuple[list[Secret], bool]:
    """One page of the project's secrets, newest first."""
    with reading() as session:
        return newest_first(session, select(Secret).where(Secret.project_id == project_id), Secret.id, paging)


def delete(project_id: str, name: str) -> None:
    """Forgets a secret. Raises `NotFound`."""
    with writing() as session:
        secret = _found(_find(session, project_id, name), name)
        record(session, "secret.delete", secret.id, name=name)
        session.delete(secret)


def reveal(project_id: str, name: str) -> str | None:
    """The value itself, or None where the project keeps none. Raises `sealing.Unreadable`."""
    with reading() as session:
        secret = _find(session, project_id, name)
    return unseal(secret.sealed).decode("utf-8", "surrogatepass") if secret else None


def _find(session: Session, project_id: str, name: str) -> Secret | None:
    query = select(Secret).where(Secret.project_id == project_id, Secret.name == name)
    return session.scalars(query).one_or_none() if "\0" not in name else None


def _found(secret: Secret | None, name: str) -> Secret:
    if secret is None:
        raise NotFound(
            f"The secret '{name}' does not exist.", code="secret_not_found", hint="GET /secrets lists those that do."
        )
    return secret
