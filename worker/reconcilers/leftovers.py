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
STORED = select(Model.location).where(Model.kind != "base")
# An upload that is still going on writes more often than this.
ABANDONED_AFTER_SECONDS = 24 * 3600.0


def remove_leftovers() -> None:
    """Removes workspaces of attempts that do not run, artifacts of ended ones that no model has, checkpoints that neither
    a job nor a model has, and uploads that nobody has written to for a day."""
    spaces = {folder.name: folder for folder in workspaces().iterdir()} if workspaces().is_dir() else {}
    # Listed before the rows are read: what was stored since has a row that is not there yet.
    artifacts, checkpoints = storage.folders("artifacts"), storage.folders("checkpoints")
    with reading() as session:
        resumable = set(session.scalars(select(Checkpoint.key)))
        running = {(job, attempt) for job, attempt in session.execute(RUNNING)}
        kept = {str(Path(location).parent) for location in session.scalars(STORED) if location}
    for name in spaces.keys() - {f"{job}-{attempt}" for job, attempt in running}:
        shutil.rmtree(spaces[name], ignore_errors=True)
    for key in set(artifacts) - kept - {f"artifacts/{job}/{attempt}" for job, attempt in running}:
        storage.delete_folder(key)
    beginnings = tuple(f"checkpoints/{job}/{attempt}-" for job, attempt in running)
    for key in set(checkpoints) - resumable - kept:
        if not key.startswith(beginnings):
            storage.delete_folder(key)
    for folder in storage.abandoned(time.time() - ABANDONED_AFTER_SECONDS):
        shutil.rmtree(folder, ignore_errors=True)
