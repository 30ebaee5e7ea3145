"""Mends disks: what an attempt or an upload left behind when its process was killed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from sqlalchemy import select

from app.jobs.tables import Checkpoint, Job
from app.kit import storage
from app.kit.database import reading
from app.kit.leases import in_state
from app.models.tables import Model
from worker.supervisor import workspaces

RUNNING = select(Job.id, Job.attempt).where(in_state(Job, "running"))
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
        running = {f"{job}-{attempt}" for job, attempt in session.execute(RUNNING)}
    for name in spaces.keys() - running:
        shutil.rmtree(spaces[name], ignore_errors=True)
    ended = {key: job for key in folders for job, attempt in [_of(key)] if f"{job}-{attempt}" not in running}
    keys = list(ended)
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        for key in set(some) - _kept({ended[key] for key in some}):
            storage.delete_folder(key)
    for folder in storage.abandoned(time.time() - ABANDONED_AFTER_SECONDS):
        shutil.rmtree(folder, ignore_errors=True)


def _of(key: str) -> tuple[str, str]:
    """The job and the attempt that a folder is of: `artifacts/<job>/<attempt>`, `checkpoints/<job>/<attempt>-<step>`."""
    _, job, rest = key.split("/")
    return job, rest.partition("-")[0]


def _kept(jobs: set[str]) -> set[str]:
    """The keys of these jobs' folders that models or checkpoints have."""
    locations = select(Model.location).where(Model.job_id.in_(jobs), Model.location.is_not(None))
    with reading() as session:
        checkpoints = set(session.scalars(select(Checkpoint.key).where(Checkpoint.job_id.in_(jobs))))
        return checkpoints | {str(Path(str(location)).parent) for location in session.scalars(locations)}
