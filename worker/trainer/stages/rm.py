"""Reward models: the chosen answer is to have the higher score (Bradley and Terry, 1952; Ouyang et al., 2022,
arXiv:2203.02155)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from worker.trainer.data.rows import Item
from worker.trainer.stages import dpo, texts
from worker.trainer.stages.texts import Batch


def batches(items: Sequence[Item], pad_id: int, max_tokens: int) -> list[Batch]:
    """The pairs of a step as micro-batches; what the loss is a mean over are pairs."""
    return dpo.batches(items, pad_id, max_tokens)


def loss(model: torch.nn.Module, batch: Batch, settings: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sum over the pairs, in fp32; measured are how many scores were the right way round, and by how much."""
    scores = model(**texts.inputs(model, batch)).logits[:, 0].float()
    chosen, rejected = scores.chunk(2)
    margin = chosen - rejected
    measured = {"reward_accuracy": (margin > 0).sum(), "reward_margin": margin.sum()}
    return -logsigmoid(margin).sum(), {name: value.detach() for name, value in measured.items()}
