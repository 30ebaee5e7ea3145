"""Mixture-of-Depths: all weights are trained, with routers in every second block (see `worker.trainer.depths`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from app.jobs.methods import Mod
from worker.trainer.depths import add_routers, prediction_losses
from worker.trainer.methods import full
from worker.trainer.methods.full import KIND, load, load_base, optimizer, save
from worker.trainer.stages import Lost, Stage, texts
from worker.trainer.stages.texts import Batch

__all__ = ["KIND", "load", "load_base", "of_stage", "optimizer", "prepare", "save"]


def prepare(model: Any, config: Mod) -> Any:
    """Routers, and every weight is trained. Raises `ValueError` where the model has no second block."""
    add_routers(model, config.capacity)
    return full.prepare(model, config)


def of_stage(stage: Stage) -> Stage:
    """The stage, whose routers learn to foretell what they will choose. The loss that is told stays the stage's."""
    return replace(stage, loss=partial(_loss, stage.loss))


def _loss(
    own: Callable[[torch.nn.Module, Batch, Any], Lost], model: torch.nn.Module, batch: Batch, settings: Any
) -> Lost:
    lost, also = own(model, batch, settings)
    if not model.training:
        return lost, also
    # A text counts for as much as in the stage's loss, however the step's texts are split.
    foretold = (prediction_losses(model) * texts.loss_tokens(batch)).sum()
    return lost + (foretold - foretold.detach()), also
