"""Reward models: the chosen answer is to have the higher score (Bradley and Terry, 1952; Ouyang et al., 2022,
arXiv:2203.02155)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import logsigmoid

from worker.trainer.stages import texts
from worker.trainer.stages.texts import Batch


def loss(model: torch.nn.Module, batch: Batch, settings: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sum over the pairs of a batch (see `dpo.batches`), in fp32; measured are how many scores were the right way round, and by
    how much."""
    scores = texts.forward(model, batch)[:, 0].float()
    chosen, rejected = scores.chunk(2)
    margin = chosen - rejected
    return -logsigmoid(margin).sum(), {"reward_accuracy": (margin > 0).sum(), "reward_margin": margin.sum()}
