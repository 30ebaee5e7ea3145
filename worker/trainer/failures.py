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


def unreadable_model(folder: str, what: str, error: Exception) -> Failure:
    """The failure to read `what` of the base model in `folder`."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return Failure(
        "model_unreadable",
        f"The base model's {what} cannot be read from {folder}: {reason}",
        "Register the model from a folder that transformers can load, with safetensors weights and tokenizer.json.",
    )
