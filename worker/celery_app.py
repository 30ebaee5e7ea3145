"""The Celery app: what the queue needs to know of the worker."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow
from celery import Celery, signals

from app.kit import logs, tracing
from app.kit.queue import celery_settings, wake
from worker import trainers
from worker.presence import presence, shutting_down
from worker.slots import own_slots

RECONCILE_SECONDS = 3.0

celery = Celery("burnish", include=["worker.tasks"])
celery.conf.update(celery_settings())
celery.conf.beat_schedule = {
    "reconcile": {
        "task": "worker.tasks.reconcile",
        "schedule": RECONCILE_SECONDS,
        "options": {"queue": "housekeeping", "expires": RECONCILE_SECONDS},
    }
}


@signals.setup_logging.connect
def _on_logging(**_: Any) -> None:
    """Whoever answers this signal sets logging up in Celery's place."""
    logs.configure()


@signals.worker_shutting_down.connect
def _on_shutdown(**_: Any) -> None:
    # This runs in a signal handler, where setting an event can deadlock on a second signal; in a thread it cannot.
    threading.Thread(target=shutting_down.set).start()


@signals.worker_ready.connect
def _on_ready(sender: Any, **_: Any) -> None:
    """What was lost while nobody looked is found at once, not at the next round."""
    tracing.configure(_queue(sender))
    presence(_queue(sender)).begin()
    celery.send_task("worker.tasks.reconcile", queue="housekeeping")
    wake("train")
    if "training" in celery.amqp.queues.consume_from:
        trainers.keep_warm(own_slots())
        pyarrow.array([])  # which imports the rest of it, for which the first job would wait


@signals.worker_shutdown.connect
def _on_end(sender: Any, **_: Any) -> None:
    presence(_queue(sender)).leave()
    tracing.flush()


def _queue(consumer: Any) -> Any:
    """The queue of a worker whose name is `queue@host`."""
    return consumer.hostname.partition("@")[0]
