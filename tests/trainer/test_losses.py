"""Losses and their gradients, against TRL's on the same batch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from app.jobs.hyperparameters import Kto, Preference
from worker.trainer.data.render import Example
from worker.trainer.data.rows import Item
from worker.trainer.reference import with_reference
from worker.trainer.stages import STAGES, kto, texts

LENGTHS = ((9, 5, 8), (4, 7, 3), (14, 2, 6), (6, 6, 1), (3, 4, 9))  # of prompt, chosen and rejected answer
CHAT = [{"prompt": "a", "chosen": "b", "rejected": "c"}]


def ids(random: np.random.Generator, length: int) -> list[int]:
    return [int(token) for token in random.integers(5, 500, length)]


def example(prompt: list[int], answer: list[int]) -> Example:
    mask = np.arange(len(prompt) + len(answer)) >= len(prompt)
    return Example(np.array(prompt + answer, dtype=np.int32), mask)


ROWS = [[ids(np.random.default_rng([row, part]), length) for part, length in enumerate(lengths)]
        for row, lengths in enumerate(LENGTHS)]  # fmt: skip
PAIRS = [Item((example(prompt, chosen), example(prompt, rejected))) for prompt, chosen, rejected in ROWS]


@pytest.fixture
def model(base: Path) -> Any:
    """The model that is trained: the base, moved a little away from it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


@pytest.fixture
def untrained(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base)


def plain(out: Path, **options: Any) -> dict[str, Any]:
    return {"output_dir": str(out), "use_cpu": True, "report_to": "none", "bf16": False,
            "gradient_checkpointing": False, **options}  # fmt: skip


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same(model: Any, ours: torch.Tensor, theirs: Callable[[Any], torch.Tensor]) -> None:
    """`theirs` is asked of a copy: TRL changes the forward of the model that it is given."""
    copied = deepcopy(model)
    own, oracle = gradients(model, ours), theirs(copied)
    torch.testing.assert_close(ours, oracle, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own, gradients(copied, oracle), rtol=1e-4, atol=1e-4)


def step_loss(stage: str, model: Any, items: list[Item], settings: Any, max_tokens: int = 60) -> torch.Tensor:
    """A step's loss, of several micro-batches."""
    made = STAGES[stage].batches(items, 0, max_tokens)
    assert len(made) > 1
    STAGES[stage].begin_step(model, made)
    count = sum(batch["count"] for batch in made)
    return torch.stack([STAGES[stage].loss(model, batch, settings)[0] for batch in made]).sum() / count


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_losses_of_preferences_are_trl_s(model: Any, untrained: Any, tokenizer: Any, tmp_path: Path, loss: str) -> None:
    settings = Preference.model_validate({"loss": loss, "beta": 0.3})
    items = with_reference(untrained, PAIRS, 0, 60)
    batch = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in ROWS]

    def theirs(copied: Any) -> torch.Tensor:
        args = DPOConfig(**plain(tmp_path, loss_type=[loss], beta=0.3))
        oracle = DPOTrainer(copied, untrained, args, train_dataset=Dataset.from_list(CHAT), processing_class=tokenizer)
        found: torch.Tensor = oracle._compute_loss(oracle.model, oracle.data_collator(batch), False)
        return found

    assert_same(model, step_loss("dpo", model, items, settings), theirs)


def test_simpo_and_orpo_are_trl_s(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = Dataset.from_list(CHAT)
    chosen_and_rejected = texts.collate([item.examples[side] for side in (0, 1) for item in PAIRS], 0)

    def per_token(copied: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found = texts.log_probabilities(copied, chosen_and_rejected) / texts.loss_tokens(chosen_and_rejected)
        chosen, rejected = found.chunk(2)
        return chosen, rejected

    def simpo(copied: Any) -> torch.Tensor:
        args = CPOConfig(**plain(tmp_path, loss_type="simpo", beta=2.0, simpo_gamma=0.7, cpo_alpha=0.0))
        oracle = CPOTrainer(copied, args, train_dataset=rows, processing_class=tokenizer)
        losses: torch.Tensor = oracle.cpo_loss(*per_token(copied))[0]
        return losses.mean()

    def orpo(copied: Any) -> torch.Tensor:
        args = ORPOConfig(**plain(tmp_path, beta=0.3))
        oracle = ORPOTrainer(copied, args, train_dataset=rows, processing_class=tokenizer)
        chosen, rejected = per_token(copied)
        ratios: torch.Tensor = oracle.odds_ratio_loss(chosen, rejected)[0]
        return (-chosen - ratios).mean()

    settings = Preference.model_validate({"loss": "simpo", "beta": 2.0, "simpo_gamma": 0.7})
    assert_same(model, step_loss("dpo", model, PAIRS, settings), simpo)
    settings = Preference.model_validate({"loss": "orpo", "beta": 0.3})
    assert_same(model, step_loss("dpo", model, PAIRS, settings), orpo)


def test_the_loss_of_labels_is_trl_s(model: Any, untrained: Any, tokenizer: Any, tmp_path: Path) -> None:
    settings = Kto.model_validate({"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5})
    # Of one length, so that no mismatched pair is cut, which TRL does not do.
    rows = [(prompt[:3], answer[:2] * 2, bool(i % 2)) for i, (prompt, answer, _) in enumerate(ROWS)]
    items = [Item((example(prompt, answer),), good=good) for prompt, answer, good in rows]
    items = with_reference(untrained, kto.pair_up(items), 0, 60)
    batch = [
        {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": rows[i - 1][1], "label": good}
        for i, (prompt, answer, good) in enumerate(rows)
    ]

    def theirs(copied: Any) -> torch.Tensor:
        args = KTOConfig(**plain(
            tmp_path, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5, per_device_train_batch_size=2,
            train_sampling_strategy="sequential",
        ))  # fmt: skip
        some = Dataset.from_list([{"prompt": "a", "completion": "b", "label": i > 0} for i in range(2)])
        oracle = KTOTrainer(copied, untrained, args, train_dataset=some, processing_class=tokenizer)
        found: torch.Tensor = oracle._compute_loss(oracle.model, oracle.data_collator(batch), False)
        return found

    assert_same(model, step_loss("kto", model, items, settings, max_tokens=30), theirs)


def test_the_loss_of_reward_models_is_trl_s(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(2)
    scorer = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    batch = [{"chosen_ids": p + c, "rejected_ids": p + r} for p, c, r in ROWS]

    def theirs(copied: Any) -> torch.Tensor:
        args = RewardConfig(**plain(tmp_path, center_rewards_coefficient=None))
        oracle = RewardTrainer(copied, args, train_dataset=Dataset.from_list(CHAT), processing_class=tokenizer)
        found: torch.Tensor = oracle.compute_loss(oracle.model, oracle.data_collator(batch))
        return found

    assert_same(scorer, step_loss("rm", scorer, PAIRS, None), theirs)
