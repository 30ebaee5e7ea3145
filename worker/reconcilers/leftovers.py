"""Mends disks: what an attempt or an upload left behind when its process was killed."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from sqlalchemy import or_, select

from app.jobs.tables import Checkpoint, Job
from app.kit import storage
from app.kit.database import reading
from app.kit.leases import in_state
from app.models.tables import Model
from worker.supervisor import workspaces

log = logging.getLogger(__name__)

# Whose attempts may store something that has no row yet.
RUNNING = (
    select(Job.id, Job.attempt).where(in_state(Job, "running")),
    select(Model.id, Model.attempt).where(in_state(Model, "merging")),
)
# An upload that is still going on writes more often than this.
ABANDONED_AFTER_SECONDS = 24 * 3600.0
# Of so many stored folders at a time it is asked whose they are.
AT_ONCE = 1000


def remove_leftovers() -> None:
    """Removes workspaces of attempts that do not run, artifacts of ended ones that no model has, checkpoints that neither
    a job nor a model has, and uploads that nobody has written to for a day."""
    spaces = {folder.name: folder for folder in workspaces().iterdir()} if workspaces().is_dir() else {}
    # Listed before it is read who runs, and that before what there are rows of: what is stored has a row before its attempt ends.
    folders = [*storage.folders("artifacts"), *storage.folders("checkpoints")]
    with reading() as session:
        running = {f"{owner}-{attempt}" for query in RUNNING for owner, attempt in session.execute(query)}
    for name in spaces.keys() - running:
        log.info("removing the workspace %s, whose attempt does not run", name)
        shutil.rmtree(spaces[name], ignore_errors=True)
    ended = {key: owner for key in folders for owner, attempt in [_of(key)] if f"{owner}-{attempt}" not in running}
    keys = list(ended)
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        for key in set(some) - _kept({ended[key] for key in some}):
            log.info("removing %s from storage, which nothing refers to", key)
            storage.delete_folder(key)
    for folder in storage.abandoned(time.time() - ABANDONED_AFTER_SECONDS):
        log.info("removing the abandoned upload %s", folder)
        shutil.rmtree(folder, ignore_errors=True)


def _of(key: str) -> tuple[str, str]:
    """The job or the model, and the attempt, that a folder is of: `artifacts/<job>/<attempt>`,
    `checkpoints/<job>/<attempt>-<step>`, `artifacts/<model>/<attempt>` where a checkpoint was merged."""
    _, owner, rest = key.split("/")
    return owner, rest.partition("-")[0]


def _kept(owners: set[str]) -> set[str]:
    """The keys of these jobs' and models' folders that models or checkpoints have."""
    theirs = or_(Model.job_id.in_(owners), Model.id.in_(owners))
    locations = select(Model.location).where(theirs, Model.location.is_not(None))
    with reading() as session:
        checkpoints = set(session.scalars(select(Checkpoint.key).where(Checkpoint.job_id.in_(owners))))
        return checkpoints | {str(Path(str(location)).parent) for location in session.scalars(locations)}
