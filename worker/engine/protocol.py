"""What an inference engine is to the controller: a command that serves one model's weights over vLLM's HTTP surface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from app.settings import Settings


@dataclass(frozen=True)
class Launch:
    """What to serve and where: the folder of weights, the name that requests use (the model's id), a port of 127.0.0.1, a
    file with a chat template that replaces the model's own, whether the model's code may run, and the names of vLLM's
    parsers of its tool calls and reasoning. Adapters can be loaded beside any weights."""

    name: str
    path: Path
    port: int
    template: Path | None = None
    own_code: bool = False
    tool_parser: str | None = None
    reasoning_parser: str | None = None


class InferenceEngine(Protocol):
    """The ways in which engines differ. What they have in common, their HTTP surface, is spoken by `client.py`.

    A module satisfies this: see `vllm.py` and `embedded.py`.
    """

    def command(self, launch: Launch, settings: Settings) -> list[str]:
        """The server's command line. Raises `EngineError` for a model that this engine cannot serve."""

    def features(self, launch: Launch, settings: Settings) -> dict[str, Any]:
        """What the server can do beyond plain chat, as `Engine.features` has it."""

    def environment(self, settings: Settings) -> dict[str, str]:
        """The server's whole environment."""

    def memory_needed(self, path: Path, settings: Settings) -> int:
        """Estimated bytes that a server of the weights at `path` takes, of the memory that `memory_available` reads."""

    def memory_available(self, settings: Settings) -> int:
        """Bytes that are free now where this engine keeps weights: the machine's memory, or the GPU's."""


class EngineError(Exception):
    """An engine refused, or could not do, what was asked: `code`, `message` and `hint` go to the row's `error`."""

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint

    def body(self) -> dict[str, str | None]:
        """The error as rows and the wire have it."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


def weight_files(path: Path) -> Iterator[Path]:
    """The safetensors files of a model's folder."""
    return path.glob("*.safetensors")


def weight_bytes(path: Path) -> int:
    """How large a model's weights are."""
    return sum(file.stat().st_size for file in weight_files(path))
