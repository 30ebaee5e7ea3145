"""Who else needs an object: nouns that refer to another's objects say so here, so that imports go one way only."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

# Given an object's id and whom to tell, a project, a check answers with a phrase that names a user of it ("the job job_… uses
# it"), or None. What is another project's is not named.
Check = Callable[[Session, str, str], str | None]
_checks: dict[str, list[Check]] = {}


def register(kind: str, check: Check) -> None:
    """Adds a check for objects of `kind` (`model`, `dataset`)."""
    _checks.setdefault(kind, []).append(check)


def references(session: Session, kind: str, id: str, project_id: str) -> str | None:
    """The first phrase that names a user of the object. The caller holds the object's row, so none appears meanwhile."""
    return next((phrase for check in _checks.get(kind, []) if (phrase := check(session, id, project_id))), None)
