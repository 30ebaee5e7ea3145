"""Checkpoints of jobs, in the database and in storage: kept while a run may go on from them, and while they are models.

Rows come and go under the job's row, models are made of them under it too: neither sees half of the other. The bytes
go when neither a row nor a model has them.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.combinations import served
from app.jobs.lifecycle import add_event
from app.jobs.methods import Lora, Qlora
from app.jobs.outcomes import facts_of, kind_of
from app.jobs.spec import JobSpec
from app.jobs.tables import Checkpoint, Job
from app.kit import storage
from app.kit.database import reading, writing
from app.kit.errors import InvalidValue, NotFound
from app.kit.ids import new_id
from app.models.bases import read_manifest
from app.models.sources import SOURCES, Source
from app.models.tables import Model
from app.projects import stored
from app.settings import get_settings

SCHEME = "checkpoint"

# The file that a folder of weights has in any case.
_CONFIGS = {"adapter": "adapter_config.json", "merged": "config.json"}


def storage_key(job: Job, step: int) -> str:
    """Where a checkpoint of the job's present attempt is stored."""
    return f"checkpoints/{job.id}/{job.attempt}-{step}"


def add(session: Session, row: Job, step: int, size: int, validation_loss: float | None = None) -> list[str]:
    """Inserts the row of a checkpoint that is stored, in the transaction that holds the job's. Returns the keys of those
    that are kept no longer, for `drop` after the commit."""
    checkpoint = Checkpoint(id=new_id("ckpt"), job_id=row.id, attempt=row.attempt, step=step, bytes=size)
    checkpoint.validation_loss = validation_loss
    checkpoint.key = storage_key(row, step)
    session.add(checkpoint)
    add_event(session, row, "checkpoint", f"Checkpoint of step {step}.", step=step, checkpoint=checkpoint.id)
    session.flush()
    return _forget_surplus(session, row)


def _forget_surplus(session: Session, row: Job) -> list[str]:
    """Removes the rows of checkpoints beyond the newest and the best, which the held job keeps, unless they are models; returns
    their keys."""
    used = models_of(session, row.id)
    kept = JobSpec.model_validate(row.spec).hyperparameters.keep_checkpoints
    found = newest_first(session, row.id)
    losses = [each.validation_loss for each in found if each.validation_loss is not None]
    best = next((each for each in reversed(found) if losses and each.validation_loss == min(losses)), None)
    surplus = [each for each in found[kept:] if each.key not in used and each is not best]
    for each in surplus:
        session.delete(each)
    return [each.key for each in surplus]


def drop(keys: list[str]) -> None:
    """Removes what storage holds under these keys; what is missed is found by the reconciler."""
    for key in keys:
        storage.delete_folder(key)


def newest_first(session: Session, job_id: str) -> list[Checkpoint]:
    """The checkpoints of a job, the one to go on from first."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id)
    return list(session.scalars(query.order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())))


def models_of(session: Session, job_id: str) -> dict[str, list[Model]]:
    """The models that are made of a job's checkpoints, by these' keys, oldest first."""
    made = select(Model).where(Model.job_id == job_id, Model.source.startswith(f"{SCHEME}://")).order_by(Model.id)
    found = defaultdict[str, list[Model]](list)
    for model in session.scalars(made):
        found[_key(model)].append(model)
    return found


def _key(model: Model) -> str:
    return str(Path(str(model.location)).parent)


def forget_newest(session: Session, row: Job) -> None:
    """Removes the row of a checkpoint that could not be read: the next attempt goes on from the one before it."""
    for checkpoint in newest_first(session, row.id)[:1]:
        session.delete(checkpoint)


def fetch_newest(job: Job) -> str | None:
    """The local folder of the newest checkpoint that storage has; None where there is none."""
    with reading() as session:
        found = newest_first(session, job.id)
    for checkpoint in found:
        try:
            return str(storage.fetch_folder(checkpoint.key))
        except FileNotFoundError:
            continue
    return None


def _find(session: Session, model: Model) -> Checkpoint:
    """The checkpoint that the new model's source names. Raises `NotFound`."""
    id = model.source.removeprefix(f"{SCHEME}://")
    query = select(Checkpoint).join(Job).where(Checkpoint.id == id, Job.project_id == model.project_id)
    checkpoint = session.scalars(query).first()
    if checkpoint is None:
        raise _not_found(id)
    return checkpoint


def _fetch(model: Model) -> None:
    """Brings what `_adopt` reads of storage to this machine. Raises `NotFound`."""
    with reading() as session:
        key = _find(session, model).key
    with suppress(FileNotFoundError):  # `_adopt` says what is missing
        _read(key)


def _read(key: str) -> tuple[dict[str, Any], JobSpec, Literal["adapter", "merged"], str | None]:
    """Manifest, spec, weights and chat template of a stored checkpoint. Raises `FileNotFoundError`."""
    manifest = read_manifest(key)
    spec = JobSpec.model_validate(manifest["spec"])
    weights: Literal["adapter", "merged"] = "adapter" if isinstance(spec.method, Lora | Qlora) else "merged"
    # Of whole weights no more than is read here: they may be large.
    storage.fetch_folder(f"{key}/{weights}/{_CONFIGS[weights]}")
    return manifest, spec, weights, _template(f"{key}/{weights}/chat_template.jinja")


def _adopt(session: Session, model: Model) -> None:
    """Makes `model` the fine-tune that a checkpoint of its project is. Nothing is copied: it is ready, unless it must be merged
    first (`worker.merging`). Raises `NotFound`, `InvalidValue`, and `Conflict` where the project's storage is full."""
    checkpoint = _find(session, model)
    id = checkpoint.id
    for param in ("chat_template", "template_arguments"):
        if getattr(model, param):
            raise InvalidValue(
                "A checkpoint is served with the chat template that it was trained with, and its arguments.",
                param=param,
                hint=f"Leave {param} out.",
            )
    try:  # before anything is held
        manifest, spec, weights, template = _read(checkpoint.key)
    except FileNotFoundError:
        raise InvalidValue(
            f"The checkpoint {id} has no files that can be served.",
            param="source",
            hint="Choose another one: GET /jobs/{id}/checkpoints.",
        ) from None
    stored.require_room(session, model.project_id, checkpoint.bytes)
    # Whoever drops checkpoints holds their job.
    session.execute(select(Job.id).where(Job.id == checkpoint.job_id).with_for_update())
    if session.get(Checkpoint, id, populate_existing=True) is None:
        raise _not_found(id)
    base = session.get(Model, manifest["provenance"]["base_model_id"], with_for_update={"of": Model})
    if base is None:
        raise InvalidValue(
            f"The base model '{manifest['provenance']['base_model']}' of the checkpoint {id} was deleted.",
            param="source",
            code="model_not_found",
            hint="What is made of a checkpoint is served with the base model that it was trained on.",
        )
    way = _way(spec, base)
    model.kind, model.status = kind_of(spec, way), "ready" if weights == way else "merging"
    model.base_model, model.chat_template, model.job_id = base, template, checkpoint.job_id
    model.location = f"{checkpoint.key}/{weights}"
    model.facts = facts_of(base, spec, manifest, checkpoint.bytes)


def _template(key: str) -> str | None:
    """The chat template that is stored under this key; what was pretrained may have none."""
    try:
        return storage.fetch_folder(key).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _way(spec: JobSpec, base: Model) -> Literal["adapter", "merged"]:
    """How the engines serve what is made of a checkpoint."""
    own = served(spec.stage, spec.method, base.facts.get("model_type"))
    if own.mode != "adapter" or not isinstance(spec.method, Lora | Qlora):
        return "merged"
    return "adapter" if spec.method.saved().rank <= get_settings().max_lora_rank else "merged"


def _not_found(id: str) -> NotFound:
    return NotFound(
        f"The checkpoint '{id}' does not exist.",
        param="source",
        code="checkpoint_not_found",
        hint="GET /jobs/{id}/checkpoints lists those that do.",
    )


def _release(model: Model) -> None:
    """The model's row is gone: gives its checkpoint back, or removes what was merged of it."""
    key = _key(model)
    if key.startswith("checkpoints/"):
        give_back(str(model.job_id), key)
    else:
        storage.delete_folder(key)


def give_back(job_id: str, key: str) -> None:
    """Gives the checkpoint that a model has no longer back to its job, which may keep it no longer, or whose end it outlived."""
    with writing() as session:
        job = session.get(Job, job_id, with_for_update={"of": Job})
        surplus = _forget_surplus(session, job) if job is not None else []
        if job is None and not models_of(session, job_id).get(key):
            surplus = [key]
    drop(surplus)


SOURCES[SCHEME] = Source(_fetch, _adopt, _release)
