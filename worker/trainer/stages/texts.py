"""What every stage does with texts: micro-batches of them, and what a model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from worker.trainer.base import accepts
from worker.trainer.data.render import Example
from worker.trainer.data.rows import Item
from worker.trainer.last_block import read_at
from worker.trainer.precision import compute_dtype

Batch = dict[str, Any]

NO_LOSS = -100  # cross_entropy's ignore_index

# In 16 bits a CPU's kernels are compiled for each shape, at a millisecond each, so widths are multiples of this. A GPU's are not,
# and without padding it needs no mask.
_WIDTHS_OF_16_BITS = 8


def cut(items: Sequence[Item], max_tokens: int) -> list[list[Item]]:
    """Cuts the items of a step, longest first, into micro-batches of at most `max_tokens` padded tokens (or one item)."""
    longest_first = sorted(items, key=lambda item: -_width(item))
    parts: list[list[Item]] = []
    for item in longest_first:
        if parts and (len(parts[-1]) + 1) * len(item.examples) * _width(parts[-1][0]) <= max_tokens:
            parts[-1].append(item)
        else:
            parts.append([item])
    return parts


def _width(item: Item) -> int:
    return _padded(max(len(example.token_ids) for example in item.examples))


def _padded(width: int) -> int:
    if torch.cuda.is_available() or compute_dtype() is torch.float32:
        return width
    return width + -width % _WIDTHS_OF_16_BITS


def collate(examples: Sequence[Example], pad_id: int, width: int | None = None) -> Batch:
    """Pads on the left, so that answers of like length lie in the same columns at the right end, to `width` or to what is good for
    speed.

    Returns input_ids, attention_mask, position_ids [B, T] int64; columns [K] int64, those whose logits predict a loss
    token of any row; labels [B, K] int64, the tokens predicted there, -100 where there is no loss; and the number of
    tokens (padding not counted).
    """
    width = width or _padded(max(len(example.token_ids) for example in examples))
    input_ids = torch.full((len(examples), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, NO_LOSS)
    for row, example in enumerate(examples):
        start = width - len(example.token_ids)
        token_ids = torch.from_numpy(example.token_ids).long()
        input_ids[row, start:] = token_ids
        attention_mask[row, start:] = 1
        labels[row, start:] = token_ids.where(torch.from_numpy(example.loss_mask), NO_LOSS)
        labels[row, start] = NO_LOSS  # nothing before it predicts it
    columns = (labels[:, 1:] != NO_LOSS).any(dim=0).nonzero().squeeze(1)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        "columns": columns,
        "labels": labels[:, columns + 1],
        "tokens": int(attention_mask.sum()),
    }


def forward(model: torch.nn.Module, batch: Batch, **more: Any) -> torch.Tensor:
    """The logits of a batch's texts. Of packed ones (see `packed`) there is no mask: positions and boundaries tell them apart."""
    taken = {"input_ids": batch["input_ids"], "attention_mask": batch.get("attention_mask"), "use_cache": False}
    if accepts(model, "position_ids"):
        taken["position_ids"] = batch["position_ids"]
    read_at(model, more.get("logits_to_keep"))
    logits: torch.Tensor = model(**taken, **batch.get("boundaries", {}), **more).logits
    return logits


def losses(model: torch.nn.Module, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
    """-log p of each loss token, [N] fp32, row by row, where tokens are drawn at this temperature. Logits are computed in the
    loss's columns only."""
    if accepts(model, "logits_to_keep"):
        logits = forward(model, batch, logits_to_keep=batch["columns"])  # [B, K, vocabulary]
    else:
        logits = forward(model, batch)[:, batch["columns"]]
    learned = batch["labels"] != NO_LOSS
    # Before the cast to fp32, so that it copies the rows that count only.
    chosen = logits[learned].float()
    if temperature != 1.0:
        chosen = chosen / temperature
    return functional.cross_entropy(chosen, batch["labels"][learned], reduction="none")


def log_probabilities(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The log-probability of each text's loss tokens together, [B] fp32."""
    learned = batch["labels"] != NO_LOSS
    row = learned.nonzero()[:, 0]
    found = losses(model, batch)
    return found.new_zeros(len(learned)).index_add(0, row, -found)


def loss_tokens(batch: Batch) -> torch.Tensor:
    """How many loss tokens each text has, [B] int64."""
    count: torch.Tensor = (batch["labels"] != NO_LOSS).sum(dim=1)
    return count
