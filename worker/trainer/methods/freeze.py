"""The last layers are trained, in fp32; what is before and after them stays as it is."""

from __future__ import annotations

from typing import Any

from torch.nn import ModuleList

from app.jobs.methods import Freeze
from worker.trainer.methods.full import KIND, load, load_base, save

__all__ = ["KIND", "load", "load_base", "prepare", "save"]


def prepare(model: Any, config: Freeze) -> Any:
    """Trains the last `layers` blocks, and a reward model's score. Raises `ValueError` where there are not so many."""
    model.requires_grad_(False)
    count = model.config.get_text_config().num_hidden_layers
    blocks = next((m for m in model.modules() if isinstance(m, ModuleList) and len(m) == count), None)
    if blocks is None or config.layers > count:
        raise ValueError(f"method.layers: {config.layers} layers are asked for; the model has {count}")
    for block in blocks[-config.layers :]:
        block.requires_grad_(True)
    if hasattr(model, "score"):
        model.score.requires_grad_(True)
    return model
