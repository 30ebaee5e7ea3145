"""Mixture-of-Depths: who is processed, and that an answer written token by token is what the whole text gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.trainer.conftest import Run
from worker.trainer import depths

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": None,
}  # fmt: skip
# The last two have windows, which are given up.
FAMILIES: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": lambda **shape: Qwen3Config(use_sliding_window=True, sliding_window=3, max_window_layers=1, **shape),
    "mistral": lambda **shape: MistralConfig(sliding_window=3, **shape),
}


def routed(family: str = "llama", capacity: float = 0.3) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](**SHAPE), dtype=torch.float32)
    depths.add_routers(model, capacity)
    return model.eval()


@torch.no_grad()
def taken(model: Any, ids: Tensor) -> list[int]:
    """How many tokens of a text each block processes."""
    lengths: list[int] = []
    hooks = [
        block.mlp.register_forward_hook(lambda _, given, __: lengths.append(given[0].shape[1]))
        for block in model.model.layers
    ]
    model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return lengths


def text(length: int, seed: int = 3) -> Tensor:
    return torch.randint(1, 64, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_token_by_token_it_says_what_it_says_of_the_whole_text(family: str) -> None:
    model, ids = routed(family), text(24)
    whole = model(input_ids=ids, use_cache=False).logits
    begin = model(input_ids=ids[:, :9], use_cache=False).logits
    torch.testing.assert_close(begin, whole[:, :9], atol=1e-4, rtol=1e-4)  # no choice depends on what comes after it
    first = model(input_ids=ids[:, :7], use_cache=True)
    found, cache = [first.logits], first.past_key_values
    for at in range(7, 24):
        step = model(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
        found.append(step.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, atol=1e-4, rtol=1e-4)
    lengths = [cache.get_seq_length(layer) for layer in range(5)]
    assert lengths[::2] == [24, 24, 24]
    assert all(0 < length < 24 for length in lengths[1::2])


@torch.no_grad()
def test_generate_writes_what_whole_texts_give() -> None:
    model, ids = routed(), text(6)
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    for _ in range(12):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, ids)


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_padding_and_other_texts_of_a_batch_change_nothing(training: bool) -> None:
    model, short, long = routed().train(training), text(9), text(16, seed=4)
    ids = torch.cat([torch.cat([torch.zeros(1, 7, dtype=torch.long), short], dim=1), long])
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    both = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    foretold = depths.prediction_losses(model) if training else torch.zeros(2)
    for row, (alone, start) in enumerate(((short, 7), (long, 0))):
        single = model(input_ids=alone, use_cache=False).logits[0]
        torch.testing.assert_close(both[row, start:], single, atol=1e-4, rtol=1e-4)
        if training:
            torch.testing.assert_close(foretold[row : row + 1], depths.prediction_losses(model), atol=1e-5, rtol=1e-4)


def test_in_training_a_routed_block_takes_its_share_and_no_more() -> None:
    assert taken(routed(capacity=0.3).train(), text(20)) == [20, 6, 20, 6, 20]


def test_all_of_it_learns_and_the_choice_is_foretold_by_the_routers_alone() -> None:
    model, ids = routed().train(), text(20)
    model(input_ids=ids, use_cache=False).logits.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())
    model.zero_grad()
    model(input_ids=ids, use_cache=False)
    depths.prediction_losses(model).sum().backward()
    learning = {
        name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0
    }
    assert learning == {f"model.layers.{layer}.router.weight" for layer in (1, 3)}


def test_a_cache_holds_one_text() -> None:
    with pytest.raises(ValueError, match="one text at a time"):
        routed()(input_ids=text(6).expand(2, -1), use_cache=True)


def test_what_is_saved_is_plain_weights_and_routers_that_are_loaded_by_a_function(tmp_path: Path) -> None:
    model, ids = routed("mistral"), text(12)
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert depths.has_routers(plain.config)
    with torch.no_grad():
        assert not torch.allclose(plain(ids).logits, model(ids).logits, atol=0.1)
        depths.load_routers(plain, tmp_path)
        torch.testing.assert_close(plain(ids).logits, model(ids).logits)
    assert plain.state_dict().keys() == model.state_dict().keys()


def test_the_routers_come_to_foretell_their_choices(train: Run, tmp_path: Path) -> None:
    """By the rule that does not look ahead they take about the share that was trained."""
    train(method={"type": "mod", "capacity": 0.5}, hyperparameters={"epochs": 8, "learning_rate": 0.003})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/merged")
    depths.load_routers(model.eval(), tmp_path / "out/merged")
    ids = torch.arange(5, 45).unsqueeze(0)
    assert 8 <= taken(model, ids)[1] <= 32
