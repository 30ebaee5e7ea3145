"""Supervised fine-tuning and pretraining: cross-entropy of the tokens that are learned (answers, or all of a text)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from worker.trainer.data.rows import Item
from worker.trainer.stages import texts
from worker.trainer.stages.texts import Batch


def batches(items: Sequence[Item], pad_id: int, max_tokens: int) -> list[Batch]:
    """The rows of a step as micro-batches of texts; what the loss is a mean over are loss tokens."""
    made = [
        texts.collate([example for item in part for example in item.examples], pad_id)
        for part in texts.cut(items, max_tokens)
    ]
    return [batch | {"count": int(texts.loss_tokens(batch).sum())} for batch in made]


def loss(model: torch.nn.Module, batch: Batch, settings: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sum over the loss tokens of -log p(token), in fp32."""
    return texts.losses(model, batch).sum(), {}
