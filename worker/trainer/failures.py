"""Why a run ends without a result."""

from __future__ import annotations


class Failure(Exception):
    """The run cannot go on: a code of `docs/api.md`, what is wrong, and what to do about it."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Stopped(BaseException):
    """The run was asked to stop (SIGTERM). Not an `Exception`, so that no library swallows it."""
