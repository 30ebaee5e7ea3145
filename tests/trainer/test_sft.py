"""The loss, against the plain computation: right padding, all logits, shifted labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from worker.trainer import precision
from worker.trainer.base import accepts
from worker.trainer.data.render import Example
from worker.trainer.data.rows import Item
from worker.trainer.stages import sft


def make_examples() -> list[Example]:
    """Of 4 to 40 tokens, with one or two learned stretches, one from the first token on, one not at the end."""
    random = np.random.default_rng(3)
    examples = []
    for length in (40, 31, 17, 9, 4):
        mask = np.zeros(length, dtype=np.bool_)
        mask[length // 2 : length // 2 + 2] = True
        mask[-1] = length != 31
        mask[:2] = length == 9
        examples.append(Example(random.integers(5, 500, length).astype(np.int32), mask))
    return examples


def plain_loss(model: Any, examples: list[Example]) -> torch.Tensor:
    width = max(len(example.token_ids) for example in examples)
    ids, mask, labels = (torch.full((len(examples), width), fill) for fill in (0, 0, -100))
    for row, example in enumerate(examples):
        length = len(example.token_ids)
        ids[row, :length] = torch.tensor(example.token_ids)
        mask[row, :length] = 1
        labels[row, :length] = torch.tensor(np.where(example.loss_mask, example.token_ids, -100))
    logits = model(input_ids=ids, attention_mask=mask).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def step_loss(model: Any, examples: list[Example], max_tokens: int) -> torch.Tensor:
    batches = sft.batches([Item((example,)) for example in examples], 0, max_tokens)
    return torch.stack([sft.loss(model, batch, None)[0] for batch in batches]).sum() / sum(b["count"] for b in batches)


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.fixture
def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


@pytest.mark.parametrize("max_tokens", [10_000, 64, 1], ids=["one micro-batch", "some", "one a row"])
def test_loss_and_gradients_are_those_of_full_logits_however_the_step_is_split(model: Any, max_tokens: int) -> None:
    examples = make_examples()
    expected, actual = plain_loss(model, examples), step_loss(model, examples, max_tokens)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(model, actual), gradients(model, expected), rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_keep_some_logits_gives_the_same_loss(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, whole = plain_loss(model, make_examples()), type(model).forward

    def forward(self: Any, input_ids: Any, attention_mask: Any, position_ids: Any, use_cache: bool) -> Any:
        return whole(self, input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)

    monkeypatch.setattr(type(model), "forward", forward)
    assert not accepts(model, "logits_to_keep")
    torch.testing.assert_close(step_loss(model, make_examples(), 64), expected, rtol=1e-5, atol=1e-5)


def test_micro_batches_stay_within_the_budget_and_hold_every_row() -> None:
    batches = sft.batches([Item((example,)) for example in make_examples()], 0, 64)
    assert all(batch["input_ids"].numel() <= 64 for batch in batches)
    assert sum(len(batch["input_ids"]) for batch in batches) == 5
    assert sum(batch["tokens"] for batch in batches) == 40 + 31 + 17 + 9 + 4


@pytest.mark.parametrize(
    ("asked", "widths"), [("fp32", [23, 19, 16]), ("bf16", [23, 19, 16] if torch.cuda.is_available() else [24, 24, 16])]
)
def test_in_16_bits_a_cpu_has_fewer_widths(monkeypatch: pytest.MonkeyPatch, asked: str, widths: list[int]) -> None:
    monkeypatch.setattr(precision, "_asked", asked)
    texts = [Example(np.arange(n, dtype=np.int32), np.arange(n) >= n - 2) for n in (23, 19, 16)]
    batches = sft.batches([Item((text,)) for text in texts], 0, 30)
    assert [batch["input_ids"].shape for batch in batches] == [(1, width) for width in widths]
    assert [batch["tokens"] for batch in batches] == [23, 19, 16]


def test_logits_are_computed_only_where_there_is_loss() -> None:
    answers = [Example(np.arange(n, dtype=np.int32), np.arange(n) >= n - 2) for n in (56, 52, 47)]
    [batch] = sft.batches([Item((answer,)) for answer in answers], 0, 1000)
    assert batch["columns"].tolist() == [53, 54]
