"""What a model says when it is asked without being trained, in smaller parts where memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device

from worker.trainer.answering import Tokens, answers, together
from worker.trainer.data.rows import Item
from worker.trainer.micro_batches import MicroBatches
from worker.trainer.precision import autocast
from worker.trainer.sharding import is_sharded
from worker.trainer.stages import texts


def measured_answers(
    model: Any,
    prompts: Sequence[Tokens],
    micro_batches: MicroBatches,
    *,
    ends: Sequence[int],
    new_tokens: int,
    pad_id: int,
) -> list[Tokens]:
    """The likeliest answer to each prompt, fewer of them at a time where memory runs out."""

    def ask(_: list[list[int]]) -> list[Tokens]:
        return answers(
            model, prompts, ends=ends, new_tokens=new_tokens, pad_id=pad_id, micro_batch_tokens=micro_batches.tokens,
            in_step=is_sharded(model),
        )  # fmt: skip

    return micro_batches.fit(model, "in measuring", len(prompts), partial(together, model, prompts, new_tokens), ask)


@torch.no_grad()
def log_probabilities(model: Any, singles: list[Item], pad_id: int, micro_batches: MicroBatches) -> list[float]:
    """Of items of one text each, the longest first, the log-probability of its loss tokens under the model, without dropout."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()

    def measure(parts: list[list[Item]]) -> list[float]:
        found: list[float] = []
        for part in parts:
            batch = send_to_device(texts.collate([single.examples[0] for single in part], pad_id), device)
            with autocast(device):
                found += texts.log_probabilities(model, batch).tolist()
        return found

    found = micro_batches.fit(model, "in measuring", len(singles), partial(texts.cut, singles), measure)
    model.train(was_training)
    return found
