"""Has canonical rows made by a process that `converter.py` is, once at a time for each dataset."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

import msgspec

from app.datasets.converter import Request
from app.kit.helpers import HelperDied, Helpers, unavailable

# A file of 10 GiB takes minutes.
ANSWER_SECONDS = 3600.0
WAIT_SECONDS = 600.0

CONVERTERS = Helpers("app.datasets.converter", places=3, of_one=2, environment={})

# Locks live as long as somebody holds them or waits.
_locks = WeakValueDictionary[str, threading.Lock]()
_choosing = threading.Lock()


@contextmanager
def alone(dataset_id: str) -> Iterator[None]:
    """Nobody else in this process is in the block for the same dataset."""
    with _choosing:
        lock = _locks.get(dataset_id)
        if lock is None:
            lock = _locks[dataset_id] = threading.Lock()
    with lock:
        yield


def convert(project_id: str, request: Request) -> str:
    """Writes the rows of a file; returns the SHA-256 of what was written. Blocks.

    Raises `Unavailable` (`converter_unavailable`), and `OSError` if the disk is full.
    """
    helper = CONVERTERS.take(WAIT_SECONDS, owner=project_id)
    if helper is None:
        raise unavailable("converter_unavailable", "All processes that convert this project's datasets are busy.")
    try:
        helper.send(msgspec.json.encode(request))
        return msgspec.json.decode(helper.answer(ANSWER_SECONDS), type=str)
    except HelperDied as died:
        message = "The process that converts datasets died of this one, or took too long."
        raise unavailable("converter_unavailable", message) from died
    finally:
        CONVERTERS.give_back(helper)
