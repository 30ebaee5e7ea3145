"""How what a run makes is written: checkpoints on the way, and the outcome."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.jobs.combinations import served
from app.jobs.spec import TrainerSpec
from worker.trainer import artifacts
from worker.trainer.base import Base, inner_of, own_dtype
from worker.trainer.checkpoints import RunState, reading
from worker.trainer.events import Emit
from worker.trainer.merging import write_merged
from worker.trainer.methods import Method


@dataclass(frozen=True)
class Writer:
    """`about` is the manifest of whatever is written, but for what it came to."""

    spec: TrainerSpec
    method: Method
    base: Base
    tokenizer: Any
    stop_ids: list[int]
    about: dict[str, Any]

    def save_checkpoint(self, model: Any, folder: Path, state: RunState) -> None:
        """Writes what is learned so far, as plain libraries load it, in the precision that it is trained in. Whole weights are
        served, and trained on, in the one that the outcome will have: their configuration names that."""
        self._save(model, folder / self.method.KIND)
        if self.method.KIND == "merged":
            artifacts.declare_dtype(folder / "merged", own_dtype(self.base))
        elif self.base.adapter:  # without which what was learned means nothing, and which may be gone one day
            shutil.copytree(self.base.adapter, folder / "folded")
        came_to = {"steps": state.step, "loss": state.loss, "validation_loss": state.validation_loss}
        self.write_manifest(folder, came_to)

    def load_checkpoint(self, model: Any, folder: Path) -> None:
        """Puts what a checkpoint holds back into the model. Raises `Failure`."""
        with reading(folder):
            self.method.load(model, folder / self.method.KIND)

    def save_outcome(self, model: Any, out: Path, emit: Emit) -> None:
        """Writes adapter/, and merged/ where the outcome is, or one day will be, served as weights of its own; `model` is not
        used any more."""
        if self.method.KIND == "merged":
            artifacts.save_merged(model.to(own_dtype(self.base)), self.tokenizer, out / "merged", self.stop_ids)
            return
        self._save(model, out / "adapter")
        spec = self.spec.spec
        mode = spec.deploy.mode
        if mode not in ("adapter", "merged"):
            mode = served(spec.stage, spec.method, inner_of(model).config.model_type).mode
        if mode == "merged":
            emit("phase", phase="merging")
            del model
            write_merged(self.base, out / "adapter", self.tokenizer, self.stop_ids, out / "merged")

    def write_manifest(self, folder: Path, came_to: dict[str, Any], card: dict[str, Any] | None = None) -> None:
        """Writes manifest.json: what is made, of what, with what, and what it came to; of an outcome its scorecard."""
        artifacts.write_json(folder / "manifest.json", self.about | {"result": came_to, "scorecard": card})

    def _save(self, model: Any, folder: Path) -> None:
        name = str(self.spec.provenance.get("base_model", Path(self.spec.base_model).name))
        self.method.save(model, folder, name)
        artifacts.save_tokenizer(self.tokenizer, folder)
