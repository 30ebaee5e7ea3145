"""Mixture-of-Depths (Raposo et al., 2024, arXiv:2404.02258): in every second block a router picks the tokens that it processes.

A model with routers is plain transformers' with one more weight in each such block, `router.weight` [1, hidden], and
`mixture_of_depths` in its configuration. Without the routers its weights load anywhere, but mean another model.

While it trains, a block takes of each text the share of tokens with the highest scores. That choice looks ahead, so the
score is trained beside it to be above zero for what is taken and below for what is not, and that is the rule otherwise: it
depends on what came before alone. A token that is left out has no key in that block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn import Linear, functional

from worker.trainer.base import blocks_of

_ENTRY, _ROUTER = "mixture_of_depths", ".router.weight"


def has_routers(config: Any) -> bool:
    """Whether a configuration is that of a model with routers."""
    return getattr(config, _ENTRY, None) is not None


def add_routers(model: Any, capacity: float) -> None:
    """Puts a router into the second, the fourth, ... block; their weights come from torch's global generator. Sliding windows
    are given up: a block knows which tokens it took, not where they were.

    Raises `ValueError` where there is no second block.
    """
    blocks, config = blocks_of(model), model.config
    if len(blocks) < 2:
        raise ValueError("method.type: mod needs a model of two blocks or more")
    model.set_attn_implementation("sdpa")  # whose masks `_Routed` reads and makes
    setattr(config, _ENTRY, {"capacity": capacity})
    config.sliding_window = None
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * len(blocks)
        config.use_sliding_window = False
        model.model.has_sliding_layers = False
    block: Any
    for block in blocks[1::2]:
        kind, weight = type(block), next(block.parameters())
        block.router = Linear(config.hidden_size, 1, bias=False, device=weight.device, dtype=weight.dtype)
        torch.nn.init.normal_(block.router.weight, std=config.initializer_range)
        block.capacity, block.prediction_loss = capacity, None
        block.__class__ = type(f"Routed{kind.__name__}", (_Routed, kind), {})  # so that its weights keep their names


def load_routers(model: Any, folder: Path) -> None:
    """Makes what transformers loaded from `folder` the model that it is. Raises `ValueError` and `OSError`."""
    add_routers(model, getattr(model.config, _ENTRY)["capacity"])
    routers: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            routers |= {name: weights.get_tensor(name) for name in sorted(weights.keys()) if name.endswith(_ROUTER)}
    missing, foreign = model.load_state_dict(routers, strict=False)
    lost = [name for name in missing if name.endswith(_ROUTER)]
    if lost or foreign:
        raise ValueError(f"the weights in {folder} have other routers: {[*lost, *foreign][:3]}")


def prediction_losses(model: torch.nn.Module) -> torch.Tensor:
    """Of the last forward in training: how badly each text's choices were foretold, [B] fp32, a mean over blocks and tokens."""
    routed: list[Any] = [module for module in model.modules() if isinstance(module, _Routed)]
    return torch.stack([block.prediction_loss for block in routed]).mean(dim=0)


class _Routed(torch.nn.Module):
    """Comes before a decoder layer's class."""

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: object = None,
        past_key_values: Any = None,
        position_embeddings: Any = None,
        **options: Any,
    ) -> torch.Tensor:
        """[B, T, hidden] → [B, T, hidden]. Of the mask only what is padding is read."""
        if past_key_values is not None and len(hidden_states) > 1:
            raise ValueError("with a cache, a model with routers takes one text at a time")
        is_real = hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.bool)
        if (
            attention_mask is not None
        ):  # [B, 1, T, keys], keys of a cache first: the last query sees every key but padding
            is_real = attention_mask[:, 0, -1, -hidden_states.shape[1] :].expand_as(is_real)
        read = self.input_layernorm(hidden_states)
        scores = self.router(read).squeeze(-1).float()
        if self.training:
            chosen = _highest(scores, is_real, self.capacity)
            # Of the router alone: the model is not to become what is easily foretold.
            self.prediction_loss = _prediction_loss(self.router(read.detach()).squeeze(-1).float(), chosen, is_real)
        else:
            chosen = is_real & (scores > 0)
        most = int(chosen.sum(dim=1).max())
        if most == 0:
            return hidden_states
        taken = (~chosen).long().argsort(dim=1, stable=True)[:, :most]  # [B, K] columns, in their order; then others'
        is_taken = chosen.gather(1, taken)
        columns = taken.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1])
        before = hidden_states.gather(1, columns)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length(self.self_attn.layer_idx)
        after = super().forward(
            before,
            attention_mask=_mask(is_taken, seen),
            past_key_values=past_key_values,
            position_embeddings=tuple(_columns(each, taken) for each in position_embeddings),
            **options,
        )
        gate = (scores.gather(1, taken).sigmoid() * is_taken).unsqueeze(-1).to(before.dtype)
        return hidden_states.scatter(1, columns, before + gate * (after - before))


def _highest(scores: torch.Tensor, is_real: torch.Tensor, capacity: float) -> torch.Tensor:
    """The tokens with the highest scores, of each text the same share, rounded up; [B, T] bool."""
    order = scores.detach().masked_fill(~is_real, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return rank < (is_real.sum(dim=1, keepdim=True) * capacity).ceil()


def _prediction_loss(scores: torch.Tensor, chosen: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    found = functional.binary_cross_entropy_with_logits(scores, chosen.float(), reduction="none")
    return (found * is_real).sum(dim=1) / is_real.sum(dim=1)


def _mask(is_taken: torch.Tensor, seen: int) -> torch.Tensor:
    """Who attends to whom, [B, 1, K, seen + K] bool: each to all of the cache, and to what was taken up to itself."""
    count = is_taken.shape[1]
    causal = is_taken.new_ones(count, count).tril()
    itself = torch.eye(count, dtype=torch.bool, device=is_taken.device)  # no row of a softmax is empty
    new = (causal & is_taken.unsqueeze(1)) | itself
    return torch.cat([new.new_ones(len(new), count, seen), new], dim=2).unsqueeze(1)


def _columns(each: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """Of [B or 1, T, D] the columns that each text takes, [B, K, D]."""
    every = each.expand(len(taken), -1, -1)
    return every.gather(1, taken.unsqueeze(-1).expand(-1, -1, every.shape[-1]))
