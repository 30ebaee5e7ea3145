"""The home belongs to one `burnish up` at a time."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from app.kit.home import make_home
from app.settings import get_settings


@contextmanager
def hold_home() -> Iterator[None]:
    """Keeps every other `burnish up` off the home while the block runs.

    Ends the program with a sentence if another one has it, or if it cannot be written to. The kernel drops the lock
    when the process ends, also by SIGKILL, so no stale lock is left behind. The file stays: removing it could let two
    processes lock two files of the same name.
    """
    home = get_settings().home.resolve()
    try:
        make_home()
        descriptor = os.open(home / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        sys.exit(f"{home} cannot be written to ({error.strerror}). Set BURNISH_HOME to a folder of yours.")
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            sys.exit(
                f"Burnish already runs on {home} ({holder or 'it is starting'}). "
                "Stop that one first, or set BURNISH_HOME to another folder."
            )
        except OSError as error:
            sys.exit(f"{home} cannot be locked ({error.strerror}). Set BURNISH_HOME to a folder on a local disk.")
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode())
        yield
    finally:
        os.close(descriptor)
