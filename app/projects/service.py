"""What can be done with projects and keys."""

from __future__ import annotations

import secrets
from datetime import datetime

from sqlalchemy import exists, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.kit.database import DEFAULT_PROJECT, Base, reading, utc_now, writing
from app.kit.errors import Conflict, InvalidValue, NotFound
from app.kit.ids import new_id
from app.kit.pagination import Paging, newest_first
from app.projects.access import digest
from app.projects.tables import Key, Project

PREFIX = "bsk_"


def create_project(name: str) -> Project:
    """Makes a project. Raises `Conflict` where the name is taken."""
    project = Project(id=new_id("proj"), name=name)
    try:
        with writing() as session:
            session.add(project)
    except IntegrityError:
        raise Conflict(
            f"The name '{name}' is taken.", param="name", code="name_taken", hint="Choose another."
        ) from None
    return project


def get_project(name: str) -> Project:
    """The project of this name or id. Raises `NotFound`."""
    with reading() as session:
        return _find_project(session, name)


def list_projects(paging: Paging) -> tuple[list[Project], bool]:
    """One page of the projects, newest first."""
    with reading() as session:
        return newest_first(session, select(Project), Project.id, paging)


def delete_project(name: str) -> None:
    """Removes a project that owns nothing but keys, which go with it. Raises `NotFound`, or `Conflict`."""
    with writing() as session:
        project = _find_project(session, name, lock=True)
        if project.id == DEFAULT_PROJECT:
            raise Conflict("The default project cannot be deleted.", code="in_use", hint="Delete what it owns instead.")
        for table in reversed(Base.metadata.sorted_tables):  # what is made of others first
            if "project_id" not in table.c or table.name == Key.__tablename__:
                continue
            if session.scalar(select(exists().where(table.c.project_id == project.id))):
                raise Conflict(
                    f"The project '{project.name}' still owns {table.name}.",
                    code="in_use",
                    hint="Delete them first, with a key of that project.",
                )
        for key in session.scalars(select(Key).where(Key.project_id == project.id)):
            _require_another_admin(session, key)
            session.delete(key)
        session.flush()
        session.delete(project)


def create_key(project: str, role: str, name: str, expires_at: datetime | None) -> tuple[Key, str]:
    """Makes a key that opens the project of this name or id; returns it and the key itself, which is kept nowhere.

    Raises `InvalidValue` for a project that there is not, a moment that is over, or a first key that is no admin's.
    """
    if expires_at is not None and expires_at <= utc_now():
        raise InvalidValue(
            f"expires_at {expires_at.isoformat()} is over.", param="expires_at", hint="Give a moment that is to come."
        )
    secret = _new_secret()
    with writing() as session:
        try:
            found = _find_project(session, project, lock=True)
        except NotFound as error:
            raise InvalidValue(error.message, param="project", code=error.code, hint=error.hint) from None
        if role != "admin" and not session.scalar(select(exists(select(Key.id)))):
            raise InvalidValue(
                f"The first key cannot be of the role '{role}': nobody could make another.",
                param="role",
                hint="Make an admin's key first: `burnish keys create --admin`.",
            )
        key = Key(
            id=new_id("key"), project_id=found.id, role=role, name=name, sha256=digest(secret), expires_at=expires_at
        )
        session.add(key)
    return key, secret


def list_keys(paging: Paging) -> tuple[list[Key], bool]:
    """One page of the keys of all projects, newest first."""
    with reading() as session:
        return newest_first(session, select(Key), Key.id, paging)


def get_key(id: str) -> Key:
    """The key of this id. Raises `NotFound`."""
    with reading() as session:
        return _find_key(session, id)


def rotate_key(id: str) -> tuple[Key, str]:
    """Gives a key a new secret; the old one is invalid at once. Raises `NotFound`."""
    secret = _new_secret()
    with writing() as session:
        key = _find_key(session, id)
        key.sha256 = digest(secret)
    return key, secret


def delete_key(id: str) -> None:
    """Revokes a key at once. Raises `NotFound`, or `Conflict` where no admin's key would be left."""
    with writing() as session:
        key = _find_key(session, id)
        _require_another_admin(session, key)
        session.delete(key)


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _require_another_admin(session: Session, key: Key) -> None:
    """Without keys the service is open to all of this machine, and without an admin's nobody could make any."""
    if key.role != "admin":
        return
    # Held, so that of two who delete the last two one waits and sees it.
    admins = session.scalars(select(Key.id).where(Key.role == "admin").order_by(Key.id).with_for_update()).all()
    if len(admins) == 1:
        raise Conflict(
            f"The key '{key.id}' is the last of an admin.", code="in_use", hint="Make another admin's key first."
        )


def _find_project(session: Session, name: str, *, lock: bool = False) -> Project:
    query = select(Project).where(or_(Project.id == name, Project.name == name))
    if lock:
        query = query.with_for_update()
    project = session.scalars(query).one_or_none() if "\0" not in name else None
    if project is None:
        raise NotFound(
            f"The project '{name}' does not exist.", code="project_not_found", hint="GET /projects lists those that do."
        )
    return project


def _find_key(session: Session, id: str) -> Key:
    key = session.get(Key, id) if "\0" not in id else None
    if key is None:
        raise NotFound(f"The key '{id}' does not exist.", code="key_not_found", hint="GET /keys lists those that do.")
    return key
