"""What a model answers, token by token: the likeliest tokens, or drawn ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from worker.trainer.base import inner_of
from worker.trainer.depths import has_routers
from worker.trainer.precision import autocast

Tokens = NDArray[np.int32]

# Answers that are made together have at most as many tokens, prompts and all, as so many micro-batches: no activations are kept.
_MICRO_BATCHES = 4


@torch.no_grad()
def answers(
    model: Any,
    prompts: Sequence[Tokens],
    *,
    ends: Sequence[int],
    new_tokens: int,
    pad_id: int,
    micro_batch_tokens: int,
    temperature: float | None = None,
    in_step: bool = False,
) -> list[Tokens]:
    """An answer to each prompt, in their order: up to and with the first of the tokens that end it, of at most `new_tokens`; the
    likeliest tokens, or at a temperature drawn by torch's global generators. The model is left in evaluation mode.
    `in_step`: all processes of a run answer at the same time, and each goes on until all are done."""
    model.eval()
    drawn: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    how = GenerationConfig(
        max_new_tokens=new_tokens, eos_token_id=sorted(ends) or None, pad_token_id=pad_id, use_cache=True,
        **(drawn if temperature is not None else {"do_sample": False}),
    )  # fmt: skip
    device = next(model.parameters()).device
    made: dict[int, Tokens] = {}
    with _by_no_other_rule(model) as inner, autocast(device):
        for numbers in together(model, prompts, new_tokens, micro_batch_tokens):
            input_ids, attention_mask = _padded([prompts[number] for number in numbers], pad_id)
            width = input_ids.shape[1]
            inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
            found = inner.generate(**inputs, generation_config=how, synced_gpus=in_step)[:, width:]
            found = found.cpu().numpy().astype(np.int32)
            made |= {number: _up_to_end(answer, ends) for number, answer in zip(numbers, found, strict=True)}
    return [made[number] for number in range(len(prompts))]


@contextmanager
def _by_no_other_rule(model: Any) -> Iterator[Any]:
    """The model, of an adapter's the one inside, for the time of the block without settings of its own for what is not asked
    for: transformers would take a penalty, say, from them."""
    inner = inner_of(model)
    own, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield inner
    finally:
        inner.generation_config = own


def together(model: Any, prompts: Sequence[Tokens], new_tokens: int, micro_batch_tokens: int) -> list[list[int]]:
    """Numbers of prompts of like length that are answered together; the longest first."""
    # A cache tells no text's tokens from those that another one left out.
    most = 1 if has_routers(inner_of(model).config) else len(prompts)
    longest_first = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    groups = list[list[int]]()
    while longest_first:
        width = len(prompts[longest_first[0]]) + new_tokens
        count = max(1, min(most, _MICRO_BATCHES * micro_batch_tokens // width))
        groups.append(longest_first[:count])
        longest_first = longest_first[count:]
    return groups


def _padded(prompts: list[Tokens], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, [B, T] int64, padded on the left."""
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.from_numpy(prompt).long()
        attention_mask[row, width - len(prompt) :] = 1
    return input_ids, attention_mask


def _up_to_end(answer: Tokens, ends: Sequence[int]) -> Tokens:
    [at] = np.isin(answer, ends).nonzero()
    return answer[: at[0] + 1] if len(at) else answer
