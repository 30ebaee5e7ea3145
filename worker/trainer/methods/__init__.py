"""What of the model is trained, and what is kept of it: a file per method behind one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch.optim import Optimizer

from worker.trainer.base import Base
from worker.trainer.methods import apollo, freeze, full, galore, lora, mod, qlora
from worker.trainer.stages import Stage


class Method(Protocol):
    """A module with these is a method; `config` is its part of the job's spec.

    `KIND` is the name of the folder of what it makes: `adapter`, or `merged` for whole weights.
    """

    KIND: str

    def load_base(self, base: Base, config: Any) -> Any:
        """The base model as it is trained on. Raises `Failure`."""

    def prepare(self, model: Any, config: Any) -> Any:
        """Makes the base model trainable. The initial weights come from torch's global generator. Raises `ValueError`
        where the config does not fit the model."""

    def of_stage(self, stage: Stage) -> Stage:
        """The stage as this method learns it."""

    def optimizer(self, model: Any, config: Any, options: dict[str, Any]) -> Optimizer | None:
        """What changes the prepared model's weights; `options` are those of torch's AdamW, learning rate and all. None: the
        loop's AdamW. Its state must be numbers and tensors: a checkpoint is read back without running code."""

    def save(self, model: Any, folder: Path, base_name: str) -> None:
        """Writes what was trained, loadable by plain PEFT or transformers; `base_name` is what it says it belongs to.
        Training may go on afterwards."""

    def load(self, model: Any, folder: Path) -> None:
        """Puts what `save` wrote into a prepared model. Raises `OSError`, and `ValueError` where it does not fit."""


METHODS: dict[str, Method] = {
    "lora": lora, "qlora": qlora, "full": full, "freeze": freeze, "galore": galore, "apollo": apollo, "mod": mod,
}  # fmt: skip
