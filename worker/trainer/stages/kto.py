"""Labels: good answers are to become likelier, bad ones less likely (Ethayarajh et al., 2024, arXiv:2402.01306)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from app.jobs.hyperparameters import Kto
from worker.trainer import ranks
from worker.trainer.data.render import Example
from worker.trainer.data.rows import Item
from worker.trainer.stages import texts
from worker.trainer.stages.texts import Batch


def pair_up(items: list[Item]) -> list[Item]:
    """Adds to each row's text its prompt with the answer of the row before: by such pairs the loss estimates how far the model
    has come from what it was. As TRL pairs them, but over all rows."""
    before = items[-1:] + items[:-1]
    return [
        replace(item, examples=(item.examples[0], _answered(item.examples[0], other.examples[0])))
        for item, other in zip(items, before, strict=True)
    ]


def _answered(asked: Example, answered: Example) -> Example:
    """The prompt of one example with the answer of another, cut to the longer of both."""
    prompt, begin = _answer_begin(asked), _answer_begin(answered)
    most = max(len(asked.token_ids), len(answered.token_ids))
    token_ids = np.concatenate([asked.token_ids[:prompt], answered.token_ids[begin:]])[:most]
    loss_mask = np.concatenate([asked.loss_mask[:prompt], answered.loss_mask[begin:]])[:most]
    if not loss_mask.any():  # the prompt alone is as long
        return asked
    return Example(token_ids, loss_mask)


def _answer_begin(example: Example) -> int:
    return int(example.loss_mask.argmax())


def batches(items: Sequence[Item], pad_id: int, max_tokens: int) -> list[Batch]:
    """The rows of a step as micro-batches, each of the texts proper (`own`) and of the pairs (`mismatched`); what the loss is a
    mean over are rows."""
    made = []
    for part in texts.cut(items, max_tokens):
        own, mismatched = (texts.collate([item.examples[side] for item in part], pad_id) for side in (0, 1))
        made.append({
            "own": own,
            "mismatched": mismatched,
            "good": torch.tensor([item.good for item in part]),
            "reference": torch.tensor([item.reference for item in part]),
            "tokens": own["tokens"],
            "count": len(part),
        })  # fmt: skip
    return made


@torch.no_grad()
def begin_step(model: torch.nn.Module, made: list[Batch]) -> list[Batch]:
    """Writes into each micro-batch of a step how far the model has come, in nats: the mean over all of the step."""
    come = sum(
        ((texts.log_probabilities(model, batch["mismatched"]) - batch["reference"][:, 1]).sum() for batch in made), 0
    )
    mean = torch.as_tensor(ranks.total(come) / ranks.total(sum(batch["count"] for batch in made))).clamp(min=0)
    for batch in made:
        batch["kl"] = mean
    return made


def loss(model: torch.nn.Module, batch: Batch, settings: Kto) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sum over the rows, in fp32; measured are how many rewards have the sign of their label, and the distance of
    `begin_step`."""
    ratio = texts.log_probabilities(model, batch["own"]) - batch["reference"][:, 0]
    good = batch["good"]
    sign = torch.where(good, 1.0, -1.0)
    weight = torch.where(good, settings.desirable_weight, settings.undesirable_weight)
    lost = weight * (1 - torch.sigmoid(settings.beta * sign * (ratio - batch["kl"])))
    return lost.sum(), {"reward_accuracy": (sign * ratio > 0).sum(), "kl": batch["kl"] * batch["count"]}
