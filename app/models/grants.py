"""Letting another project see a fine-tune: list it, ask it, nothing else."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.kit.database import reading, writing
from app.kit.errors import Conflict, InvalidValue
from app.models.service import find, not_found, require_free_name
from app.models.tables import Grant, Model
from app.projects.audit import record
from app.projects.service import find_project
from app.projects.tables import Project


def grant(project_id: str, name: str, to: str) -> tuple[Grant, Project]:
    """Grants the project's fine-tune `name` to the project `to` (name or id); granting it again changes nothing.

    Raises `NotFound`, `InvalidValue` for a base model, which every project sees, and for the owner, and `Conflict` if the
    other project already sees a model of that name.
    """
    with writing() as session:
        project = find_project(session, to, lock=True)
        model = _own(session, project_id, name)
        if model.kind == "base" or project.id == project_id:
            raise InvalidValue(
                f"The project '{project.name}' sees the model '{model.name}' already.",
                param="name" if model.kind == "base" else "project",
                hint="Base models are seen by every project, fine-tunes by their own.",
            )
        row = session.get(Grant, (model.id, project.id))
        if row is None:
            _require_free_name(session, project, model)
            row = Grant(model_id=model.id, project_id=project.id)
            session.add(row)
            record(session, "model.grant", model.id, project=project.id)
        return row, project


def revoke(project_id: str, name: str, to: str) -> None:
    """Takes a grant back, if there is one. Raises `NotFound`."""
    with writing() as session:
        model, project = _own(session, project_id, name), find_project(session, to)
        row = session.get(Grant, (model.id, project.id))
        if row is not None:
            session.delete(row)
            record(session, "model.revoke", model.id, project=project.id)


def list_grants(project_id: str, name: str) -> list[tuple[Grant, Project]]:
    """The grants of the project's model, oldest first. Raises `NotFound`."""
    with reading() as session:
        model = _own(session, project_id, name)
        query = select(Grant, Project).join(Project, Project.id == Grant.project_id)
        rows = session.execute(query.where(Grant.model_id == model.id).order_by(Grant.created_at, Grant.project_id))
        return [(row, project) for row, project in rows]


def _require_free_name(session: Session, project: Project, model: Model) -> None:
    """Raises `Conflict` if the name already means something in the project: a grant must not change what it asks."""
    try:
        require_free_name(session, project.id, model.name)
    except Conflict:
        raise Conflict(
            f"The project '{project.name}' already has the name '{model.name}' for a model that it sees or trains.",
            param="project",
            code="name_taken",
            hint="Grant a fine-tune of another name, or delete the other model first.",
        ) from None


def _own(session: Session, project_id: str, name: str) -> Model:
    """The project's own model, locked. Raises `NotFound`."""
    model = find(session, project_id, name)
    if model is None or model.project_id != project_id:
        raise not_found(name)
    session.refresh(model, with_for_update={"of": Model, "key_share": True})
    return model
