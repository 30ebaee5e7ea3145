"""All weights are trained by their own gradients, scaled channel by channel as AdamW scales a random projection of them
(Zhu et al., 2024, arXiv:2412.05270)."""

from __future__ import annotations

import math
from typing import Any
from zlib import crc32

import torch

from app.jobs.methods import Apollo
from worker.trainer.methods import low_rank
from worker.trainer.methods.full import KIND, load, load_base, of_stage, save
from worker.trainer.methods.low_rank import State, prepare

__all__ = ["KIND", "load", "load_base", "of_stage", "optimizer", "prepare", "save"]

# A scaled gradient's norm may be so many times that of the step before: the paper's norm-growth limiter.
_GROWTH = 1.01


def optimizer(model: Any, config: Apollo, options: dict[str, Any]) -> low_rank.LowRank:
    """APOLLO; `options` are those of torch's AdamW."""
    return low_rank.optimizer(model, config, options, _project, _enlarge)


def _project(gradient: torch.Tensor, state: State, group: State, number: int) -> torch.Tensor:
    """Normal numbers of variance 1 / rank, others every `update_interval` steps. They follow from a seed, and are not kept."""
    rank, short = min(group["rank"], gradient.shape[1]), gradient.shape[1]
    seed = crc32(f"{group['seed']} {number} {state['step'] // group['update_interval']}".encode())
    generator = torch.Generator(gradient.device).manual_seed(seed)
    numbers = torch.randn(rank, short, generator=generator, device=gradient.device, dtype=gradient.dtype)
    return numbers / math.sqrt(rank)


def _enlarge(
    gradient: torch.Tensor,
    low: torch.Tensor,
    direction: torch.Tensor,
    projection: torch.Tensor,
    state: State,
    group: State,
) -> torch.Tensor:
    by_channel = direction.norm(dim=1, keepdim=True) / (low.norm(dim=1, keepdim=True) + 1e-8)
    scaled = gradient * by_channel
    norm = scaled.norm()
    before = state.get("norm", norm)
    excess = torch.where(before > 0, norm / (_GROWTH * before), 1.0).clamp(min=1)
    state["norm"] = norm / excess
    enlarged: torch.Tensor = scaled * (math.sqrt(group["scale"]) / excess)
    return enlarged
