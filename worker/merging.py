"""Models that are made of a checkpoint whose adapter no engine loads: it is merged into its base model, by a child, as the
job's outcome would be. What comes of it is a copy, and needs the checkpoint no longer."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from sqlalchemy.orm import Session

from app.jobs import checkpoints
from app.jobs.spec import Merge
from app.kit import storage
from app.models.bases import weights_folder
from app.models.own_code import runs_own_code
from app.models.tables import Model
from app.projects import stored
from worker import trainers
from worker.fitness import unfit
from worker.preparing import Beat, Event, failure, meanwhile, prepare_next, run_child
from worker.slots import Slots


def merge_next(slots: Slots, shutting_down: threading.Event) -> bool:
    """Runs one attempt at the oldest model that is to be merged. False where there is none, or this worker may claim none."""
    if unfit(slots):
        return False
    model = prepare_next("merging", shutting_down, _merge, _finish)
    if model is not None:
        checkpoints.give_back(str(model.job_id), _checkpoint(model))
    return model is not None


def _checkpoint(model: Model) -> str:
    """The key of the checkpoint that a model is made of, as long as it is merging."""
    return str(Path(str(model.location)).parent)


def _merge(model: Model, beat: Beat) -> Event:
    assert model.base_model is not None
    base, checkpoint = model.base_model, _checkpoint(model)
    try:
        folder, source = meanwhile(beat, lambda: (weights_folder(base), storage.fetch_folder(checkpoint)))
    except FileNotFoundError as error:
        return failure("model_unreadable", f"{error.filename or error} is not there any more.")
    merge = Merge(
        base_model=str(folder),
        adapter=str(source / "adapter"),
        folded=str(source / "folded") if (source / "folded").is_dir() else None,
        makes="reward model" if model.kind == "reward" else "language model",
        chat_template=model.chat_template,
        own_code=runs_own_code(model),
        stop_token_ids=model.facts["stop_token_ids"],
    )
    with storage.incoming() as made:
        out = made / "out"
        out.mkdir()
        # On the CPU: what GPUs there are belong to jobs.
        environment = trainers.environment() | {"CUDA_VISIBLE_DEVICES": ""}
        (made / "merge.json").write_text(merge.model_dump_json(), encoding="utf-8")
        command = ["worker.trainer.merging", str(made / "merge.json"), str(out / "merged")]
        ended = run_child(model, beat, "merge", "It may be for want of memory or disk.", command, environment)
        if ended["type"] == "failed":
            return ended
        shutil.copy(source / "manifest.json", out)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        key = f"artifacts/{model.id}/{model.attempt}"
        meanwhile(beat, lambda: storage.put_folder(out, key))
    return ended | {"location": f"{key}/merged", "bytes": size}


def _finish(session: Session, row: Model, ended: Event) -> None:
    more = ended["bytes"] - row.stored_bytes
    row.location, row.status, row.facts = ended["location"], "ready", row.facts | {"stored_bytes": ended["bytes"]}
    stored.add(session, row.project_id, more)
