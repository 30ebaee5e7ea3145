"""What of the model is trained, and what is kept of it: a file per method behind one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from worker.trainer.methods import lora


class Method(Protocol):
    """A module with these functions is a method; `config` is its part of the job's spec."""

    def prepare(self, model: Any, config: Any) -> Any:
        """Makes the base model trainable. The initial weights come from torch's global generator."""

    def save(self, model: Any, folder: Path, base_name: str) -> None:
        """Writes what was trained, loadable by plain PEFT; `base_name` is what it says it belongs to."""

    def load(self, model: Any, folder: Path) -> None:
        """Puts what `save` wrote into a prepared model. Raises `OSError`, and `ValueError` where it does not fit."""

    def merge(self, base: Any, folder: Path) -> Any:
        """A base model with what `save` wrote folded into its weights, a plain model in the base's dtype."""


METHODS: dict[str, Method] = {"lora": lora}
