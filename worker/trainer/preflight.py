"""Whether a step fits the memory, found out before the first one."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import psutil
import torch

from app.jobs.estimate import Memory
from worker.trainer.determinism import random_states
from worker.trainer.methods.low_rank import LowRank
from worker.trainer.stages.texts import Batch

Learn = Callable[[list[Batch]], int]


@dataclass(frozen=True, slots=True)
class Flight:
    """What was measured: the most memory that was held, of the GPU's or else by this process in all its life, and how long a
    token took."""

    peak_bytes: int
    seconds_a_token: float


def is_needed(estimate: Memory | None) -> bool:
    """Not on a CPU whose memory is plenty: there it would only cost time."""
    if torch.cuda.is_available() or estimate is None:
        return True
    return estimate.total > psutil.virtual_memory().available / 2


def fly(
    model: Any, optimizer: Any, run_step: Callable[[Learn], int], learn_from: Callable[[list[Batch]], Any]
) -> Flight:
    """Runs the largest of a step's micro-batches; the model is as it was afterwards.

    `run_step` runs a function of a step's micro-batches, smaller ones where memory ran out; `learn_from` is what a step does.
    """
    put_back, began = random_states(), perf_counter()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    tokens = run_step(partial(_try_largest, optimizer, learn_from))
    model.zero_grad()
    put_back()
    return Flight(_peak_bytes(), (perf_counter() - began) / tokens)


def _try_largest(optimizer: Any, learn_from: Callable[[list[Batch]], Any], made: list[Batch]) -> int:
    """Forward and backward, with room taken for the gradients of all weights and for what the optimiser will keep of those
    that it has not seen yet. Nothing is applied. Returns the tokens that it had."""
    largest = max(made, key=_elements, default=None)  # none, where others have all of the rows
    groups = [(group, weight) for group in optimizer.param_groups for weight in group["params"]]
    held = [_state(optimizer.optimizer, group, weight) for group, weight in groups if weight not in optimizer.state]
    for _, weight in groups:
        weight.grad = torch.zeros_like(weight)
    learn_from([largest] if largest else [])
    del held
    return max(1, int(largest["tokens"])) if largest else 1  # an empty one is run where others have more


def _state(optimizer: torch.optim.Optimizer, group: dict[str, Any], weight: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of the sizes that the optimiser will keep of a weight: AdamW's two moments, or what `LowRank` has instead."""
    if isinstance(optimizer, LowRank):
        return [weight.new_ones(shape) for shape in optimizer.shapes(weight, group)]
    return [torch.ones_like(weight), torch.ones_like(weight)]


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _elements(batch: Batch) -> int:
    parts = (each for each in batch.values() if isinstance(each, dict))
    return sum(map(_elements, parts)) + sum(each.numel() for each in batch.values() if isinstance(each, torch.Tensor))
