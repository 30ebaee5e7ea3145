"""What can be done with models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from sqlalchemy import ColumnElement, and_, or_, select, union_all
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from app.kit import storage
from app.kit.database import DEFAULT_PROJECT, reading, writing
from app.kit.errors import Conflict, Forbidden, InvalidValue, NotFound
from app.kit.ids import new_id
from app.kit.pagination import Paging, newest_first
from app.kit.queue import Wakeable, wake
from app.kit.references import references
from app.models import roots
from app.models.chat_templates import end_of, require_end, text_of
from app.models.inspection import inspect_model
from app.models.own_code import require_allowed
from app.models.schemas import Kind, ModelCreate, model_out
from app.models.sources import source_of
from app.models.tables import Grant, Model, is_base
from app.projects import removal, stored
from app.projects.audit import record
from app.projects.idempotency import creating, remember
from app.projects.limits import lock_project

DEMO_BASE = Path(__file__).resolve().with_name("demo_base")
# What a model of these states waits for.
PREPARED_BY: dict[str, Wakeable] = {"downloading": "download", "merging": "train"}
TUNED = tuple(kind for kind in get_args(Kind) if kind != "base")
HUB_SOURCE = re.compile(r"(modelscope|hf)://[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[A-Za-z0-9][\w./-]*)?")


def register(project_id: str, request: ModelCreate) -> Model:
    """Registers a base model: ready for a directory, downloading for a hub. What another noun keeps becomes a fine-tune: ready,
    or merging.

    Raises `InvalidValue` where the source cannot be read or the template not parsed, `Conflict` where the name is taken.
    """
    given = {"template_arguments": request.template_arguments} if request.template_arguments else {}
    model = Model(
        id=new_id("model"),
        project_id=project_id,
        name=request.name,
        kind="base",
        source=request.source,
        base_model=None,
        chat_template=text_of(request.chat_template) if request.chat_template is not None else None,
        facts=given,
        meta=request.metadata,
    )
    if request.architecture_only and "://" in request.source:
        raise InvalidValue(
            f"The source '{request.source}' has weights, or is to have some.",
            param="architecture_only",
            hint="Give the directory of an architecture, or leave architecture_only out.",
        )
    kept = source_of(model)
    if kept is not None:
        kept.fetch(model)
    elif "://" in request.source:
        if not HUB_SOURCE.fullmatch(request.source):
            raise InvalidValue(
                f"The source '{request.source}' is not one that can be read.",
                param="source",
                hint="Give a directory, modelscope://owner/name[@revision], hf://owner/name[@revision] or checkpoint://id.",
            )
        model.status = "downloading"
    else:
        folder = roots.resolve(request.source)
        if folder != DEMO_BASE.resolve():
            roots.require_allowed(folder, request.source)
        read_directory(model, folder, architecture_only=request.architecture_only)
    try:
        with creating() as session:
            require_free_name(session, project_id, request.name)
            if kept is not None:
                kept.adopt(session, model)
            session.add(model)
            session.flush()
            record(session, "model.create", model.id, name=model.name, source=model.source)
            remember(session, 201 if model.status == "ready" else 202, model_out(model))
            if kept is not None:
                stored.add(session, project_id, model.stored_bytes)
    except IntegrityError:
        raise name_taken(request.name) from None
    if model.status in PREPARED_BY:
        wake(PREPARED_BY[model.status])
    return model


def require_free_name(session: Session, project_id: str, name: str) -> None:
    """Raises `Conflict` if the project sees a model of this name, or a job of it that has not ended will make one.

    Holds the project until the transaction ends: two that want the same name must not both find it free.
    """
    lock_project(session, project_id)
    if find(session, project_id, name) is not None or references(session, "model name", name, project_id):
        raise name_taken(name)


def name_taken(name: str) -> Conflict:
    """The error for a name that already means something in the project."""
    return Conflict(
        f"The name '{name}' is taken.", param="name", code="name_taken", hint="A model is named once; choose another."
    )


def read_directory(model: Model, folder: Path, *, architecture_only: bool = False) -> None:
    """Makes `model` a ready one whose files lie in `folder`. Raises `InvalidValue` where they are not those of a model."""
    facts, template = inspect_model(folder, architecture_only=architecture_only)
    if facts.get("own_code"):
        require_allowed(model.source, str(folder))
    if model.chat_template is not None:
        require_end(model.chat_template, facts.get("templates"), model.name)
    model.chat_template = model.chat_template or template
    end = end_of(model.chat_template, facts.get("templates"))
    if end is not None:  # the model's own configuration need not know it
        facts["stop_token_ids"] = [end]
    if model.template_arguments:
        facts["template_arguments"] = model.template_arguments
    model.facts, model.location, model.status = facts, str(folder.resolve()), "ready"
    model.progress = model.error = None


def register_demo_base(project_id: str) -> None:
    """Registers the model that Burnish ships. If it is registered, and Burnish was installed anew at another place since, the
    model's row follows it there."""
    if not DEMO_BASE.is_dir():
        return
    with reading() as session:
        known = find(session, project_id, "demo-base")
    try:
        if known is None:
            register(project_id, ModelCreate(name="demo-base", source=str(DEMO_BASE)))
        elif known.kind == "base" and known.location is not None and not Path(known.location).exists():
            _move_to(DEMO_BASE, known)
    except (Conflict, InvalidValue):  # another process was faster; its files are broken: `burnish doctor` says so
        return


def _move_to(folder: Path, known: Model) -> None:
    """Says that the files of `known` are in `folder`, if the same model is there. Raises `InvalidValue` if none is."""
    facts, _ = inspect_model(folder)
    if any(facts[name] != known.facts.get(name) for name in ("architecture", "parameters", "bytes")):
        return
    with writing() as session:
        model = session.get(Model, known.id)
        if model is not None:
            model.source = model.location = str(folder)


def find(session: Session, project_id: str, name: str) -> Model | None:
    """The model that the project means by this id or name: an id before a name, the project's own model before one that it
    was granted, and that before another project's base model."""
    query = select(Model).where(or_(*_seen_by(project_id)), or_(Model.name == name, Model.id == name))
    order = (Model.id != name, Model.project_id != project_id, is_base(), Model.id)
    return session.scalars(query.order_by(*order).limit(1)).first()


def _seen_by(project_id: str, kinds: Sequence[str] = get_args(Kind)) -> list[ColumnElement[bool]]:
    """Of which one is true for a model of these kinds that the project sees: base models are everybody's, fine-tunes their
    project's and whose they are granted to. For each alone there is an index; for all together there cannot be one."""
    tuned = [kind for kind in kinds if kind != "base"]
    others = [kind for kind in get_args(Kind) if kind not in tuned]
    granted = Model.id.in_(select(Grant.model_id).where(Grant.project_id == project_id))
    own = [and_(Model.project_id == project_id, Model.kind == kind) for kind in tuned]
    # Said as what they are not, for which SQLite has no index: it is to look them up by their ids.
    return [*own, and_(granted, Model.kind.not_in(others)), *([is_base()] if "base" in kinds else [])]


def get(project_id: str, name: str) -> Model:
    """The model of this name or id. Raises `NotFound`."""
    with reading() as session:
        model = find(session, project_id, name)
    if model is None:
        raise not_found(name)
    return model


def not_found(name: str, param: str | None = None) -> NotFound:
    """The error for a name that no model has."""
    return NotFound(
        f"The model '{name}' does not exist.",
        param=param,
        code="model_not_found",
        hint="GET /models lists those that do; POST /models registers a base model.",
    )


def list_models(project_id: str, paging: Paging, kind: str | None, status: str | None) -> tuple[list[Model], bool]:
    """One page of the project's models, newest first."""
    query = select(Model)
    if status:
        query = query.where(Model.status == status)
    seen = _seen_by(project_id, [kind] if kind else get_args(Kind))
    with reading() as session:
        return newest_first(session, query, Model.id, paging, either=seen)


def servable(project_id: str) -> list[Model]:
    """Every model that can be chatted with by its name, newest first."""
    seen = union_all(*(select(Model.id).where(each, Model.status == "ready") for each in _seen_by(project_id)))
    query = select(Model).where(Model.id.in_(seen)).order_by(Model.id.desc())
    with reading() as session:
        found = [model for model in session.scalars(query) if answers(model)]
        others = [model.name for model in found if model.kind == "base" and model.project_id != project_id]
        tuned = select(Model.name).where(or_(*_seen_by(project_id, TUNED)), Model.name.in_(others))
        hidden = set(session.scalars(tuned))
    return [model for model in found if model.kind != "base" or model.name not in hidden]


def answers(model: Model) -> bool:
    """Whether the model can be chatted with, once it is ready."""
    return model.kind != "reward" and not model.facts.get("architecture_only")


def delete(project_id: str, name: str) -> None:
    """Removes a model and what storage holds of it. Raises `NotFound`, or `Conflict` while something needs it."""
    with writing() as session:
        model = find(session, project_id, name)
        if model is None:
            raise not_found(name)
        if model.project_id != project_id:
            raise Forbidden(
                f"The model '{model.name}' is another project's.",
                code="forbidden_role",
                hint="Only a key of that project can delete it.",
            )
        session.refresh(model, with_for_update={"of": Model})
        child = aliased(Model)
        fine_tune = session.scalars(select(child).where(child.base_model_id == model.id).limit(1)).first()
        if fine_tune is None:
            user = references(session, "model", model.id, project_id)
        elif fine_tune.project_id == project_id:
            user = f"the model '{fine_tune.name}' is built on it"
        else:
            user = "a model of another project is built on it"
        if user:
            raise Conflict(
                f"The model '{model.name}' is in use: {user}.",
                code="in_use",
                hint="Delete or cancel that first, then try again.",
            )
        record(session, "model.delete", model.id, name=model.name)
        session.delete(model)
        stored.add(session, project_id, -model.stored_bytes)
    if model.kind == "base":
        return
    if kept := source_of(model):
        kept.release(model)
    elif model.location:
        storage.delete_folder(str(Path(model.location).parent))


def _remove_all(session: Session, project_id: str) -> Callable[[], None]:
    """Base models are everybody's: they pass to the default project. Fine-tunes end with theirs."""
    own = select(Model).where(Model.project_id == project_id)
    lock_project(session, DEFAULT_PROJECT)  # nothing is granted to it under the names that pass to it
    for model in session.scalars(own.where(Model.kind == "base")):
        if find(session, DEFAULT_PROJECT, model.name) is not model:
            raise Conflict(
                f"The base model '{model.name}' would pass to the default project, which sees a model of that name.",
                code="name_taken",
                hint="Delete one of the two first.",
            )
        model.project_id = DEFAULT_PROJECT
    child = aliased(Model)
    others = own.join(child, child.base_model_id == Model.id).where(child.project_id != project_id)
    for model in session.scalars(others.where(Model.kind != "base").limit(1)):
        raise Conflict(
            f"A model of another project is built on '{model.name}'.",
            code="in_use",
            hint="That project deletes it first, or is deleted itself.",
        )
    folders = [
        str(Path(model.location).parent) for model in session.scalars(own.where(Model.kind != "base")) if model.location
    ]

    def finish() -> None:
        for folder in folders:
            storage.delete_folder(folder)

    return finish


removal.register(_remove_all)
