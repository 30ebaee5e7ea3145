"""How a model attends: what is quick on the hardware that it is trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    causal_mask_function,
    eager_mask,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from app.jobs.combinations import TRIED_FAMILIES
from app.jobs.estimate import ATTENTION_KEPT_UP_TO
from worker.trainer.base import inner_of
from worker.trainer.depths import has_routers
from worker.trainer.precision import compute_dtype

# Their names in transformers.
VARLEN, BLOCKWISE = "varlen", "blockwise"

_BLOCK = 256  # queries
_WIDEST_HEAD = 256  # that FlashAttention's kernels have


def choose(model: Any) -> None:
    """Lets the model attend as is quick on its device, where it can: its own way may be what it was made with."""
    inner = inner_of(model)
    if inner.config.model_type not in TRIED_FAMILIES or inner.config._attn_implementation != "sdpa":
        return
    if not inner._can_set_attn_implementation() or has_routers(inner.config):  # which read masks and make them anew
        return
    if inner.device.type == "cpu":
        inner.set_attn_implementation(BLOCKWISE)
    elif takes_varlen(inner.config, torch.cuda.get_device_capability(), compute_dtype()) and varlen_is_right(
        _width(inner.config), compute_dtype(), inner.device
    ):
        inner.set_attn_implementation(VARLEN)


def takes_varlen(config: Any, capability: tuple[int, int], compute: torch.dtype) -> bool:
    """Whether PyTorch's FlashAttention 2 (Dao, 2023, arXiv:2307.08691) computes a model of this configuration, in this precision,
    on a GPU of this compute capability: from Ampere on, in 16 bits, heads of a multiple of 8. Its backward pass adds up in no fixed
    order, so not where that is asked for; and it drops none of its weights."""
    width = _width(config)
    return bool(
        capability >= (8, 0)
        and compute in (torch.bfloat16, torch.float16)
        and not torch.are_deterministic_algorithms_enabled()
        and width <= _WIDEST_HEAD
        and width % 8 == 0
        and not getattr(config, "attention_dropout", 0)
    )


def _width(config: Any) -> int:
    """Of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def varlen_is_right(width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether PyTorch's kernel is there, and what it says of two texts is what plain attention says of each: builds of PyTorch and
    GPUs differ, and nobody would see that texts see each other. Draws nothing from the global generators."""
    drawn = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(24, heads, width, generator=drawn, dtype=dtype, device=device).requires_grad_()
        for heads in (2, 1, 1)
    )
    begins = torch.tensor([0, 9, 24], dtype=torch.int32, device=device)
    try:
        found = varlen_attn(q, k, v, begins, begins, 15, 15, scale=width**-0.5, window_size=(-1, 0), enable_gqa=True)
        assert isinstance(found, torch.Tensor)
        said = [found, *torch.autograd.grad((found.float() ** 2).sum(), (q, k, v))]
    except (RuntimeError, TypeError):
        return False
    plain = [tensor.detach().float().requires_grad_() for tensor in (q, k, v)]
    alone = []
    for text in (slice(0, 9), slice(9, 24)):
        query, key, value = (tensor[text].transpose(0, 1) for tensor in plain)
        alone.append(functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True))
    expected = torch.cat(alone, dim=1).transpose(0, 1)
    due = [expected, *torch.autograd.grad((expected**2).sum(), plain)]
    return all(torch.dist(ours.float(), own) < 5e-2 * own.norm() for ours, own in zip(said, due, strict=True))


def attention_of(model: torch.nn.Module) -> str:
    """How the model attends, by transformers' name."""
    return str(inner_of(model).config._attn_implementation)


def varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each text of a packed row alone, where it is told where they begin; else what transformers' `sdpa` does.

    query [1, heads, T, width], key and value [1, shared heads, T, width], cu_seq_lens_q [texts + 1] int32, from 0 to T,
    max_length_q tokens of the longest text; returns [1, T, heads, width].
    """
    if cu_seq_lens_q is None or max_length_q is None:
        if attention_mask is None:
            attention_mask = _mask_without_padding(query, key, sliding_window)
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
        return plain
    dtype = _dtype_of(query)
    q, k, v = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    begins, longest = cu_seq_lens_q, max_length_q
    answered = varlen_attn(
        q, k, v, begins, begins, longest, longest, scale=scaling, window_size=window, enable_gqa=True
    )
    assert isinstance(answered, torch.Tensor)  # and not the softmax's sums too
    return answered.unsqueeze(0), None


def varlen_mask(*sizes: Any, attention_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor | None:
    """The mask that `varlen` is given: `sdpa`'s for rows with padding. Packed rows have no 2D mask and need none; transformers
    would build one of T x T for them, 17 GB at 131,072 tokens."""
    if attention_mask is None:
        return None
    mask: torch.Tensor | None = sdpa_mask(*sizes, attention_mask=attention_mask, **options)
    return mask


def _mask_without_padding(query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """The mask of rows that are one text each, which `varlen_mask` left out. None where the kernel's own causal mask will do."""
    mask: torch.Tensor | None = sdpa_mask(
        query.shape[0], query.shape[2], key.shape[2], key.shape[2] - query.shape[2], local_size=window, device=query.device,
        mask_function=causal_mask_function if window is None else sliding_window_causal_mask_function(window),
    )  # fmt: skip
    return mask


def _dtype_of(query: torch.Tensor) -> torch.dtype:
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


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
    dtype = _dtype_of(query)
    key, value = key.to(dtype), value.to(dtype)
    found = []
    with torch.autocast(query.device.type, enabled=False):  # which would make the weights in fp32
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
AttentionInterface.register(VARLEN, varlen)
AttentionMaskInterface.register(VARLEN, varlen_mask)
