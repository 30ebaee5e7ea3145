"""Celery's tasks: thin. A wake-up names no job; the database says what there is to do."""

from __future__ import annotations

from worker.celery_app import celery
from worker.downloads import download_next
from worker.merging import merge_next
from worker.presence import presence, shutting_down
from worker.reconcilers.rounds import run_round
from worker.slots import own_slots
from worker.supervisor import train_next
from worker.webhooks import deliver_due


@celery.task(name="worker.tasks.train")
def train() -> None:
    """A training slot: merges what is to be merged and trains, as long as there is a model or a job that it can claim."""
    slots = own_slots()
    while not shutting_down.is_set() and (merge_next(slots, shutting_down) or train_next(slots, shutting_down)):
        pass


@celery.task(name="worker.tasks.download")
def download() -> None:
    """Fetches models from hubs as long as one waits."""
    while not shutting_down.is_set() and download_next(shutting_down):
        pass


@celery.task(name="worker.tasks.deliver")
def deliver() -> None:
    """Sends webhooks what is due, in threads of their own: this one is needed for other things."""
    deliver_due(shutting_down)


@celery.task(name="worker.tasks.reconcile")
def reconcile() -> None:
    """One round of every reconciler."""
    run_round()
    presence("housekeeping").report()
