"""What the model said before it was trained, which some losses compare with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from worker.trainer.base import autocast
from worker.trainer.data.rows import Item
from worker.trainer.stages import texts


@torch.no_grad()
def with_reference(model: Any, items: list[Item], pad_id: int, max_tokens: int) -> list[Item]:
    """The items, each with the log-probabilities of its texts' loss tokens under the model as it is, without dropout.

    Of an attempt that goes on from a checkpoint the model must still be what the first attempt began with.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    single = [(at, example) for at, item in enumerate(items) for example in item.examples]
    order = sorted(range(len(single)), key=lambda i: len(single[i][1].token_ids))
    found = [0.0] * len(single)
    while order:
        rows = [order.pop()]
        width = len(single[rows[0]][1].token_ids)
        while order and (len(rows) + 1) * width <= max_tokens:
            rows.append(order.pop())
        batch = texts.to(texts.collate([single[row][1] for row in rows], pad_id), device)
        with autocast(device):
            values = texts.log_probabilities(model, batch).tolist()
        for row, value in zip(rows, values, strict=True):
            found[row] = value
    model.train(was_training)
    values_of: list[list[float]] = [[] for _ in items]
    for (at, _), value in zip(single, found, strict=True):
        values_of[at].append(value)
    return [replace(item, reference=tuple(values)) for item, values in zip(items, values_of, strict=True)]
