"""Hyperparameters reach what they are of: seen in a step of a real run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer

from tests.trainer.conftest import Run
from tests.trainer.rows_of_the_table import METHODS

Handles = list[Any]


@pytest.fixture
def handles() -> Iterator[Handles]:
    """Hooks that the test leaves behind, on all modules or optimisers."""
    left: Handles = []
    yield left
    for each in left:
        each.remove()


def one_step(train: Run, changes: dict[str, Any], **settings: Any) -> None:
    train(hyperparameters={"max_steps": 1, "precision": "fp32", **settings}, **changes)


@pytest.mark.parametrize("name", ["lora", "lora+ and neftune", "full", "galore", "apollo"])
def test_weights_decay_and_gradients_are_clipped_as_it_was_asked_for(train: Run, handles: Handles, name: str) -> None:
    decays: set[tuple[int, float]] = set()
    norms: list[float] = []

    def look(optimizer: Any, *_: object) -> None:
        weights = [(weight, group["weight_decay"]) for group in optimizer.param_groups for weight in group["params"]]
        decays.update((weight.ndim, decay) for weight, decay in weights)
        norms.append(float(torch.stack([weight.grad.norm() for weight, _ in weights]).norm()))

    handles.append(register_optimizer_step_pre_hook(look))
    changes = {"method": METHODS[name]["method"]} if name in METHODS else {}
    one_step(train, changes, weight_decay=0.3, max_grad_norm=0.01)
    assert norms == [pytest.approx(0.01, rel=1e-3)]
    norms_and_biases = set[tuple[int, float]]() if "lora" in name else {(1, 0.0)}
    assert decays == {(2, 0.3)} | norms_and_biases


@pytest.mark.parametrize(("asked", "times"), [(False, 1), (True, 2)])
def test_with_gradient_checkpointing_each_block_is_computed_twice(
    train: Run, handles: Handles, asked: bool, times: int
) -> None:
    passes = dict[int, int]()

    def count(module: torch.nn.Module, _: object) -> None:
        if (
            isinstance(module, Qwen2Attention) and module.training
        ):  # a block's own hooks are called the first time alone
            passes[module.layer_idx] = passes.get(module.layer_idx, 0) + 1

    handles.append(register_module_forward_pre_hook(count))
    one_step(train, {}, gradient_checkpointing=asked, batch_size=2)
    assert passes == {0: times, 1: times}


def test_noise_is_added_to_embeddings_in_training_alone(train: Run, handles: Handles) -> None:
    """Uniform, up to alpha / √(tokens · width) (Jain et al., 2023)."""
    embedded: list[torch.Tensor] = []
    strongest: dict[bool, list[float]] = {True: [], False: []}

    def note(module: torch.nn.Module, _: object, made: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Embedding):
            embedded.append(made.detach())

    def compare(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, Qwen2DecoderLayer) and module.self_attn.layer_idx == 0:
            noise = (inputs[0] - embedded[-1]).abs().max()
            strongest[module.training].append(float(noise) * math.sqrt(inputs[0][0].numel()))

    handles += [register_module_forward_hook(note), register_module_forward_pre_hook(compare)]
    one_step(train, {"validation": {"fraction": 0.2}}, neftune_alpha=5)
    assert strongest[True] == pytest.approx([5.0] * len(strongest[True]), rel=0.02)
    assert strongest[True]
    assert max(strongest[False]) == 0.0
