"""The queue's one verb: wake whoever waits for work. A message names no job; lost, doubled or late, it does no harm."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Literal

from celery import Celery
from kombu.exceptions import ChannelError
from kombu.transport.sqlalchemy import Transport

from app.settings import get_settings

log = logging.getLogger(__name__)

# How often a worker asks the embedded queue. By default once a second, which a job would wait for; and as an option of the
# transport kombu would hand it to SQLAlchemy, which refuses it.
Transport.polling_interval = 0.2

# What can be woken: the Celery task (defined in the worker) and the queue that it is read from.
Wakeable = Literal["train", "download", "deliver"]
TASKS: dict[Wakeable, tuple[str, str]] = {
    "train": ("worker.tasks.train", "training"),
    "download": ("worker.tasks.download", "housekeeping"),
    "deliver": ("worker.tasks.deliver", "housekeeping"),
}


def celery_settings() -> dict[str, object]:
    """What the service and its workers agree on. Early acknowledgement: the database, not the queue, remembers."""
    url = get_settings().celery_broker_url
    return {
        "broker_url": url,
        "broker_connection_retry_on_startup": True,
        # A queue that is away must not hold up a request that is safe in the database already.
        "broker_transport_options": {"socket_timeout": 5, "socket_connect_timeout": 5}
        if url.startswith("redis")
        else {},
        "task_acks_late": False,
        "task_ignore_result": True,
        "task_routes": {task: {"queue": queue} for task, queue in TASKS.values()},
        "task_default_queue": "housekeeping",
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
    }


@lru_cache
def _client() -> Celery:
    client = Celery("burnish")
    client.conf.update(celery_settings())
    return client


def wake(what: Wakeable) -> None:
    """Sends a wake-up, after the commit that made work. Where the queue is down the reconcilers' next round finds the work."""
    task, queue = TASKS[what]
    try:
        _client().send_task(task, queue=queue, retry=False, expires=600)
    except Exception as error:
        log.warning("could not wake %s (%s); it is found at the next round", what, error)


def pending(what: Wakeable) -> int:
    """How many wake-ups wait in the queue, so that a round that finds work does not add to a heap."""
    with _client().connection_for_write() as connection:
        try:
            return int(connection.default_channel.queue_declare(queue=TASKS[what][1], passive=True).message_count)
        except ChannelError:  # on Redis a queue that is empty does not exist
            return 0
