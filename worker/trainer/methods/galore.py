"""All weights are trained, with the moments of gradients in their own principal subspace (Zhao et al., 2024, arXiv:2403.03507)."""

from __future__ import annotations

from typing import Any

import torch

from app.jobs.methods import Galore
from worker.trainer.methods import low_rank
from worker.trainer.methods.full import KIND, load, load_base, of_stage, save
from worker.trainer.methods.low_rank import State, prepare

__all__ = ["KIND", "load", "load_base", "of_stage", "optimizer", "prepare", "save"]


def optimizer(model: Any, config: Galore, options: dict[str, Any]) -> low_rank.LowRank:
    """GaLore's AdamW; `options` are those of torch's."""
    return low_rank.optimizer(model, config, options, _project, _enlarge)


def _project(gradient: torch.Tensor, state: State, group: State, number: int) -> torch.Tensor:
    """The gradient's first right singular vectors, taken anew every `update_interval` steps; kept in the state."""
    if state["step"] % group["update_interval"] == 0:
        state["projection"] = _principal(gradient, group["rank"])
    projection: torch.Tensor = state["projection"]
    return projection


def _principal(gradient: torch.Tensor, rank: int) -> torch.Tensor:
    rank = min(rank, gradient.shape[1])
    if not bool(gradient.isfinite().all()):  # which no decomposition takes; the loop finds it and says so
        return gradient.new_full((rank, gradient.shape[1]), torch.nan)
    vectors: torch.Tensor = torch.linalg.svd(gradient, full_matrices=False).Vh[:rank]
    return vectors.clone(memory_format=torch.contiguous_format)  # a view would keep all of them


def _enlarge(
    gradient: torch.Tensor,
    low: torch.Tensor,
    direction: torch.Tensor,
    projection: torch.Tensor,
    state: State,
    group: State,
) -> torch.Tensor:
    enlarged: torch.Tensor = direction @ projection * group["scale"]
    return enlarged
