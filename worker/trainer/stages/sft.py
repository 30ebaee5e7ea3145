"""Supervised fine-tuning: cross-entropy of the answers' tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from worker.trainer.base import accepts
from worker.trainer.data.render import Example

_NO_LOSS = -100  # cross_entropy's ignore_index


def batches(examples: Sequence[Example], pad_id: int, max_tokens: int) -> list[dict[str, Any]]:
    """Cuts the rows of a step, longest first, into micro-batches of at most `max_tokens` padded tokens (or one row)."""
    longest_first = sorted(examples, key=lambda example: -len(example.token_ids))
    parts: list[list[Example]] = []
    for example in longest_first:
        if parts and (len(parts[-1]) + 1) * len(parts[-1][0].token_ids) <= max_tokens:
            parts[-1].append(example)
        else:
            parts.append([example])
    return [_collate(part, pad_id) for part in parts]


def _collate(examples: list[Example], pad_id: int) -> dict[str, Any]:
    """Pads on the left, so that answers of like length lie in the same columns at the right end.

    Returns input_ids, attention_mask, position_ids [B, T] int64; columns [K] int64, those whose logits predict a loss
    token of any row; labels [B, K] int64, the tokens predicted there, -100 where there is no loss; and the numbers of
    tokens (padding not counted) and of loss tokens.
    """
    width = max(len(example.token_ids) for example in examples)
    input_ids = torch.full((len(examples), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, _NO_LOSS)
    for row, example in enumerate(examples):
        start = width - len(example.token_ids)
        token_ids = torch.from_numpy(example.token_ids).long()
        input_ids[row, start:] = token_ids
        attention_mask[row, start:] = 1
        labels[row, start:] = token_ids.where(torch.from_numpy(example.loss_mask), _NO_LOSS)
        labels[row, start] = _NO_LOSS  # nothing before it predicts it
    columns = (labels[:, 1:] != _NO_LOSS).any(dim=0).nonzero().squeeze(1)
    labels = labels[:, columns + 1]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        "columns": columns,
        "labels": labels,
        "tokens": int(attention_mask.sum()),
        "loss_tokens": int((labels != _NO_LOSS).sum()),
    }


def loss(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Sum over the loss tokens of -log p(token), in fp32. Logits are computed in the loss's columns only."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    if accepts(model, "position_ids"):
        inputs["position_ids"] = batch["position_ids"]
    if accepts(model, "logits_to_keep"):
        logits = model(**inputs, logits_to_keep=batch["columns"]).logits  # [B, K, vocabulary]
    else:
        logits = model(**inputs).logits[:, batch["columns"]]
    learned = batch["labels"] != _NO_LOSS
    # Before the cast to fp32, so that it copies the rows that count only.
    return functional.cross_entropy(logits[learned].float(), batch["labels"][learned], reduction="sum")
