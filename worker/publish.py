"""From a trainer's output to a model that answers: store the artifact, insert its row, load it, prove that it is applied."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from app.jobs import attempts
from app.jobs.lifecycle import add_event, move
from app.jobs.outcomes import facts_of, kind_of
from app.jobs.spec import JobSpec
from app.jobs.tables import Job
from app.kit import storage
from app.kit.database import reading, writing
from app.kit.ids import new_id
from app.models import serving
from app.models.bases import foundation
from app.models.service import find
from app.models.tables import Model
from app.projects import stored
from app.settings import get_settings
from worker.engine.client import reward, score
from worker.engine.protocol import EngineError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
# Memory comes free again, so an engine that finds none is asked for once more, as long as there is time.
OUT_OF_ROOM = "engine_memory"
# How far a score may be from the trainer's: engine and trainer may compute in different precisions.
SAME_SCORE = 0.1
# A fine-tune that moved a probed log-probability by less than this cannot be told from its base.
INDISTINCT = 0.05


class DeployFailed(Exception):
    """The artifact is there, but no engine answers with it. `hint` says what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint or "The engine's log is in BURNISH_HOME/logs."


def publish(job: Job, output: Path) -> Model:
    """Stores the trainer's output and then inserts the model's row, which is the commit. Raises `LeaseLost`."""
    key = f"artifacts/{job.id}/{job.attempt}"
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    shutil.rmtree(output / "checkpoints", ignore_errors=True)  # one that could not be kept is no part of the outcome
    folder: Literal["adapter", "merged"] = "merged" if (output / "merged").is_dir() else "adapter"  # before it is moved
    spec = JobSpec.model_validate(job.spec)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    with attempts.renewing(job):
        storage.put_folder(output, key)
    with writing() as session:
        row = attempts.hold(session, job)
        base = session.get_one(Model, job.base_model_id)
        named = find(session, job.project_id, job.name)
        # Another project's base model does not take a job's name away. Hours of training are not lost to any other.
        if named is not None and (named.kind != "base" or named.project_id == job.project_id):
            row.name = job.name = f"{job.name[:55]}-{job.id[-8:]}"
            add_event(session, row, "warning", f"The name was taken meanwhile; the model is '{job.name}'.")
        model = Model(
            id=new_id("model"),
            project_id=job.project_id,
            name=job.name,
            kind=kind_of(spec, folder),
            status="deploying",
            source=f"job:{job.id}",
            location=f"{key}/{folder}",
            base_model_id=foundation(base).id,
            job_id=job.id,
            chat_template=spec.chat_template or base.chat_template,
            facts=facts_of(base, spec, manifest, size),
        )
        session.add(model)
        row.model_id = model.id
        stored.add(session, model.project_id, model.stored_bytes)
    return model


def deploy(job: Job, model: Model, beat: Callable[[], None]) -> None:
    """Ends the job as succeeded, once the model answers with its own weights. Raises `DeployFailed`, and what `beat` raises."""
    proof = "Stored, and not deployed."
    if job.spec["deploy"]["mode"] != "none":
        with writing() as session:
            row = attempts.hold(session, job)
            row.progress = (row.progress or {}) | {"phase": "deploying", "eta_seconds": None}
            add_event(session, row, "phase", "Now deploying.", phase="deploying")
        proof = _answering(job, model, beat)
    with writing() as session:
        row = attempts.hold(session, job)
        session.get_one(Model, model.id).status = "ready"
        attempts.end(session, row, "succeeded")
        move(session, row, "succeed", f"The model '{model.name}' is ready. {proof}", model=model.name)


def _answering(job: Job, model: Model, beat: Callable[[], None]) -> str:
    """Waits until an engine answers with the model's own weights. Returns a sentence that says so. Raises `DeployFailed`."""
    deadline = time.monotonic() + get_settings().engine_wait_seconds
    why = f"no engine was up after {get_settings().engine_wait_seconds:.0f} s"
    with writing() as session:
        serving.want(session, model)  # whatever failed before, it is tried now
    while time.monotonic() < deadline:
        beat()
        with reading() as session:
            place, wanted = serving.locate(session, model), serving.is_wanted(session, model)
        if place.error:
            why = f"the engine cannot serve it: {place.error['message']}"
            if place.error["code"] != OUT_OF_ROOM:
                raise DeployFailed(f"The model does not answer: {why}", place.error.get("hint"))
        if not wanted:
            # Said again whenever it is not so: an engine may be stopped to make room before the adapter is in it.
            with writing() as session:
                serving.want(session, model)
        if place.url:
            try:
                with attempts.renewing(job):
                    return _prove(model, place.url)
            except EngineError as error:
                if error.code != "engine_unreachable":
                    raise DeployFailed(f"The engine does not answer for the model: {error}") from error
                why = str(error)  # it died since; the controller brings it back
        time.sleep(POLL_SECONDS)
    raise DeployFailed(f"The model does not answer: {why}.")


def _prove(model: Model, url: str) -> str:
    """Checks that the engine's answer is the fine-tune's: an adapter can be accepted and silently not applied.

    The trainer noted the log-probability of one answer token under the base and under the fine-tune; the engine is asked
    for the same, and must be nearer to the fine-tune's. Returns a sentence for the job's events. Raises `DeployFailed`
    where it is nearer to the base's, and `EngineError`.
    """
    assert model.location is not None
    proof = json.loads((storage.fetch_folder(str(Path(model.location).parent)) / "proof.json").read_text())
    if model.kind == "reward":
        return _prove_score(model, url, proof)
    base, tuned = proof["base_logprob"], proof["tuned_logprob"]
    served = score(url, model.id, proof["token_ids"])
    if abs(tuned - base) < INDISTINCT:
        return "It answers; its answers hardly differ from the base model's."
    if abs(served - base) < abs(served - tuned):
        raise DeployFailed(
            "The engine answers as the base model: "
            f"log-probability {served:.3f}; the fine-tune's is {tuned:.3f}, the base's {base:.3f}."
        )
    return f"It answers with its own weights (log-probability {served:.3f}; trained {tuned:.3f}, base {base:.3f})."


def _prove_score(model: Model, url: str, proof: dict[str, Any]) -> str:
    """Checks that the engine scores a text as the trainer did. Raises `DeployFailed`, and `EngineError`."""
    served, trained = reward(url, model.id, proof["token_ids"]), proof["score"]
    if abs(served - trained) > SAME_SCORE * max(1.0, abs(trained)):
        raise DeployFailed(f"The engine's score is {served:.3f}; the trainer's was {trained:.3f}.")
    return f"It scores as it was trained to ({served:.3f}; trained {trained:.3f})."
