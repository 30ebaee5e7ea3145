"""What is left out of the last block is read by nobody: what is learned is the same, and what the model says too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Module

from benchmarks.families import FAMILIES, TINY, make
from tests.trainer.test_families import load
from tests.trainer.test_sft import gradients
from worker.trainer.data.render import Example
from worker.trainer.data.rows import Item
from worker.trainer.last_block import narrow
from worker.trainer.stages import packed, sft


def some_rows() -> list[Item]:
    random = np.random.default_rng(7)
    answered = [(40, 3), (25, 2), (33, 20), (9, 1)]
    return [
        Item((Example(random.integers(5, 500, n).astype(np.int32), np.arange(n) >= n - answer),))
        for n, answer in answered
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("batches", [sft.batches, packed.batches])
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.code])
def test_loss_and_gradients_are_the_same(tmp_path: Path, name: str, batches: Any, checkpointing: bool) -> None:
    model = load(make(FAMILIES[name], tmp_path, TINY), False).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    [batch] = batches(some_rows(), 0, 10_000)
    passed = list[int]()

    def learned() -> tuple[torch.Tensor, torch.Tensor]:
        loss, _ = sft.loss(model, batch, None)
        return loss, gradients(model, loss)

    expected, others = learned()
    narrow(model)
    layer: Module = model.model.layers[-1].mlp.down_proj
    layer.register_forward_hook(lambda layer, inputs, made: passed.append(made.shape[1]))
    found, own = learned()
    assert set(passed) == {len(batch["columns"])}
    assert len(batch["columns"]) < batch["input_ids"].shape[1]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert (own - others).norm() < 1e-5 * others.norm()


def test_a_model_that_does_not_train_says_all(tmp_path: Path) -> None:
    model = load(make(FAMILIES["qwen2"], tmp_path, TINY), False)
    [batch] = sft.batches(some_rows(), 0, 10_000)
    asked = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    expected = model(**asked).logits
    narrow(model)
    sft.loss(model.train(), batch, None)
    torch.testing.assert_close(model.eval()(**asked).logits, expected)


def test_a_model_with_code_of_its_own_is_left_as_it_is(tmp_path: Path) -> None:
    family = next(family for family in FAMILIES.values() if family.code)
    model = load(make(family, tmp_path, TINY), True)
    narrow(model)
    assert not hasattr(model, "last_read")
