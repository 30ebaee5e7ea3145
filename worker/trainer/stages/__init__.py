"""What is learned from a row: a file per stage, two functions each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.trainer.data.rows import Item
from worker.trainer.stages import dpo, kto, rl, rm, sft
from worker.trainer.stages.texts import Batch

# A micro-batch's loss, and what else was measured of it, both summed.
Lost = tuple[torch.Tensor, dict[str, torch.Tensor]]


def _as_they_are(items: list[Item]) -> list[Item]:
    return items


def _as_it_is(model: torch.nn.Module, made: list[Batch]) -> list[Batch]:
    return made


@dataclass(frozen=True, slots=True)
class Stage:
    """`batches(items, pad_id, max_tokens)`: the items of a step → micro-batches of at most `max_tokens` padded tokens.

    `loss(model, batch, settings)`: a micro-batch → the sum of its loss (fp32 scalar) and of what else is measured; the
    loop divides by the step's `count`, which each micro-batch carries beside its `tokens` (padding not counted).
    `prepare(items)`: what is done to all items first; `needs_reference(settings)`: whether they are to have `reference`s;
    `begin_step(model, batches)`: what becomes of all micro-batches of a step before their losses.
    """

    batches: Callable[[Sequence[Item], int, int], list[Batch]]
    loss: Callable[[torch.nn.Module, Batch, Any], Lost]
    prepare: Callable[[list[Item]], list[Item]] = _as_they_are
    needs_reference: Callable[[Any], bool] = lambda settings: False
    begin_step: Callable[[torch.nn.Module, list[Batch]], list[Batch]] = _as_it_is


STAGES = {
    "sft": Stage(sft.batches, sft.loss),
    "pt": Stage(sft.batches, sft.loss),
    "dpo": Stage(dpo.batches, dpo.loss, needs_reference=dpo.needs_reference),
    "kto": Stage(
        kto.batches, kto.loss, prepare=kto.pair_up, needs_reference=lambda settings: True, begin_step=kto.begin_step
    ),
    "rm": Stage(dpo.batches, rm.loss),
    "rl": Stage(rl.batches, rl.loss),  # and `begin_step` of the run's `rl.Rollouts`
}
