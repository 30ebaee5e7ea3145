"""What can be done with projects and keys."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.kit.database import reading, utc_now, writing
from app.kit.errors import Conflict, InvalidValue, NotFound
from app.kit.ids import new_id
from app.kit.naming import find_named
from app.kit.pagination import Paging, newest_first
from app.projects.access import digest
from app.projects.audit import record
from app.projects.idempotency import creating, remember
from app.projects.limits import KeyLimits, ProjectLimits
from app.projects.schemas import key_created, project_out
from app.projects.tables import Key, Project
from app.settings import get_settings

PREFIX = "bsk_"


def create_project(name: str, limits: ProjectLimits | None = None) -> Project:
    """Makes a project. Raises `Conflict` where the name is taken."""
    project = Project(id=new_id("proj"), name=name, limits=_named(limits))
    try:
        with creating() as session:
            session.add(project)
            session.flush()
            record(session, "project.create", project.id, name=name)
            remember(session, 201, project_out(project))
    except IntegrityError:
        raise Conflict(
            f"The name '{name}' is taken.", param="name", code="name_taken", hint="Choose another."
        ) from None
    return project


def get_project(name: str) -> Project:
    """The project of this name or id. Raises `NotFound`."""
    with reading() as session:
        return find_project(session, name)


def list_projects(paging: Paging) -> tuple[list[Project], bool]:
    """One page of the projects, newest first."""
    with reading() as session:
        return newest_first(session, select(Project), Project.id, paging)


def change_project(name: str, limits: ProjectLimits) -> Project:
    """Changes those limits of a project that are set in `limits`. Raises `NotFound`."""
    with writing() as session:
        project = find_project(session, name, lock=True)
        project.limits = project.limits | _named(limits)
        record(session, "project.change", project.id, limits=project.limits)
        return project


def create_key(
    project: str, role: str, name: str, expires_at: datetime | None, limits: KeyLimits | None = None
) -> tuple[Key, str]:
    """Makes a key that opens the project of this name or id; returns it and the key itself, which is kept nowhere.

    Raises `InvalidValue` if the project doesn't exist, if `expires_at` is over, or if no admin could make the next key.
    """
    if expires_at is not None and expires_at <= utc_now():
        raise InvalidValue(
            f"expires_at {expires_at.isoformat()} is over.", param="expires_at", hint="Give a moment that is to come."
        )
    secret = _new_secret()
    with creating() as session:
        try:
            found = find_project(session, project, lock=True)
        except NotFound as error:
            raise InvalidValue(error.message, param="project", code=error.code, hint=error.hint) from None
        if role != "admin" and not get_settings().admin_key and not session.scalar(_valid_admins().limit(1)):
            raise InvalidValue(
                f"The first key cannot be of the role '{role}': nobody could make another.",
                param="role",
                hint="Make an admin's key first: `burnish keys create --admin`.",
            )
        key = Key(id=new_id("key"), project_id=found.id, role=role, name=name, sha256=digest(secret))
        key.expires_at, key.limits = expires_at, _named(limits)
        session.add(key)
        session.flush()
        record(session, "key.create", key.id, name=name, role=role, project=found.id)
        remember(session, 201, key_created(key, secret))
    return key, secret


def list_keys(paging: Paging) -> tuple[list[Key], bool]:
    """One page of the keys of all projects, newest first."""
    with reading() as session:
        return newest_first(session, select(Key), Key.id, paging)


def get_key(id: str) -> Key:
    """The key of this name or id. Raises `NotFound`, and `Conflict` where several have the name."""
    with reading() as session:
        return _find_key(session, id)


def change_key(id: str, limits: KeyLimits) -> Key:
    """Changes those limits of a key that are set in `limits`. Raises `NotFound`."""
    with writing() as session:
        key = _find_key(session, id)
        key.limits = key.limits | _named(limits)
        record(session, "key.change", key.id, limits=key.limits)
        return key


def _named(limits: KeyLimits | None) -> dict[str, Any]:
    return limits.model_dump(exclude_unset=True) if limits else {}


def rotate_key(id: str) -> tuple[Key, str]:
    """Gives a key a new secret; the old one is invalid at once. Raises `NotFound`."""
    secret = _new_secret()
    with writing() as session:
        key = _find_key(session, id)
        key.sha256 = digest(secret)
        record(session, "key.rotate", key.id, name=key.name)
    return key, secret


def delete_key(id: str) -> None:
    """Revokes a key at once. Raises `NotFound`, or `Conflict` where no admin's key would be left."""
    with writing() as session:
        key = _find_key(session, id)
        require_another_admin(session, key)
        record(session, "key.delete", key.id, name=key.name)
        session.delete(key)


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def delete_all_keys() -> int:
    """Revokes every key, also the last of an admin; returns how many there were. For commands on the service's machine."""
    with writing() as session:
        keys = session.scalars(select(Key).order_by(Key.id).with_for_update()).all()
        for key in keys:
            record(session, "key.delete", key.id, name=key.name)
            session.delete(key)
    return len(keys)


def require_another_admin(session: Session, key: Key) -> None:
    """Raises `Conflict` if `key` is the last valid admin key. `BURNISH_ADMIN_KEY` counts as one.

    Without a valid admin key nobody could make keys. Without any key, everyone on the machine would be an admin.
    """
    if key.role != "admin" or get_settings().admin_key:
        return
    # Held, so that of two who delete the last two one waits and sees it.
    others = [id for id in session.scalars(_valid_admins().with_for_update()) if id != key.id]
    if not others:
        raise Conflict(
            f"The key '{key.id}' is the last of an admin.", code="in_use", hint="Make another admin's key first."
        )


def _valid_admins() -> Select[str]:
    """The ids of the admins' keys that have not expired."""
    valid = or_(Key.expires_at.is_(None), Key.expires_at > utc_now())
    return select(Key.id).where(Key.role == "admin", valid).order_by(Key.id)


def find_project(session: Session, name: str, *, lock: bool = False, alone: bool = False) -> Project:
    """The project of this id or, failing that, of this name; with `lock`, held until the transaction ends. Raises `NotFound`.

    What refers to it may be inserted meanwhile; with `alone`, only after that.
    """
    query = select(Project).where(or_(Project.id == name, Project.name == name)).order_by(Project.id != name).limit(1)
    if lock or alone:
        query = query.with_for_update(key_share=not alone)
    project = session.scalars(query).first() if "\0" not in name else None
    if project is None:
        raise NotFound(
            f"The project '{name}' does not exist.", code="project_not_found", hint="GET /projects lists those that do."
        )
    return project


def project_id_of(name: str | None) -> str | None:
    """The id of the project of this name or id; what no project has, such as the id of a deleted one, stays as it is."""
    if name is None:
        return None
    with reading() as session:
        try:
            return find_project(session, name).id
        except NotFound:
            return name


def key_id_of(name: str | None, project_id: str | None = None) -> str | None:
    """The same of a key: of this project, or of any. Raises `Conflict` where several have the name."""
    if name is None:
        return None
    keys = select(Key) if project_id is None else select(Key).where(Key.project_id == project_id)
    with reading() as session:
        key = find_named(session, Key, keys, name)
        return key.id if key else name


def _find_key(session: Session, id: str) -> Key:
    key = find_named(session, Key, select(Key), id)
    if key is None:
        raise NotFound(f"The key '{id}' does not exist.", code="key_not_found", hint="GET /keys lists those that do.")
    return key
