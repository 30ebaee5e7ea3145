"""Telling a full disk from other failures, also when a helper process meets it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# The exit code of a process that ended because the disk is full.
EXIT_CODE = errno.ENOSPC


def is_full(error: BaseException) -> bool:
    """Whether the error says that the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def exit_when_full() -> Iterator[None]:
    """Ends this process with `EXIT_CODE` if the block meets a full disk."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            sys.exit(EXIT_CODE)
        raise
