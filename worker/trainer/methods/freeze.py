"""The last layers are trained, in fp32; what is before and after them stays as it is."""

from __future__ import annotations

from typing import Any

from app.jobs.methods import Freeze
from worker.trainer.base import blocks_of
from worker.trainer.methods.full import KIND, load, load_base, of_stage, optimizer, save

__all__ = ["KIND", "load", "load_base", "of_stage", "optimizer", "prepare", "save"]


def prepare(model: Any, config: Freeze) -> Any:
    """Trains the last `layers` blocks, and a reward model's score. Raises `ValueError` where there are not so many."""
    model.requires_grad_(False)
    blocks = blocks_of(model)
    if config.layers > len(blocks):
        raise ValueError(f"method.layers: {config.layers} layers are asked for; the model has {len(blocks)}")
    for block in blocks[-config.layers :]:
        block.requires_grad_(True)
    if hasattr(model, "score"):
        model.score.requires_grad_(True)
    return model
