"""What is learned from a row: a file per stage, two functions each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.trainer.data.render import Example
from worker.trainer.stages import sft

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """`batches(examples, pad_id, max_tokens)`: the rows of a step → micro-batches of at most `max_tokens` padded tokens.

    `loss(model, batch)`: a micro-batch → the sum of its loss (fp32 scalar); the loop divides by the step's
    `loss_tokens`, which each micro-batch carries beside its `tokens` (padding not counted).
    """

    batches: Callable[[Sequence[Example], int, int], list[Batch]]
    loss: Callable[[torch.nn.Module, Batch], torch.Tensor]


STAGES = {"sft": Stage(sft.batches, sft.loss)}
