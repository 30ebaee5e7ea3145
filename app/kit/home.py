"""The home: the directory of everything that isn't kept elsewhere, secrets among it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from app.settings import get_settings

PRIVATE = 0o700


def make_home() -> Path:
    """The home's absolute path. Makes the directory if it isn't there, and lets nobody but its owner into it.

    An existing directory with a wider mode is narrowed, unless `is_shared` says that it isn't this user's alone.
    """
    home = get_settings().home.resolve()
    home.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    if is_open(home) and not is_shared(home):
        with suppress(OSError):  # a file system that keeps no modes, or is read-only; `burnish doctor` warns
            home.chmod(PRIVATE)
    return home


def is_open(folder: Path) -> bool:
    """Whether other users may do something in the directory."""
    return bool(stat.S_IMODE(folder.stat().st_mode) & ~PRIVATE & 0o777)


def is_shared(folder: Path) -> bool:
    """Whether the directory is another user's, or meant for all (such as /tmp): its mode isn't ours to change."""
    status = folder.stat()
    return status.st_uid != os.geteuid() or bool(status.st_mode & stat.S_ISVTX)
