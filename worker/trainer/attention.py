"""How a model attends: what is quick on the hardware that it is trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.utils import is_flash_attn_2_available

from app.jobs.estimate import ATTENTION_KEPT_UP_TO
from worker.trainer.base import inner_of
from worker.trainer.depths import has_routers
from worker.trainer.precision import compute_dtype

# transformers' names of the package flash_attn's, and of ours.
FLASH, BLOCKWISE = "flash_attention_2", "blockwise"

_BLOCK = 256  # queries


def choose(model: Any) -> None:
    """Lets the model attend as is quick on its device, where it can: its own way may be what it was made with."""
    inner = inner_of(model)
    if inner.device.type == "cpu":
        if inner.config._attn_implementation == "sdpa" and _may_choose(inner):
            inner.set_attn_implementation(BLOCKWISE)
    elif is_flash_attn_2_available() and takes_flash(model, torch.cuda.get_device_capability(), compute_dtype()):
        inner.set_attn_implementation(FLASH)


def takes_flash(model: torch.nn.Module, capability: tuple[int, int], compute: torch.dtype) -> bool:
    """Whether FlashAttention 2 (Dao, 2023, arXiv:2307.08691) computes this model, in this precision, on a GPU of this compute
    capability: from Ampere on, in 16 bits. Its backward pass adds up in no fixed order, so not where that is asked for."""
    inner = inner_of(model)
    return bool(
        capability >= (8, 0)
        and compute in (torch.bfloat16, torch.float16)
        and not torch.are_deterministic_algorithms_enabled()
        and getattr(inner, "_supports_flash_attn", False)
        and _may_choose(inner)
    )


def attention_of(model: torch.nn.Module) -> str:
    """How the model attends, by transformers' name."""
    return str(inner_of(model).config._attn_implementation)


def _may_choose(inner: Any) -> bool:
    # A router's block reads its masks and makes them anew.
    return bool(inner._can_set_attn_implementation()) and not has_routers(inner.config)


def blockwise(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention by matrix products for a block of queries at a time (Rabe and Staats, 2021, arXiv:2112.05682), over the
    keys up to the block's end. Of long texts weights are computed again in the backward pass and not kept.

    query [B, heads, T, width], key and value [B, shared heads, K, width], attention_mask [B or 1, 1, T, K], added to the scores;
    returns [B, T, heads, width], as transformers wants it. On a CPU, 4 heads of 64 in bfloat16, forward and backward took a third
    of the time of torch's fused attention for texts of 64 to 512 tokens, and two thirds for those of 2,048.
    """
    (rows, _, length, width), (_, shared, keys, _) = query.shape, key.shape
    dropout = dropout if module.training else 0.0
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    key, value = key.to(dtype), value.to(dtype)
    found = []
    with torch.autocast(device, enabled=False):  # which would make the weights in fp32
        scaled = (query * (width**-0.5 if scaling is None else scaling)).to(dtype).view(rows, shared, -1, length, width)
        for start in range(0, length, _BLOCK):
            end = min(start + _BLOCK, length)
            seen = end if keys == length else keys  # a cache has keys of what came before
            part = (
                scaled[:, :, :, start:end], key[:, :, :seen], value[:, :, :seen], attention_mask[:, :, start:end, :seen], dropout
            )  # fmt: skip
            is_kept = length <= ATTENTION_KEPT_UP_TO or not torch.is_grad_enabled()
            found.append(_block(*part) if is_kept else checkpoint(_block, *part, use_reentrant=False))
    return torch.cat(found, dim=1), None


def _block(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, dropout: float
) -> torch.Tensor:
    """query [B, shared, sharing, T, width]: the heads that share keys are one matrix, so that keys need no copies."""
    rows, shared, _, length, width = query.shape
    keys = key.shape[2]
    matrices = rows * shared
    scores = torch.bmm(query.reshape(matrices, -1, width), key.reshape(matrices, keys, width).transpose(1, 2))
    if mask.dtype != scores.dtype:  # where padding sees nothing, no infinity, of which there would be no softmax
        mask = mask.to(scores.dtype).clamp(min=torch.finfo(scores.dtype).min)
    scores = scores.view(rows, -1, length, keys) + mask
    weights = functional.dropout(scores.softmax(dim=-1), dropout)
    answered = torch.bmm(weights.view(matrices, -1, keys), value.reshape(matrices, keys, -1))
    return answered.view(rows, -1, length, value.shape[-1]).transpose(1, 2)


AttentionInterface.register(BLOCKWISE, blockwise)
AttentionMaskInterface.register(BLOCKWISE, eager_mask)
