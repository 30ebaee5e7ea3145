"""Whether this worker can do its work: what must be so, each with a sentence where it is not. An unfit worker claims nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable

from app.kit import storage
from app.kit.home import make_home
from app.settings import get_settings
from worker.slots import Slots


def _disk(slots: Slots) -> str | None:
    home, least = make_home(), get_settings().min_free_bytes
    free = shutil.disk_usage(home).free
    if free < least:
        return f"the disk of BURNISH_HOME has {free / 2**30:.2f} GiB free, less than {least / 2**30:.2f} (BURNISH_MIN_FREE_BYTES)"
    try:
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"BURNISH_HOME cannot be written to: {error.strerror}"
    return None


def _gpus(slots: Slots) -> str | None:
    cards = slots.cards()
    if cards and all(card["error"] for card in cards):
        return "; ".join(f"GPU {card['index']}: {card['error']}" for card in cards)
    return None


def _storage(slots: Slots) -> str | None:
    try:
        storage.reach()
    except Exception as error:  # whatever the store's library raises
        return f"storage cannot be reached: {error}"
    return None


CHECKS: tuple[Callable[[Slots], str | None], ...] = (_disk, _gpus, _storage)


def unfit(slots: Slots) -> str | None:
    """Why this worker must claim nothing now; None where it may."""
    return next((found for look in CHECKS if (found := look(slots))), None)
