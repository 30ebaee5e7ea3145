"""Packing: several texts one after the other in a row, in place of padding. None of them sees another.

A micro-batch is one row. Its positions begin anew with each text, from which transformers makes a mask in blocks, for a model
that takes one; `attention.varlen` is told where they begin, and a text costs what it costs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from app.jobs.combinations import why_unpacked
from app.jobs.hyperparameters import Texts
from app.jobs.spec import TrainerSpec
from worker.trainer.attention import VARLEN, attention_of
from worker.trainer.data.render import Example
from worker.trainer.data.rows import Item
from worker.trainer.failures import Failure
from worker.trainer.stages import texts
from worker.trainer.stages.texts import Batch


def is_wanted(spec: TrainerSpec, model: Any) -> bool:
    """Whether the run's rows are packed: where it asks for it, or, on `auto`, where that is quicker. With a mask it is not: blocks
    that are masked out are computed too, and rows of like length need little padding.

    Raises `Failure` where it asks for what was not shown to work.
    """
    settings = spec.spec.hyperparameters
    if not isinstance(settings, Texts) or settings.packing is False:
        return False
    reason = why_unpacked(settings, spec.spec.method, model.config.model_type, spec.own_code)
    if settings.packing is True and reason:
        message = f"hyperparameters.packing: the rows of this job cannot be packed. {reason}"
        raise Failure("trainer_error", message, "Leave hyperparameters.packing out.")
    return not reason and (settings.packing is True or attention_of(model) == VARLEN)


def batches(items: Sequence[Item], pad_id: int, max_tokens: int) -> list[Batch]:
    """The rows of a step as packed micro-batches; what the loss is a mean over are loss tokens."""
    made = [collate([example for item in part for example in item.examples]) for part in cut(items, max_tokens)]
    return [batch | {"count": int(texts.loss_tokens(batch).sum())} for batch in made]


def cut(items: Sequence[Item], max_tokens: int) -> list[list[Item]]:
    """Parts of at most `max_tokens` tokens (or one item): the longest item first, each into the first part with room for it."""
    parts: list[list[Item]] = []
    room: list[int] = []
    for item in sorted(items, key=lambda item: -item.length):
        at = next((at for at, left in enumerate(room) if item.length <= left), len(parts))
        if at == len(parts):
            parts.append([])
            room.append(max_tokens)
        parts[at].append(item)
        room[at] -= item.length
    return parts


def collate(examples: Sequence[Example]) -> Batch:
    """As `texts.collate`, of one row [1, T] without padding and mask; and `boundaries`, what `attention.varlen` takes, by the names
    that transformers' models hand on."""
    masks = [
        np.append(False, example.loss_mask[1:]) for example in examples
    ]  # what is before a text does not predict it
    row = Example(np.concatenate([example.token_ids for example in examples]), np.concatenate(masks))
    batch = texts.collate([row], 0, width=len(row.token_ids))
    del batch["attention_mask"]
    lengths = [len(example.token_ids) for example in examples]
    begins = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
    return batch | {
        "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        "boundaries": {
            "cu_seq_lens_q": begins,
            "cu_seq_lens_k": begins,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        },
    }
