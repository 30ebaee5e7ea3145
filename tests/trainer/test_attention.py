"""Attention by blocks of queries: what transformers' own plain attention says, also of long texts, and in less memory."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from app.jobs.estimate import ATTENTION_KEPT_UP_TO
from worker.trainer import attention
from worker.trainer.depths import add_routers

LONG = ATTENTION_KEPT_UP_TO + 200
SIZES = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
MODELS = {
    "heads that share keys": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "heads of their own": lambda: LlamaForCausalLM(LlamaConfig(**SIZES | {"num_key_value_heads": 4})),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=300)),
}


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("width", [40, 400, LONG])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_plain_attention(name: str, width: int, autocast: bool) -> None:
    torch.manual_seed(1)
    own = MODELS[name]()
    plain = copy.deepcopy(own)
    plain.set_attn_implementation("eager")
    attention.choose(own)
    assert attention.attention_of(own) == attention.BLOCKWISE
    ids = torch.randint(32, (2, width))
    mask = torch.ones_like(ids)
    mask[0, : width // 3] = 0
    said = []
    for model in (own, plain):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        said.append(logits[mask.bool()].float())
        (said[-1] ** 2).mean().backward()
    assert said[0].isfinite().all()
    torch.testing.assert_close(*said, atol=2e-2 if autocast else 1e-5, rtol=0)
    gradients = [torch.cat([weight.grad.flatten() for weight in model.parameters()]) for model in (own, plain)]
    assert torch.dist(*gradients) <= (5e-2 if autocast else 1e-5) * gradients[1].norm()


def test_a_model_that_answers_from_a_cache_says_the_same() -> None:
    torch.manual_seed(1)
    model = MODELS["heads that share keys"]()
    ids = torch.randint(3, 32, (2, 300))
    asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}
    expected = model.generate(ids, **asked)
    attention.choose(model)
    assert torch.equal(model.generate(ids, **asked), expected)


@pytest.mark.parametrize("how", [attention.VARLEN, attention.BLOCKWISE])
def test_answers_to_a_prompt_longer_than_a_window_are_the_same(how: str) -> None:
    torch.manual_seed(1)
    model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16, initializer_range=0.3))
    ids = torch.randint(3, 32, (1, 40))  # all of it seen, for which transformers drops the mask
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)
    model.set_attn_implementation(how)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False), expected)
    with torch.no_grad():
        said = model(input_ids=ids).logits
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(said, model(input_ids=ids).logits)


def test_attention_of_its_own_and_routers_stay(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    attention.choose(model)
    assert attention.attention_of(model) == "eager"
    add_routers(model, 0.5)
    attention.choose(model)
    assert attention.attention_of(model) == "sdpa"
