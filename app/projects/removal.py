"""Removing a project with everything that it owns."""

from __future__ import annotations

from collections.abc import Callable

from psycopg.errors import DeadlockDetected
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from app.kit.database import DEFAULT_PROJECT, Base, writing
from app.kit.errors import Conflict
from app.projects.audit import record
from app.projects.service import find_project, require_another_admin
from app.projects.tables import Key

TRIES = 5

# A noun whose objects are more than rows prepares their end here, in the transaction that removes the rows (what is deleted
# is what the project owns then), and returns what is left to do after it.
Remover = Callable[[Session, str], Callable[[], None]]
_removers: list[Remover] = []


def register(remover: Remover) -> None:
    """Adds a noun's part."""
    _removers.append(remover)


def delete_project(name: str) -> None:
    """Removes a project and all that it owns; a job of it that runs is stopped by its next heartbeat.

    Raises `NotFound`, and `Conflict` for the default project, for the last admin's key and where others need something.
    """
    for _ in range(TRIES - 1):
        try:
            return _delete(name)
        except IntegrityError:  # something was added meanwhile
            continue
        except OperationalError as error:
            if not isinstance(error.orig, DeadlockDetected):
                raise
    return _delete(name)


def _delete(name: str) -> None:
    with writing() as session:
        project = find_project(session, name, alone=True)
        if project.id == DEFAULT_PROJECT:
            raise Conflict("The default project cannot be deleted.", code="in_use", hint="Delete what it owns instead.")
        for key in session.scalars(select(Key).where(Key.project_id == project.id, Key.role == "admin")):
            require_another_admin(session, key)
            session.delete(key)
            session.flush()
        after = [remover(session, project.id) for remover in _removers]
        for table in reversed(Base.metadata.sorted_tables):  # what is made of others first
            if "project_id" in table.c:
                session.execute(delete(table).where(table.c.project_id == project.id))
        record(session, "project.delete", project.id, name=project.name)
        session.delete(project)
    for finish in after:
        finish()
